"""The registry on PostgreSQL: in this process, and behind a real MLflow server that keeps the artifacts.

`MLFLOW_TRACKING_URI` is all that differs from the embedded store.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from metainit.transfer import file_sha256
from pipelines.backup import back_up
from pipelines.collecting import collect
from pipelines.following import look
from pipelines.gate import Decision, admit
from pipelines.registry import Registry, load_source
from pipelines.restoring import restore
from tests.pipelines.conftest import MakeFolder, make_evidence
from tests.pipelines.postgres import mlflow_server, postgres

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with postgres() as address:
        yield address


def live(make_folder: MakeFolder, tmp_path: Path) -> Registry:
    """Register, follow, race, promote, roll back, download, back up, collect; return the registry."""
    registry = Registry()
    first = registry.register(make_folder(1, make_evidence(30, seed=1)), "faces")
    assert admit(registry, first).alias == "champion"
    seen = look(registry)
    racers = [registry.register(make_folder(s, make_evidence(31, seed=7)), "faces") for s in (2, 3)]
    start = Barrier(2)

    def race(number: int) -> Decision:
        own = Registry()  # as two processes would
        start.wait(60)
        return admit(own, racers[number])

    with ThreadPoolExecutor(2) as pool:
        decisions = list(pool.map(race, range(2)))
    assert sorted(decision.alias for decision in decisions) == ["challenger", "champion"]
    won = racers[[decision.alias for decision in decisions].index("champion")]
    assert registry.resolve("faces").reference == won.reference
    moved = look(registry, seen)
    assert moved.names["faces"].aliases["champion"] == won.version
    assert registry.rollback("faces").version == 1
    assert [event.action for event in registry.history("faces")][0] == "rollback"
    assert (
        load_source("models:/faces").read_bytes() == (make_folder(1) / "checkpoint.safetensors").read_bytes()
    )
    folder = registry.download(registry.resolve("faces/2"), tmp_path / "got")
    assert file_sha256(folder / "checkpoint.safetensors") == racers[0].sha256
    assert (folder / "pictures/curve.png").is_file()
    back_up(registry, ["faces"], tmp_path / "backup")
    assert restore(registry, tmp_path / "backup")[0].present == (1, 2, 3)
    registry.register(make_folder(4), "faces")
    registry.register(make_folder(5), "faces")
    assert [v.version for v in collect(registry, delete=True, older_than=0).goes] == [4]
    return registry


def test_in_this_process(
    database: str, home: Path, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    live(make_folder, tmp_path)
    assert list((home / "artifacts").rglob("checkpoint.safetensors"))


@pytest.mark.slow
def test_behind_a_server_with_its_artifacts_elsewhere(
    home: Path, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import httpx

    from serving.app import create_app
    from serving.late import LateRegistry
    from serving.looking import following
    from serving.store import Store
    from tests.serving.inprocess import InProcess

    elsewhere = tmp_path / "elsewhere"
    with postgres() as address, mlflow_server(address, elsewhere, tmp_path / "server.log") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        live(make_folder, tmp_path)
        assert list(elsewhere.rglob("checkpoint.safetensors"))
        assert not list(home.rglob("artifacts"))
        store = Store(LateRegistry(Registry), tmp_path / "store", poll=0.1, look=following(Registry))
        with InProcess(create_app(store)) as transport:
            with httpx.Client(transport=transport, base_url="http://endpoint") as http:
                shown = http.get("/v1/inits/faces").json()
                assert shown["version"] == 1 and "champion" in shown["aliases"]
                assert file_sha256(make_folder(1) / "checkpoint.safetensors") == shown["sha256"]
                weights = http.get("/v1/inits/faces@champion/weights")
                assert weights.content == (make_folder(1) / "checkpoint.safetensors").read_bytes()
