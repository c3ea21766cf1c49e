"""Looks that read what has changed see the same as reading everything, and read little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines import following
from pipelines.following import Seen, look
from pipelines.registry import Registry
from tests.pipelines.conftest import MakeFolder


class Reads:
    """Which names' versions were searched for."""

    def __init__(self, search: Callable[..., Any]) -> None:
        self.search = search
        self.names: list[str] = []

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.names += arguments[:1]
        return self.search(*arguments, **options)


@pytest.fixture
def registry(home: object, make_folder: MakeFolder) -> Registry:
    made = Registry()
    for name in ("ct", "faces"):
        made.register(make_folder(1), name)
    made.promote("faces/1")
    return made


@pytest.fixture
def reads(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    client = registry.connection.client
    reads = Reads(client.search_model_versions)
    monkeypatch.setattr(client, "search_model_versions", reads)
    yield reads


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are never listed as a whole: what is found is found among the newest."""
    monkeypatch.setattr(following, "SHARE", 1e-9)


def agree(registry: Registry, seen: Seen) -> None:
    """What was seen is what reading everything gives."""
    fresh = look(registry)
    assert seen.names.keys() == fresh.names.keys()
    for name, known in fresh.names.items():
        mine = seen.names[name]
        assert (mine.aliases, mine.versions, mine.damaged) == (known.aliases, known.versions, known.damaged)


def test_nothing_changed_and_nothing_is_read(quick: None, registry: Registry, reads: Reads) -> None:
    seen = look(registry)
    assert {n: k.aliases for n, k in seen.names.items()} == {"ct": {}, "faces": {"champion": 1}}
    reads.names.clear()
    assert look(registry, seen).names is seen.names and reads.names == []


@pytest.mark.parametrize("whole", [200, 1])
def test_what_metainit_changes_is_found_among_the_newest(
    quick: None,
    registry: Registry,
    reads: Reads,
    make_folder: MakeFolder,
    monkeypatch: pytest.MonkeyPatch,
    whole: int,
) -> None:
    monkeypatch.setattr(following, "WHOLE", whole)
    seen = look(registry)

    def see() -> None:
        nonlocal seen
        before = seen
        reads.names.clear()
        seen = look(registry, seen)
        assert seen.names["ct"] is before.names["ct"]
        assert set(reads.names) == {"name = 'faces'"}
        agree(registry, seen)

    registry.register(make_folder(2), "faces")
    see()
    registry.promote("faces/2")
    see()
    registry.register(make_folder(3), "faces")
    registry.register(make_folder(4), "faces")
    see()
    registry.rollback("faces")
    see()
    registry.delete("faces/3")
    see()
    registry.register(make_folder(5), "hands")
    registry.promote("hands/1", "mine")
    seen = look(registry, seen)
    assert seen.names["hands"].aliases == {"mine": 1}
    agree(registry, seen)


def test_what_is_changed_in_mlflow_itself_is_found_by_a_listing(
    registry: Registry, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow does not move the time of the last change with an alias: if it does one day, `touch` can go."""
    registry.register(make_folder(2), "faces")
    client = registry.connection.client
    before = client.get_registered_model("faces").last_updated_timestamp
    seen = look(registry)
    client.set_registered_model_alias("faces", "champion", "2")
    client.set_registered_model_tag("faces", "a", "b")
    client.set_model_version_tag("faces", "2", "a", "b")
    assert client.get_registered_model("faces").last_updated_timestamp == before
    client.delete_registered_model("ct")
    with monkeypatch.context() as patch:
        patch.setattr(following, "SHARE", 1e9)  # always
        seen = look(registry, seen)
    assert seen.names["faces"].aliases == {"champion": 2} and "ct" not in seen.names


def test_a_name_that_a_listing_misses_does_not_vanish(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "SHARE", 1e9)
    seen = look(registry)
    models = following._models

    def missing(*arguments: Any) -> Any:
        return (model for model in models(*arguments) if model.name != "ct")

    monkeypatch.setattr(following, "_models", missing)
    assert look(registry, seen).names.keys() == {"ct", "faces"}


def test_a_version_that_lost_its_digest_is_named(
    registry: Registry, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(make_folder(2), "faces")
    seen = look(registry)
    for number in ("1", "2"):
        registry.connection.client.delete_model_version_tag("faces", number, "metainit.sha256")
    fresh = look(registry).names["faces"]
    assert 1 in [one.version for one in fresh.damaged], "which its champion means"
    monkeypatch.setattr(following, "FULL_SECONDS", 0.0)
    monkeypatch.setattr(following, "SHARE", 1e9)
    again = look(registry, seen).names["faces"]
    assert again.versions == () and [one.version for one in again.damaged] == [2, 1]
    assert "metainit.sha256" in again.damaged[0].reason
