"""Garbage collection spares what an alias names or a run in progress needs, and finishes what it began."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from metainit.errors import RegistryError
from pipelines import collecting
from pipelines.collecting import collect
from pipelines.connection import DATABASE, EXPERIMENT, connect
from pipelines.discarding import DISCARDING, discard, finish
from pipelines.registry import Registry
from pipelines.version import Version
from tests.pipelines.conftest import MakeFolder


@pytest.fixture
def registry(home: Path, make_folder: MakeFolder) -> Registry:
    """Four versions of one name, the first of them champion."""
    made = Registry()
    for seed in (1, 2, 3, 4):
        made.register(make_folder(seed), "faces")
    made.promote("faces/1")
    return made


def numbers(versions: tuple[Version, ...]) -> list[int]:
    return [version.version for version in versions]


def checkpoints(home: Path) -> int:
    return len(list((home / "artifacts").rglob("checkpoint.safetensors")))


def test_what_an_alias_names_and_what_is_young_stays(registry: Registry, home: Path) -> None:
    young = collect(registry, delete=True)
    assert young.goes == () and all(
        "younger than 24 hours" in reason for v, reason in young.stays if v.version != 1
    )
    assert numbers(collect(registry, older_than=0).goes) == [3, 2], "nothing goes without being asked"
    assert len(registry.versions("faces")) == 4 and checkpoints(home) == 4
    found = collect(registry, delete=True, older_than=0)
    assert numbers(found.goes) == [3, 2]
    assert [(v.version, reason) for v, reason in found.stays] == [(1, "it is champion")]
    assert [v.version for v in registry.versions("faces")] == [4, 1] and checkpoints(home) == 2
    with pytest.raises(RegistryError, match="is champion"):
        registry.delete("faces/1")
    registry.delete("faces/4")
    assert [v.version for v in registry.versions("faces")] == [1]


def test_an_alias_that_moves_while_it_collects_is_seen(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody points an alias at a candidate after the list was made, and before its turn came."""
    find = Registry.find

    def late(self: Registry, name: str, number: int) -> Version | None:
        if number == 2:
            self.connection.client.set_registered_model_alias("faces", "mine", "2")
        return find(self, name, number)

    monkeypatch.setattr(Registry, "find", late)
    found = collect(registry, delete=True, older_than=0)
    assert numbers(found.goes) == [3] and (2, "it is mine") in [(v.version, r) for v, r in found.stays]


def test_two_collections_at_once_do_not_stop_each_other(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one takes the second candidate away after this one has made its list."""
    why = collecting.why

    def late(version: Version, *others: Any) -> str:
        if version.version == 3:
            discard(registry.connection, registry.resolve("faces/2"))
        return why(version, *others)

    monkeypatch.setattr(collecting, "why", late)
    assert numbers(collect(registry, delete=True, older_than=0).goes) == [3]
    assert [v.version for v in registry.versions("faces")] == [4, 1] and checkpoints(home) == 2


def test_what_a_run_in_progress_made_or_names_stays(registry: Registry, make_folder: MakeFolder) -> None:
    client = registry.connection.client
    run = client.create_run(registry.connection.experiment())
    mine = registry.register(make_folder(5), "faces", run.info.run_id)
    registry.register(make_folder(6), "faces")
    registry.register(make_folder(7), "ct")
    registry.register(make_folder(8), "ct")
    other = client.create_run(registry.connection.experiment())
    client.log_param(other.info.run_id, "prior", "models:/ct/1")
    found = collect(registry, older_than=0)
    reasons = {version.reference: reason for version, reason in found.stays}
    assert reasons[mine.reference] == f"its run {run.info.run_id} is in progress"
    assert reasons["ct/1"] == "a run in progress names ct/1"
    client.set_terminated(run.info.run_id)
    client.set_terminated(other.info.run_id)
    goes = {version.reference for version in collect(registry, older_than=0).goes}
    assert {mine.reference, "ct/1"} <= goes


def test_a_crash_in_the_middle_is_finished_by_the_next(
    registry: Registry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "delete_artifacts", crash)
        with pytest.raises(KeyboardInterrupt):
            collect(registry, delete=True, older_than=0)
    assert [v.version for v in registry.versions("faces")] == [4, 2, 1]
    assert checkpoints(home) == 4, "the artifacts of a version that is gone are still there"
    with monkeypatch.context() as patch:
        patch.setattr(type(registry.connection.client), "delete_model_version", crash)
        with pytest.raises(KeyboardInterrupt):
            collect(registry, delete=True, older_than=0)
    assert checkpoints(home) == 3, "which the next collection cleared before it crashed too"
    assert [v.version for v in registry.versions("faces")] == [4, 2, 1]
    collect(registry, delete=True, older_than=1000)
    assert [v.version for v in registry.versions("faces")] == [4, 2, 1], "what was begun is not done blindly"
    tags = registry.connection.client.get_registered_model("faces").tags
    assert not [key for key in tags if key.startswith(DISCARDING)]


def test_artifacts_that_another_version_shares_stay(home: Path, make_folder: MakeFolder) -> None:
    """Two processes that register the same checkpoint of one run at once make two versions of one place."""
    registry, connection = Registry(), connect()
    first = registry.register(make_folder(1), "faces")
    with connection.calls("make the same again") as client:
        source = client.get_model_version_download_uri("faces", "1")
        client.create_model_version("faces", source, run_id=first.run_id, tags=first.tags)
    registry.delete("faces/1")
    assert registry.download(registry.resolve("faces/2"), home / "out").is_dir()
    registry.delete("faces/2")
    assert checkpoints(home) == 0


def test_what_another_name_was_copied_from_stays(home: Path, make_folder: MakeFolder) -> None:
    """MLflow's own way to promote from one name to another makes a version that lies where the first does."""
    registry = Registry()
    registry.register(make_folder(1), "dev-faces")
    client = registry.connection.client
    registry.ensure("faces")
    registry.ensure("hands")
    client.copy_model_version("models:/dev-faces/1", "faces")
    client.copy_model_version("models:/dev-faces/1", "hands")
    registry.promote("faces/1")
    registry.register(make_folder(2), "dev-faces")
    assert [v.reference for v in collect(registry, delete=True, older_than=0).goes] == ["dev-faces/1"]
    assert registry.download(registry.resolve("faces"), home / "out").is_dir()
    registry.delete("hands/1")
    assert registry.download(registry.resolve("faces"), home / "again").is_dir()
    assert checkpoints(home) == 2
    registry.set_alias(registry.resolve("faces/1"), "x")
    for alias in ("x", "champion"):
        client.delete_registered_model_alias("faces", alias)
    registry.delete("faces/1")
    assert checkpoints(home) == 1, "and goes with the last of them"


def test_a_copy_whose_tags_are_damaged_still_has_its_files(home: Path, make_folder: MakeFolder) -> None:
    registry = Registry()
    registry.register(make_folder(1), "dev-faces")
    client = registry.connection.client
    registry.ensure("faces")
    client.copy_model_version("models:/dev-faces/1", "faces")
    client.delete_model_version_tag("faces", "1", "metainit.sha256")
    registry.delete("dev-faces/1")
    assert checkpoints(home) == 1


def test_an_address_with_a_quote_is_looked_for(
    empty_store: Path, tmp_path: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, left in (("o'brien", 0), ('o\'brien "the" db', 1)):
        folder = tmp_path / place
        folder.mkdir()
        shutil.copyfile(empty_store, folder / DATABASE)
        registry = Registry(f"sqlite:///{folder / DATABASE}")
        client = registry.connection.client
        client.create_experiment(EXPERIMENT, artifact_location=str(folder / "artifacts"))
        registry.register(make_folder(1), "faces")
        registry.delete("faces/1")
        assert checkpoints(folder) == left, "what cannot be asked for is not deleted"


def test_a_deletion_that_an_older_metainit_began_is_finished(registry: Registry, home: Path) -> None:
    client = registry.connection.client
    uri = client.get_model_version_download_uri("faces", "2")
    client.set_registered_model_tag("faces", DISCARDING + "2", uri)
    client.delete_model_version("faces", "2")
    assert finish(registry.connection, "faces") == [2]
    assert checkpoints(home) == 3
