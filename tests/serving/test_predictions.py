"""The folder of what was computed: files that workers hand over, and room that is made."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from metainit.errors import CheckpointError
from serving.predictions import OLD_SECONDS, OWN_OLD_SECONDS, Predictions


def test_a_file_that_a_worker_wrote_is_moved(tmp_path: Path) -> None:
    kept = Predictions(tmp_path)
    file = Path(kept.inbox()) / "one"
    file.write_bytes(b"weights")
    found = kept.adopt("key", file)
    assert found.sha256 == hashlib.sha256(b"weights").hexdigest() and found.size == 7
    assert not file.exists() and kept.find("key") == found
    path = kept.blob(found.sha256)
    assert path is not None and path.read_bytes() == b"weights" and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(CheckpointError, match="ask again"):
        kept.adopt("other", file)
    assert Predictions(tmp_path).find("key") == found


def test_the_folder_of_a_process_has_a_name_of_its_own_and_old_ones_go(tmp_path: Path) -> None:
    old, young = Predictions(tmp_path), Predictions(tmp_path)
    first = Path(old.inbox())
    (first / "left").write_bytes(b"x")
    aged = first.stat().st_mtime - 2 * OLD_SECONDS
    os.utime(first, (aged, aged))
    second = Path(young.inbox())
    assert second != first and second.is_dir() and not first.exists()


def test_where_there_is_no_folder_for_workers_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "predictions").write_bytes(b"no folder")
    assert not Path(Predictions(tmp_path / "predictions").inbox()).exists()


def test_room_is_made_for_a_few_at_once(tmp_path: Path) -> None:
    kept = Predictions(tmp_path, most_bytes=100)
    for number in range(11):
        kept.keep(f"key-{number:02}", bytes([number]) * 10)
        os.utime(
            tmp_path / f"{hashlib.sha256(bytes([number]) * 10).hexdigest()}.safetensors", (number, number)
        )
    left = [number for number in range(11) if kept.find(f"key-{number:02}") is not None]
    assert left == list(range(2, 11)) and len(list(tmp_path.glob("orders/*/*"))) == 9


def test_what_is_damaged_while_it_is_kept_is_removed(tmp_path: Path) -> None:
    kept, other = Predictions(tmp_path), Predictions(tmp_path)
    found = kept.keep("key", b"weights")
    assert kept.find("key") == other.find("key") == kept.find("key") == found
    path = kept.blob(found.sha256)
    assert path is not None
    path.write_bytes(b"weightz")
    assert kept.find("key") is None and not path.exists()


def test_a_look_reads_nothing_again_that_another_process_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, other = Predictions(tmp_path), Predictions(tmp_path)
    found = kept.keep("key", b"weights")
    assert other.find("key") == found

    def read(path: Path) -> str:
        raise AssertionError(path)

    monkeypatch.setattr("serving.predictions.file_sha256", read)
    assert kept.find("key") == other.find("key") == kept.find("key") == found


def test_two_processes_keep_one_bound(tmp_path: Path) -> None:
    both = [Predictions(tmp_path, most_bytes=1000) for _ in range(2)]
    for number in range(60):
        for which, kept in enumerate(both):
            kept.keep(f"{which}-{number}", bytes([which, number]) * 20)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) <= 1100


def test_what_nobody_fetched_from_the_inbox_is_removed(tmp_path: Path) -> None:
    kept = Predictions(tmp_path)
    left, young = Path(kept.inbox()) / "left", Path(kept.inbox()) / "young"
    for file in (left, young):
        file.write_bytes(b"x")
    aged = left.stat().st_mtime - 2 * OWN_OLD_SECONDS
    os.utime(left, (aged, aged))
    kept.inbox()
    assert young.exists() and not left.exists()
