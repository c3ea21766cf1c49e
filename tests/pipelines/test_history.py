"""The history of a name: every move with who, when, why and on what evidence, and what the gate refused."""

from __future__ import annotations

import json
import time

import pytest
import typer
from typer.testing import CliRunner

from pipelines import history
from pipelines.collecting import collect
from pipelines.gate import admit
from pipelines.history import Event, digest
from pipelines.registry import Registry
from pipelines.registry_commands import show
from tests.pipelines.conftest import MakeFolder, make_evidence


def test_moves_and_refusals_are_told_newest_first(
    home: object, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    registry, before = Registry(), time.time()
    for seed, level in ((1, 30), (2, 31), (3, 29)):
        admit(registry, registry.register(make_folder(seed, make_evidence(level, seed=seed)), "faces"))
    registry.promote("faces/3", reason="the customer asked for it")
    registry.rollback("faces")
    events = registry.history("faces")
    assert [(e.action, e.alias, e.before, e.version) for e in events] == [
        ("rollback", "champion", 3, 2),
        ("promote", "champion", 2, 3),
        ("gate", "challenger", None, 3),
        ("gate", "champion", 1, 2),
        ("gate", "champion", None, 1),
    ]
    assert all(e.by.startswith("ada@") and before <= e.at <= time.time() for e in events)
    assert events[1].reason == "the customer asked for it"
    assert events[2].reason.startswith("not surely better") and events[2].against == "faces/2"
    assert events[3].evidence == digest(registry.evidence(registry.resolve("faces/2")))
    assert events[3].headline == registry.resolve("faces/2").headline
    collect(registry, delete=True, older_than=0, keep=0)
    assert [e.version for e in registry.history("faces")] == [e.version for e in events]
    app = typer.Typer()
    app.command()(show)
    printed = json.loads(CliRunner().invoke(app, ["faces", "--history", "--json"]).output)
    assert [one["reason"] for one in printed] == [e.reason for e in events]
    table = CliRunner(env={"COLUMNS": "250"}).invoke(app, ["faces@champion", "--history"]).output
    assert "the customer asked for it" in table and "2 -> 3" in table


def test_a_name_keeps_so_many_moves_and_a_damaged_one_is_left_out(
    home: object, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.registry.KEPT_EVENTS", 3)
    registry = Registry()
    registry.register(make_folder(1), "faces")
    for number in range(4):
        event = Event(at=number, by="me", action="promote", alias="champion", version=1, reason="r" * 9000)
        registry.record("faces", event)
    assert [e.at for e in registry.history("faces")] == [3, 2, 1]
    client = registry.connection.client
    client.set_registered_model_tag("faces", history.PREFIX + "0000000009999.x", "{")
    assert [e.at for e in registry.history("faces")] == [3, 2, 1]


def test_an_event_fits_into_a_tag_of_any_database() -> None:
    event = Event(at=1, by="me", action="gate", alias="champion", version=1, reason="x" * 9999)
    huge = event.model_copy(update={"headline": {"text": "y" * 9999}})
    for one in (event, huge):
        key, value = one.tag()
        assert len(value) < 5000 and len(key) < 250
        assert Event.model_validate_json(value).version == 1
