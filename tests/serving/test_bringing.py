"""Bringing versions: by several processes, on a full disk, without the artifact store, behind a large one."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from metainit.references import Reference
from metainit.transfer import file_sha256
from serving.catalog import Missing
from serving.looking import Listed
from serving.store import NotReady, Store
from tests.serving.shelf import Shelf, Version

SHARER = """
import sys
from pathlib import Path
from metainit.references import Reference
from metainit.transfer import file_sha256
from serving.store import Store
from tests.serving.shelf import Shelf

shelf = Shelf(Path(sys.argv[1]))
for seed in range(12):
    shelf.add("faces", seed, elements=200_000)
store = Store(shelf, Path(sys.argv[2]))
store.look()
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 13):
    entry = store.get(Reference.parse(f"faces/{number}"))
    assert file_sha256(entry.blob) == entry.facts.sha256
    assert entry.evidence is not None and entry.pictures["steps.png"].is_file()
print(shelf.downloads, flush=True)
"""


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def running(store: Store) -> Iterator[Store]:
    store.start()
    try:
        yield store
    finally:
        store.stop()


def version(store: Store, text: str) -> int:
    return store.get(Reference.parse(text)).facts.version


@pytest.mark.timeout(120)
def test_processes_that_share_a_folder_bring_each_version_once(tmp_path: Path) -> None:
    folder, pipe = tmp_path / "store", subprocess.PIPE
    commands = [[sys.executable, "-c", SHARER, str(tmp_path / who), str(folder)] for who in "ab"]
    sharers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for command in commands]
    try:
        for sharer in sharers:
            assert sharer.stdout is not None and sharer.stdout.readline() == "ready\n"
        for sharer in sharers:
            assert sharer.stdin is not None
            sharer.stdin.write("go\n")
            sharer.stdin.flush()
        downloads = [int(sharer.communicate(timeout=60)[0]) for sharer in sharers]
    finally:
        for sharer in sharers:
            sharer.kill()
            sharer.wait()
    assert sum(downloads) == 12
    blobs = list((folder / "blobs").iterdir())
    assert len(blobs) == 12 and all(file_sha256(blob) == blob.stem for blob in blobs)
    assert list((folder / "incoming").iterdir()) == []


def test_a_holder_that_was_killed_holds_nobody_up(store: Store, shelf: Shelf, tmp_path: Path) -> None:
    facts = "from serving.cache import Cache\nfrom serving.catalog import Facts\n"
    holder = (
        f"{facts}from pathlib import Path\nimport sys\n"
        "with Cache(Path(sys.argv[1])).locked(Facts('faces', 1, 'a' * 64, 1, 'prior', 'm')):\n"
        "    print('held', flush=True)\n    sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path / "store")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        store.look()
        thread = threading.Thread(target=version, args=(store, "faces/1"))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive() and shelf.downloads == 0
        process.kill()
    thread.join(20)
    assert not thread.is_alive() and shelf.downloads == 1


def test_a_blob_that_another_process_took_away_is_brought_again(store: Store, shelf: Shelf) -> None:
    store.refresh()
    entry = store.at_hand(Reference.parse("faces"))
    assert entry is not None
    entry.blob.unlink()
    assert store.at_hand(Reference.parse("faces")) is None
    assert store.get(Reference.parse("faces")).blob.is_file()


@pytest.mark.parametrize("step", ["os.replace", "tempfile.TemporaryDirectory", "FileLock.acquire"])
def test_a_full_disk_at_any_write_is_not_ready_and_passes(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store.refresh()
    shelf.add("faces", 9, "champion")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"serving.cache.{step}", full)
        store.refresh()
        assert store.at_hand(Reference.parse("faces")) is not None, "the one before it is served"
        with pytest.raises(NotReady, match="free some space"):
            store.get(Reference.parse("faces/3"))
        assert not store.quarantined and not store.status.stale
    store.refresh()
    assert version(store, "faces") == 3


def test_without_the_artifact_store_the_rest_is_served_until_it_is_back(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Store(shelf, tmp_path / "store", poll=0.02)) as store:
        with monkeypatch.context() as patch:

            def gone(version: Version, folder: Path) -> Path:
                raise ConnectionError("the artifact store does not answer")

            patch.setattr(shelf, "download", gone)
            shelf.add("faces", 9, "champion")
            until(lambda: store.counts.refused > 1)
            assert version(store, "faces") == 1 and not store.status.stale
            with pytest.raises(NotReady, match="does not answer"):
                store.get(Reference.parse("faces/3"))
        until(lambda: version(store, "faces") == 3)


def test_a_large_version_holds_no_look_up(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download, go_on = shelf.download, threading.Event()
    with running(Store(shelf, tmp_path / "store", poll=0.02)) as store:

        def slow(version: Version, folder: Path) -> Path:
            if version.name == "ct":
                assert go_on.wait(30)
            return download(version, folder)

        monkeypatch.setattr(shelf, "download", slow)
        shelf.add("ct", 9, "champion")
        until(lambda: "ct/2" in {f.reference for f in store.catalog.inits["ct"].versions})
        try:
            shelf.point("faces", "champion", 2)
            until(lambda: version(store, "faces") == 2, seconds=5)
            assert version(store, "ct") == 1
        finally:
            go_on.set()
        until(lambda: version(store, "ct") == 2)


@dataclass(frozen=True)
class Broken:
    version: int
    reference: str
    reason: str = "metainit.size: not an integer"


def test_a_version_whose_tags_were_damaged_is_named_and_stays_as_it_was(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found: dict[str, Listed] = {}

    def look() -> Mapping[str, Any]:
        return dict(found)

    store = Store(shelf, tmp_path / "store", look=look)
    found["faces"] = Listed({"champion": 2}, tuple(shelf.versions("faces")))
    store.refresh()
    assert version(store, "faces") == 2
    one = next(v for v in shelf.versions("faces") if v.version == 1)
    found["faces"] = Listed({"champion": 2}, (one,), (Broken(2, "faces/2"),))
    with caplog.at_level(logging.ERROR):
        store.refresh()
        store.refresh()
    assert version(store, "faces") == 2 and store.quarantined == {"faces/2": Broken.reason}
    assert caplog.text.count("faces/2 is left out") == 1
    fresh = Store(shelf, tmp_path / "fresh", look=look)
    fresh.refresh()
    with pytest.raises(Missing):
        fresh.get(Reference.parse("faces"))
    assert version(fresh, "faces/1") == 1


def test_a_name_that_did_not_change_is_not_gathered_again(shelf: Shelf, tmp_path: Path) -> None:
    found = {
        "faces": Listed({}, tuple(shelf.versions("faces"))),
        "ct": Listed({}, tuple(shelf.versions("ct"))),
    }
    store = Store(shelf, tmp_path / "store", look=lambda: dict(found))
    store.refresh()
    before = store.catalog.inits
    found["ct"] = Listed({"champion": 1}, tuple(shelf.versions("ct")))
    store.refresh()
    assert store.catalog.inits["faces"] is before["faces"]
    assert store.catalog.inits["ct"].aliases == {"champion": 1}
