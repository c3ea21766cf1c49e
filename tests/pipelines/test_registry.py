"""The registry against a real embedded store: versions, aliases, artifacts, the lock, and bad luck."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metainit import checkpoint
from metainit.errors import CheckpointError, RegistryError, SourceError
from metainit.transfer import file_sha256
from pipelines.artifacts import QUARANTINE
from pipelines.connection import connect, quiet, store_uri
from pipelines.flavour import LoadedInitialization, _load_pyfunc
from pipelines.lock import PREFIX, Lease, _bury, locked
from pipelines.registry import Registry, cached, load_source
from tests.pipelines.conftest import MakeFolder, make_evidence


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry()


def test_a_version_says_what_it_is_without_its_artifacts(registry: Registry, make_folder: MakeFolder) -> None:
    folder = make_folder(1, make_evidence(30))
    made = registry.register(folder, "faces")
    assert registry.names() == ["faces"]
    (version,) = registry.versions("faces")
    assert version == made
    file = folder / "checkpoint.safetensors"
    assert (version.sha256, version.size) == (file_sha256(file), file.stat().st_size)
    assert (version.kind, version.method, version.network) == ("prior", "reptile", "siren")
    assert version.headline == make_evidence(30)["headline"]
    assert version.tags["metainit.data_fingerprint"] == "photos-1"
    assert version.tags["metainit.card"] == checkpoint.load(file).card.digest
    assert version.run_id is not None and version.aliases == ()
    assert abs(version.created - time.time()) < 60


def test_references(registry: Registry, make_folder: MakeFolder) -> None:
    for seed in (1, 2, 3):
        registry.register(make_folder(seed), "faces")
    assert registry.resolve("faces").version == 3  # no champion yet: the newest
    registry.promote("faces/2")
    assert registry.resolve("faces").version == 2
    assert registry.resolve("models:/faces@champion").version == 2
    assert registry.resolve("faces/1").version == 1
    assert [v.version for v in registry.versions("faces")] == [3, 2, 1]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("face", "did you mean 'faces'?"),
        ("faces@best", "its aliases are: champion"),
        ("faces/9", "its versions are: 1"),
        ("faces@a/b", "write name, name@alias or name/version"),
        ("metainit.lock.faces", "not registered"),
    ],
)
def test_a_reference_that_is_wrong_names_the_way_out(
    registry: Registry, make_folder: MakeFolder, reference: str, says: str
) -> None:
    registry.promote(registry.register(make_folder(1), "faces").reference)
    with pytest.raises(RegistryError, match=says.replace("?", r"\?")):
        registry.resolve(reference)


def test_aliases_are_told_when_there_are_none(registry: Registry, make_folder: MakeFolder) -> None:
    registry.register(make_folder(1), "faces")
    with pytest.raises(RegistryError, match="it has no alias yet"):
        registry.resolve("faces@champion")
    with pytest.raises(RegistryError, match="no previous champion"):
        registry.rollback("faces")


def test_promotion_and_rollback(registry: Registry, make_folder: MakeFolder) -> None:
    for seed in (1, 2):
        registry.register(make_folder(seed), "faces")
    registry.promote("faces/1")
    registry.promote("faces/2", "challenger")
    registry.promote("faces/2")
    assert registry.aliases("faces") == {"champion": 2, "previous": 1}  # no longer challenger
    assert registry.rollback("faces").version == 1
    assert registry.aliases("faces") == {"champion": 1, "previous": 2}
    registry.rollback("faces")
    assert registry.aliases("faces") == {"champion": 2, "previous": 1}


def test_a_resumed_run_registers_once(registry: Registry, make_folder: MakeFolder) -> None:
    first = registry.register(make_folder(1), "faces")
    again = registry.register(make_folder(1), "faces", run_id=first.run_id)
    assert again == first
    other = registry.register(make_folder(2), "faces", run_id=first.run_id)
    assert (other.version, other.run_id) == (2, first.run_id)


def test_the_whole_folder_comes_back(registry: Registry, make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder(1, make_evidence(30))
    version = registry.register(folder, "faces")
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    out = registry.download(version, tmp_path / "out")
    after = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    mlmodel = json.loads(after.pop(Path("MLmodel")))
    assert after == before
    assert mlmodel["flavors"]["python_function"]["loader_module"] == "pipelines.flavour"
    assert registry.evidence(version) == make_evidence(30)
    assert registry.evidence(registry.register(make_folder(2), "faces")) is None


def _artifact(home: Path) -> Path:
    (file,) = (home / "artifacts").rglob("checkpoint.safetensors")
    return file


def test_damage_in_the_store_is_noticed_and_put_aside(
    registry: Registry, make_folder: MakeFolder, home: Path, tmp_path: Path
) -> None:
    version = registry.register(make_folder(1), "faces")
    with _artifact(home).open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    out = tmp_path / "out"
    with pytest.raises(RegistryError, match="damaged.*roll back"):
        registry.download(version, out)
    assert [p.name for p in out.iterdir()] == [QUARANTINE]
    _artifact(home).unlink()
    with pytest.raises(RegistryError, match="has no checkpoint"):
        registry.download(version, out)


def test_sources_are_cached_by_digest(registry: Registry, make_folder: MakeFolder, home: Path) -> None:
    folder = make_folder(1, make_evidence(30))
    version = registry.register(folder, "faces")
    path = load_source("models:/faces")
    assert path.read_bytes() == (folder / "checkpoint.safetensors").read_bytes()
    assert (path.parent / "evidence.json").is_file()
    shutil.rmtree(home / "artifacts")
    assert load_source(f"models:/faces/{version.version}") == path  # not fetched again
    path.write_bytes(b"damaged")
    with pytest.raises(RegistryError):  # a damaged cache is never trusted
        cached(registry, version)
    with pytest.raises(SourceError, match="models:/"):
        load_source("faces")


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "../a", "metainit.lock.a", "x" * 201])
def test_names_that_cannot_be_are_refused(registry: Registry, make_folder: MakeFolder, name: str) -> None:
    with pytest.raises(RegistryError, match="cannot be a registered name"):
        registry.register(make_folder(1), name)


def test_a_damaged_checkpoint_is_never_registered(registry: Registry, make_folder: MakeFolder) -> None:
    folder = make_folder(1)
    (folder / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError):
        registry.register(folder, "faces")
    assert registry.names() == []


def test_models_of_others_are_left_alone(registry: Registry, make_folder: MakeFolder) -> None:
    registry.connection.client.create_registered_model("someone-elses")
    registry.register(make_folder(1), "faces")
    assert registry.names() == ["faces"]


def test_the_flavour_gives_the_tensors(make_folder: MakeFolder) -> None:
    model = _load_pyfunc(str(make_folder(1) / "checkpoint.safetensors"))
    assert isinstance(model, LoadedInitialization)
    assert set(model.predict()) == {"w", "b"} == set(model.predict([]))
    assert model.predict(["w"])["w"].shape == (4, 4) and model.card.name == "faces"
    assert list(model.predict("b")) == ["b"]
    with pytest.raises(CheckpointError, match="no tensor 'bb'; did you mean 'b'"):
        model.predict(["bb"])


def test_the_lock_keeps_others_out_and_is_given_back(registry: Registry) -> None:
    with locked(registry.connection, "faces"):
        with pytest.raises(RegistryError, match="is held by"):
            with locked(registry.connection, "faces", timeout=0.2):
                raise AssertionError("two holders")
        with locked(registry.connection, "others"):
            pass
    with locked(registry.connection, "faces", timeout=0.2):
        pass
    assert registry.names() == []


def test_the_lock_of_a_dead_holder_is_taken_over_once(registry: Registry) -> None:
    client = registry.connection.client
    claim = json.dumps({"token": "dead", "owner": "gone:1", "lease": 0.3})
    client.create_registered_model(PREFIX + "faces", description=claim)
    inside: list[float] = []

    def work() -> None:
        with locked(registry.connection, "faces", lease=5):
            inside.append(time.monotonic())
            time.sleep(0.2)
            inside.append(time.monotonic())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inside) == 4
    assert inside == sorted(inside)  # one after the other, never both at once
    client.create_registered_model(PREFIX + "faces", description=claim.replace("dead", "alive"))
    assert not _bury(registry.connection, "faces", "dead")  # a late taker cannot take a new lease


def test_of_two_that_bury_a_lease_at_once_one_succeeds(registry: Registry) -> None:
    client = registry.connection.client
    with ThreadPoolExecutor(2) as pool:
        for token in map(str, range(25)):
            claim = json.dumps({"token": token, "owner": "gone:1", "lease": 0.3})
            client.create_registered_model(PREFIX + "faces", description=claim)
            ready = threading.Barrier(2)

            def bury(token: str = token, ready: threading.Barrier = ready) -> bool:
                ready.wait()
                return _bury(registry.connection, "faces", token)

            assert sorted(f.result() for f in [pool.submit(bury), pool.submit(bury)]) == [False, True]


def test_a_lease_that_ran_out_stops_the_work() -> None:
    Lease("faces", "token", time.monotonic() + 60).check()
    with pytest.raises(RegistryError, match="ran out"):
        Lease("faces", "token", time.monotonic() - 1).check()


def test_a_server_that_is_not_there_is_named_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(RegistryError, match="127.0.0.1:9 cannot be reached.*MLFLOW_TRACKING_URI"):
        Registry()
    assert time.monotonic() - began < 10


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RegistryError, match="cannot open the registry"):
        Registry(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_file_that_is_no_database_is_named_quickly(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    began = time.monotonic()
    with pytest.raises(RegistryError, match="not a database.*mlflow.db"):
        Registry(f"sqlite:///{tmp_path}/mlflow.db")
    assert time.monotonic() - began < 10


def test_a_full_disk_loses_nothing(
    registry: Registry, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = registry.register(make_folder(1), "faces")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        patch.setattr(shutil, "copy2", full)
        with pytest.raises(RegistryError, match="disk is full; free some space"):
            registry.register(make_folder(2), "faces")
    assert registry.versions("faces") == [version]
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(RegistryError, match="disk is full"):
            registry.download(version, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert registry.download(version, tmp_path / "out").is_dir()


def test_the_store_is_found_where_it_should_be(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store_uri() == f"sqlite:///{home}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    assert store_uri() == "http://elsewhere"
    assert store_uri("sqlite:///x.db") == "sqlite:///x.db"


def test_quiet_leaves_no_trace(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    before = dict(os.environ)
    level = logging.getLogger("mlflow").level
    with quiet(), quiet():
        assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7"
        assert logging.getLogger("mlflow").level == logging.WARNING
    assert dict(os.environ) == before
    assert logging.getLogger("mlflow").level == level
