"""Settings from a file, the environment and options; what is unknown or not valid is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from typer import Typer
from typer.testing import CliRunner

from metainit.errors import RecipeError
from serving import commands
from serving.generation import GenerationLimits
from serving.settings import COMMAND_OPTIONS, EndpointSettings, assignments, load_settings


def test_options_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("queue: 1\nin_flight: 1\nbody_bytes: 1\nrates: {read: 600/minute}\n")
    environment = {"METAINIT_SERVE_IN_FLIGHT": "2", "METAINIT_SERVE_BODY_BYTES": "2", "OTHER": "x"}
    environment["METAINIT_SERVE_CORS_ORIGINS"] = "[https://lab.example]"
    environment["METAINIT_SERVE_PORT"] = "8001"  # the command's own
    settings = load_settings(file, {"body_bytes": 3, "keys": None}, environment)
    assert (settings.queue, settings.in_flight, settings.body_bytes) == (1, 2, 3)
    assert settings.cors_origins == ("https://lab.example",) and settings.rates == {"read": "600/minute"}


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        EndpointSettings().queue = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"quue": 1}, "did you mean 'queue'"),
        ({"queue": 0}, "queue"),
        ({"rates": {"read": "many"}}, "'many' is no rate"),
        ({"rates": {"read": "0/minute"}}, "lets nothing through"),
        ({"rates": {"write": "1/minute"}}, "rates.write"),
        ({"failures": "x"}, "is no rate"),
        ({"base_path": "team"}, "base_path"),
        ({"base_path": "/team/"}, "base_path"),
        ({"trusted_proxies": ["10.0.0.0/99"]}, "trusted_proxies"),
        ({"cors_origins": ["lab.example"]}, "cors_origins"),
        ({"certificate": "c.pem"}, "belong together"),
        ({"traces": "collector"}, "traces"),
    ],
)
def test_what_is_not_valid_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=text):
        load_settings(options=options, environment={})


@pytest.mark.parametrize("content", ["[1]", "quue: 1", "a: [", "text"])
def test_a_file_that_is_no_settings_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError, match=r"serve\.yaml"):
        load_settings(file, environment={})
    with pytest.raises(RecipeError, match="No such file"):
        load_settings(tmp_path / "none", environment={})
    with pytest.raises(RecipeError, match="METAINIT_SERVE_QUUE.*did you mean"):
        load_settings(environment={"METAINIT_SERVE_QUUE": "1"})
    with pytest.raises(RecipeError, match="name=value"):
        assignments(["queue"])


@pytest.mark.parametrize(
    "name",
    [
        "SVC_SERVICE_HOST",
        "SVC_SERVICE_PORT",
        "SVC_SERVICE_PORT_SERVE",
        "SVC_PORT",
        "SVC_PORT_8000_TCP",
        "SVC_PORT_8000_TCP_ADDR",
        "SVC_PORT_8000_TCP_PROTO",
    ],
)
def test_what_kubernetes_says_of_a_service_is_no_setting(name: str) -> None:
    environment = {f"METAINIT_SERVE_{name}": "tcp://10.0.0.7:8000", "METAINIT_SERVE_QUEUE": "7"}
    assert load_settings(environment=environment).queue == 7


def test_paths_hold_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert EndpointSettings(keys=Path("keys.json")).keys == tmp_path / "keys.json"


def test_replicas_share_a_rate() -> None:
    settings = EndpointSettings(rates={"read": "100/minute"}, replicas=3)
    item = settings.rate("read")
    assert item is not None and item.amount == 34 and item.get_expiry() == 60
    assert settings.rate("predict") is None and settings.failure_rate.amount == 7


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--host", "0.0.0.0"], "metainit keys make"),
        (["--host", "0.0.0.0", "--keys", "none.json"], "no keys at"),
        (["--set", "quue=1"], "did you mean"),
        (["--config", "none.yaml"], "none.yaml"),
    ],
)
def test_the_command_refuses_before_anything_starts(words: list[str], text: str) -> None:
    app = Typer()
    app.command()(commands.serve)
    result = CliRunner().invoke(app, ["--port", "18999", *words])
    assert result.exit_code in (1, 2)
    assert text in " ".join(result.output.replace("│", " ").split())


def test_the_guide_names_every_setting() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    rows = "\n".join(line for line in guide.splitlines() if line.startswith("|"))
    assert [name for name in EndpointSettings.model_fields if f"`{name}`" not in rows] == []


def test_the_guide_tells_the_defaults_and_what_the_command_reads_by_itself() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", guide, re.MULTILINE))
    assert {"in_flight", "queue", "drain_seconds", "replicas"} <= set(told)
    for name, value in told.items():
        assert float(value) == getattr(EndpointSettings(), name), name
    assert [name for name in COMMAND_OPTIONS if f"`{name.upper()}`" not in guide] == []
    assert f"generated it is {GenerationLimits().waiting} |" in guide
