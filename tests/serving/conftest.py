"""A registry with two names, a store over it, and the app in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving.app import create_app
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path / "registry")
    shelf.add("faces", 0, "champion")
    shelf.add("faces", 1, "challenger")
    shelf.add("ct", 2)
    return shelf


@pytest.fixture
def store(shelf: Shelf, tmp_path: Path) -> Store:
    return Store(shelf, tmp_path / "store", poll=3600.0)


@pytest.fixture
def transport(store: Store) -> Iterator[InProcess]:
    with InProcess(create_app(store)) as transport:
        yield transport


@pytest.fixture
def http(transport: InProcess) -> Iterator[httpx.Client]:
    with httpx.Client(transport=transport, base_url="http://endpoint") as client:
        yield client
