"""What has to be brought holds nothing else up, and is brought once for all who ask."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.fetching import THREADS
from serving.store import Store
from tests.serving.shelf import Shelf, Version

ASKED = 60


@pytest.fixture
def gate(shelf: Shelf, http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Downloads wait until it is set."""
    opened = threading.Event()
    download = shelf.download

    def slow(version: Version, folder: Path) -> Path:
        assert opened.wait(8)
        return download(version, folder)

    monkeypatch.setattr(shelf, "download", slow)
    yield opened
    opened.set()


def test_slow_versions_hold_up_nothing_else(
    store: Store, shelf: Shelf, http: httpx.Client, gate: threading.Event
) -> None:
    for seed in range(THREADS + 4):
        shelf.add("old", seed)
    digest = http.get("/v1/inits/ct").json()["sha256"]
    begun = shelf.downloads
    store.look()
    with ThreadPoolExecutor(ASKED + THREADS) as pool:
        asked = [pool.submit(http.get, "/v1/inits/old/versions/1/weights") for _ in range(ASKED)]
        others = [pool.submit(http.get, f"/v1/inits/old/versions/{n}") for n in range(2, THREADS + 3)]
        derived = http.get("/v1/inits/ct/weights", params={"dtype": "bfloat16"}, timeout=20)
        assert derived.status_code == 200
        assert http.get(derived.headers["content-location"]).status_code == 200
        assert http.get(f"/v1/blobs/{digest}").status_code == 200
        assert http.get("/v1/inits/nothing").status_code == 404
        assert not any(one.done() for one in (*asked, *others))
        gate.set()
        assert {one.result().status_code for one in (*asked, *others)} == {200}
    assert shelf.downloads - begun <= THREADS + 4, "each was brought once"
