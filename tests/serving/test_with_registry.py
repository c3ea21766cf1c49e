"""The store over the project's own registry."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest

from metainit.errors import CheckpointError
from metainit.references import Reference
from pipelines.registry import Registry
from serving.app import create_app
from serving.late import LateRegistry
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.shelf import PNG, Shelf

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and SQLAlchemy bring their own


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path / "made")
    shelf.add("faces", 0)
    shelf.add("faces", 1)
    return shelf


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Registry:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(empty_store, home / empty_store.name)
    monkeypatch.setenv("METAINIT_HOME", str(home))
    return Registry(f"sqlite:///{home / empty_store.name}")


def test_versions_and_aliases_arrive(registry: Registry, shelf: Shelf, tmp_path: Path) -> None:
    first = registry.register(shelf.files["faces"][1].parent, "faces")
    registry.register(shelf.files["faces"][2].parent, "faces")
    registry.set_alias(first, "champion")
    store = Store(LateRegistry(lambda: registry), tmp_path / "store", poll=3600.0)
    with InProcess(create_app(store)) as transport:
        with httpx.Client(transport=transport, base_url="http://endpoint") as http:
            shown = http.get("/v1/inits/faces").json()
            assert shown["version"] == 1 and shown["aliases"] == ["champion"]
            assert shown["evidence"] == {"metric": "psnr", "steps": [0, 2]}
            assert shown["recipe"] == "name: faces\n"
            assert http.get(shown["pictures"][0]["url"]).content == PNG
            content = http.get("/v1/inits/faces/versions/2/weights").content
    assert content == shelf.files["faces"][2].read_bytes()


def test_a_damaged_artifact_is_quarantined(registry: Registry, shelf: Shelf, tmp_path: Path) -> None:
    registry.register(shelf.files["faces"][1].parent, "faces")
    stored = [path for path in tmp_path.rglob("checkpoint.safetensors") if "made" not in path.parts]
    assert len(stored) == 1
    content = bytearray(stored[0].read_bytes())
    content[-1] ^= 1
    stored[0].chmod(0o644)
    stored[0].write_bytes(content)
    store = Store(registry, tmp_path / "store")
    store.refresh()
    with pytest.raises(CheckpointError):
        store.get(Reference.parse("faces"))
    assert list((tmp_path / "store/quarantine").iterdir())


def test_an_outage_at_start_up_is_an_outage_only(shelf: Shelf, tmp_path: Path) -> None:
    reachable = False

    def opened() -> Shelf:
        if not reachable:
            raise ConnectionError("no answer")
        return shelf

    store = Store(LateRegistry(opened), tmp_path / "store")
    store.refresh()
    assert not store.ready and "no answer" in (store.status.error or "")
    reachable = True
    store.refresh()
    assert store.get(Reference.parse("faces")).facts.version == 2
