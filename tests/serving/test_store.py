"""The store follows aliases, survives the registry, and never serves what it has not verified."""

from __future__ import annotations

import errno
import hashlib
import threading
import time
from pathlib import Path

import pytest

from metainit.errors import CheckpointError
from metainit.references import Reference
from metainit.transfer import file_sha256
from serving.cache import Cache
from serving.catalog import Missing
from serving.store import NotReady, Store
from tests.serving.shelf import Shelf, Version


def version(store: Store, text: str) -> int:
    return store.get(Reference.parse(text)).facts.version


def test_what_an_alias_means_is_brought_before_it_is_asked_for(store: Store, shelf: Shelf) -> None:
    store.refresh()
    assert shelf.downloads == 3
    assert store.at_hand(Reference.parse("faces@challenger")) is not None
    assert version(store, "faces/1") == 1 and shelf.downloads == 3


def test_an_old_version_is_brought_when_it_is_asked_for(store: Store, shelf: Shelf) -> None:
    shelf.add("ct", 3)
    store.refresh()
    assert store.at_hand(Reference.parse("ct/1")) is None
    assert version(store, "ct/1") == 1


def test_an_alias_move_is_followed(store: Store, shelf: Shelf) -> None:
    store.refresh()
    shelf.point("faces", "champion", 2)
    store.refresh()
    assert version(store, "faces") == version(store, "faces@champion") == 2


def test_an_alias_move_is_followed_in_the_background(shelf: Shelf, tmp_path: Path) -> None:
    store = Store(shelf, tmp_path / "store", poll=0.05)
    store.start()
    try:
        shelf.point("faces", "champion", 2)
        deadline = time.monotonic() + 10
        while version(store, "faces") != 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert version(store, "faces") == 2
    finally:
        store.stop()


def test_the_registry_gone_keeps_serving(store: Store, shelf: Shelf, tmp_path: Path) -> None:
    shelf.add("ct", 3)
    store.refresh()
    shelf.gone = True
    store.refresh()
    assert store.status.stale and store.ready
    assert version(store, "faces") == 1
    with pytest.raises(NotReady, match="ct/1"):
        store.get(Reference.parse("ct/1"))
    restarted = Store(shelf, tmp_path / "store")
    restarted.refresh()
    assert restarted.ready and version(restarted, "faces") == 1
    shelf.gone = False
    restarted.refresh()
    assert not restarted.status.stale and version(restarted, "ct/1") == 1


def test_a_foreign_error_of_the_registry_is_an_outage(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.refresh()

    def names() -> list[str]:
        raise ConnectionResetError("gone")

    monkeypatch.setattr(shelf, "names", names)
    store.refresh()
    assert store.status.stale and "ConnectionResetError" in (store.status.error or "")


def test_a_damaged_version_is_quarantined_and_the_alias_stays(
    store: Store, shelf: Shelf, tmp_path: Path
) -> None:
    store.refresh()
    shelf.add("faces", 5)
    path = shelf.files["faces"][3]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    shelf.point("faces", "champion", 3)
    store.refresh()
    assert version(store, "faces") == 1
    with pytest.raises(CheckpointError, match="SHA-256"):
        store.get(Reference.parse("faces/3"))
    assert (tmp_path / "store/quarantine/faces-3.safetensors").read_bytes() == content
    assert "faces/3" in store.counts.quarantined
    before = shelf.downloads
    store.refresh()
    assert shelf.downloads == before, "a damaged version is not brought again at once"


def test_what_was_damaged_while_stopped_is_brought_again(store: Store, shelf: Shelf, tmp_path: Path) -> None:
    store.refresh()
    blob = store.get(Reference.parse("faces")).blob
    good = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    restarted = Store(shelf, tmp_path / "store")
    assert restarted.at_hand(Reference.parse("faces")) is None
    assert (tmp_path / "store/quarantine" / blob.name).is_file() and not blob.exists()
    restarted.refresh()
    assert version(restarted, "faces") == 1 and blob.read_bytes() == good


def test_what_was_damaged_while_it_is_served_is_brought_again(store: Store, shelf: Shelf) -> None:
    store.refresh()
    blob = store.get(Reference.parse("faces")).blob
    good = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert store.at_hand(Reference.parse("faces")) is None and store.blob_at_hand(blob.stem) is None
    assert store.get(Reference.parse("faces")).blob.read_bytes() == good
    assert store.blob_at_hand(blob.stem) == blob


def test_a_restart_reads_no_blob_that_is_as_it_was(
    store: Store, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.refresh()
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr("serving.cache.file_sha256", counted)
    restarted = Store(shelf, tmp_path / "store")
    assert restarted.at_hand(Reference.parse("faces")) is not None and read == []
    blob = store.get(Reference.parse("faces")).blob
    blob.touch()
    restarted = Store(shelf, tmp_path / "store")
    assert restarted.at_hand(Reference.parse("faces")) is not None and read == [blob]
    (tmp_path / "store/marks" / f"{blob.stem}.json").write_text("[1")
    assert Store(shelf, tmp_path / "store").at_hand(Reference.parse("faces")) is not None
    assert read == [blob, blob]


def test_a_blob_is_verified_before_it_is_served_under_its_checksum(
    store: Store, shelf: Shelf, tmp_path: Path
) -> None:
    store.refresh()
    blob = store.get(Reference.parse("faces/1")).blob
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    restarted = Store(shelf, tmp_path / "store")
    assert restarted.blob(blob.stem).read_bytes() == shelf.files["faces"][1].read_bytes()


def test_evidence_beyond_the_limits_is_left_out(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = shelf.files["faces"][1].with_name("evidence.json")
    beside.write_text('{"a": ' + 100 * "[" + 100 * "]" + "}")
    store.refresh()
    assert store.get(Reference.parse("faces/1")).evidence is None
    assert store.get(Reference.parse("faces/2")).evidence is not None


def test_wrong_content_under_a_right_checksum_is_refused(store: Store, shelf: Shelf) -> None:
    shelf.add("junk", 6)
    path = shelf.files["junk"][1]
    path.write_bytes(b"not a checkpoint")
    shelf.digests[path] = hashlib.sha256(b"not a checkpoint").hexdigest()
    store.refresh()
    with pytest.raises(CheckpointError):
        store.get(Reference.parse("junk"))


def test_a_damaged_version_is_tried_again_later(shelf: Shelf, tmp_path: Path) -> None:
    store = Store(shelf, tmp_path / "store", retry=0.0)
    path = shelf.files["ct"][1]
    good = path.read_bytes()
    path.write_bytes(good[:-1] + b"\0")
    store.refresh()
    with pytest.raises(CheckpointError):
        store.get(Reference.parse("ct"))
    path.write_bytes(good)
    store.refresh()
    assert version(store, "ct") == 1 and not store.counts.quarantined


def test_a_full_disk_loses_nothing(store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    store.refresh()
    shelf.point("faces", "champion", 2)
    shelf.add("ct", 3)

    def download(version: Version, folder: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shelf, "download", download)
    store.refresh()
    assert version(store, "faces") == 2, "this one was at hand"
    assert version(store, "ct") == 1, "the new one could not be stored, so the old one stays"
    with pytest.raises(NotReady, match="free some space"):
        store.get(Reference.parse("ct/2"))
    assert not store.quarantined
    monkeypatch.undo()
    assert version(store, "ct/2") == 2, "as soon as there is room again"


def test_what_would_fill_the_disk_is_not_brought(store: Store, shelf: Shelf) -> None:
    store.refresh()
    shelf.add("ct", 3)
    store.look()
    free = store.free_bytes()
    assert free is not None
    store.keep_free(2 * free)
    before = shelf.downloads
    with pytest.raises(NotReady, match="least_free_bytes.*free some space"):
        store.get(Reference.parse("ct/2"))
    assert shelf.downloads == before and not store.quarantined
    assert version(store, "ct/1") == 1, "what is at hand is served"
    store.keep_free(0)
    assert version(store, "ct/2") == 2


def blobs(store: Store) -> set[str]:
    return {path.stem for path in (store.folder / "blobs").iterdir()}


def test_versions_that_no_alias_means_make_room(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [shelf.add("big", seed, elements=2500) for seed in range(5)]
    shelf.point("big", "champion", 5)
    store = Store(shelf, tmp_path / "store")
    store.refresh()
    capacity = 3.5 * shelf.files["big"][1].stat().st_size + sum(
        path.stat().st_size for path in (store.folder / "blobs").iterdir()
    )

    def free_bytes(cache: Cache) -> int:
        used = sum(path.stat().st_size for path in (cache.folder / "blobs").iterdir())
        return int(capacity - used)

    monkeypatch.setattr(Cache, "free_bytes", free_bytes)
    for number in (1, 2, 3):
        assert version(store, f"big/{number}") == number
        time.sleep(0.02)
    before = blobs(store)
    content = shelf.files["big"][1].read_bytes()
    with store.get(Reference.parse("big/1")).blob.open("rb") as transfer:
        assert version(store, "big/4") == 4
        assert before - blobs(store) == {digests[0]}, "the longest unread, and no more than has to"
        assert not (store.folder / "versions" / "big" / "1").exists()
        assert transfer.read() == content, "a transfer under way is not cut"
    assert version(store, "big/5") == 5 and version(store, "faces") == 1, "what aliases mean stays"
    assert version(store, "big/1") == 1, "it comes again when it is asked for"
    assert store.get(Reference.parse("big/1")).blob.read_bytes() == content


def test_nothing_goes_where_that_makes_too_little_room(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.refresh()
    shelf.add("ct", 3, "champion")
    version(store, "ct/1")
    before = blobs(store)
    monkeypatch.setattr(Cache, "free_bytes", lambda cache: 0)
    store.keep_free(1 << 20)
    store.refresh()
    assert blobs(store) == before and version(store, "ct") == 1


def test_a_new_name_is_found_without_waiting_for_the_next_look(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.refresh()
    shelf.add("new", 7)
    with pytest.raises(Missing):
        store.get(Reference.parse("new"))  # asked within a second of the last look
    later = time.monotonic() + 2
    monkeypatch.setattr("serving.store.time.monotonic", lambda: later)
    assert version(store, "new") == 1


def test_an_unknown_name_does_not_wait_for_a_long_pull(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.store.GET_PATIENCE", 0.05)
    under_way, go_on = threading.Event(), threading.Event()
    names = shelf.names

    def slow() -> list[str]:
        under_way.set()
        assert go_on.wait(30)
        return names()

    monkeypatch.setattr(shelf, "names", slow)
    look = threading.Thread(target=store.refresh)
    look.start()
    try:
        assert under_way.wait(30)
        with pytest.raises(Missing):
            store.get(Reference.parse("nobody"))
    finally:
        go_on.set()
        look.join()


def test_a_blob_that_is_not_at_hand_is_brought(store: Store, shelf: Shelf) -> None:
    shelf.add("ct", 3)
    store.refresh()
    digest = shelf.digests[shelf.files["ct"][1]]
    assert store.blob(digest).read_bytes() == shelf.files["ct"][1].read_bytes()
    with pytest.raises(Missing):
        store.blob("0" * 64)


def test_many_threads_bring_a_version_once(store: Store, shelf: Shelf) -> None:
    shelf.add("ct", 3)
    store.refresh()
    before = shelf.downloads
    threads = [threading.Thread(target=store.get, args=(Reference.parse("ct/1"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert shelf.downloads == before + 1


def test_a_broken_index_is_no_obstacle(store: Store, shelf: Shelf, tmp_path: Path) -> None:
    store.refresh()
    (tmp_path / "store/catalog.json").write_text("{")
    restarted = Store(shelf, tmp_path / "store")
    restarted.refresh()
    before = shelf.downloads
    assert version(restarted, "faces") == 1 and shelf.downloads == before
