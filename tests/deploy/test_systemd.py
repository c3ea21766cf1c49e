"""The units: what systemd itself says of them, and that their commands exist."""

from __future__ import annotations

import configparser
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from serving.commands import serve
from serving.deployments import STOP_SECONDS
from serving.settings import EndpointSettings

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
INSTALLED = "/opt/metainit/bin"
WORST_EXPOSURE = 3.0
"""Added up over what `systemd-analyze security` looks at; a service without settings has more than 10."""
by_unit = pytest.mark.parametrize("unit", UNITS, ids=[unit.stem for unit in UNITS])
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")


class Unit(configparser.RawConfigParser):
    """Reads what is said once in a unit; of a key that stands there twice, the last value."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read_string(path.read_text().replace("\\\n", " "))

    @property
    def command(self) -> list[str]:
        return shlex.split(self["Service"]["ExecStart"])


@needs_systemd
@by_unit
def test_systemd_has_nothing_to_say(unit: Path, tmp_path: Path) -> None:
    for other in UNITS:
        text = other.read_text().replace(f"{INSTALLED}/", f"{Path(sys.executable).parent}/")
        (tmp_path / other.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "metainit" in line]
    assert ours == [] and done.returncode == 0


@needs_systemd
def test_systemd_does_have_something_to_say_of_a_wrong_unit(tmp_path: Path) -> None:
    (tmp_path / "metainit-wrong.service").write_text("[Service]\nExecStart=/bin/true\nProtektSystem=strict\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "metainit-wrong.service")],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "ProtektSystem" in done.stderr


@needs_systemd
@by_unit
def test_little_of_the_machine_is_exposed(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--json=short", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    exposure = [float(line["exposure"] or 0) for line in json.loads(done.stdout)]
    assert sum(exposure) <= WORST_EXPOSURE


def test_the_endpoints_command_takes_its_options() -> None:
    program, name, *words = command_of("metainit-endpoint")
    assert (program, name) == (f"{INSTALLED}/metainit", "serve")
    only = typer.Typer()
    only.command()(serve)
    typer.main.get_command(only).make_context("serve", words)


@pytest.mark.slow
def test_the_registrys_command_takes_its_options_and_its_store_from_the_environment() -> None:
    from mlflow.cli import cli

    program, name, *words = command_of("metainit-mlflow")
    assert (program, name) == (f"{INSTALLED}/mlflow", "server")
    server = cli.commands[name]
    server.make_context(name, words)
    variables = {option.name: option.envvar for option in server.params}
    assert variables["backend_store_uri"] == "MLFLOW_BACKEND_STORE_URI"


def command_of(unit: str) -> list[str]:
    (found,) = [path for path in UNITS if path.stem == unit]
    return Unit(found).command


@by_unit
def test_what_is_written_lies_in_folders_that_systemd_makes(unit: Path) -> None:
    service = Unit(unit)["Service"]
    assert service["User"] == "metainit" and service["ProtectSystem"] == "strict"
    made = [f"/var/lib/{service['StateDirectory']}"]
    if "CacheDirectory" in service:
        made.append(f"/var/cache/{service['CacheDirectory']}")
    text = unit.read_text()
    settings = [line for line in text.splitlines() if line.startswith(("Environment=", "ExecStart=", "  "))]
    for line in settings:
        for word in line.replace("=", " ").split():
            if word.startswith("/var/"):
                assert any(word.startswith(folder) for folder in made), word


def test_no_secret_is_an_option() -> None:
    for unit in UNITS:
        assert "$" not in " ".join(Unit(unit).command)


def test_the_guide_keeps_keys_where_the_service_can_read_them_and_drains_within_the_units_time() -> None:
    (unit,) = [path for path in UNITS if path.stem == "metainit-endpoint"]
    service = Unit(unit)["Service"]
    page = (ROOT / "docs" / "deploying.md").read_text()
    home = f"/var/lib/{service['StateDirectory']}"
    assert f"sudo -u {service['User']} METAINIT_HOME={home} {INSTALLED}/metainit keys make" in page
    assert f"METAINIT_SERVE_KEYS={home}/keys.json" in page
    drain = EndpointSettings().drain_seconds
    assert f"`drain_seconds` ({drain:.0f})" in page
    assert int(service["TimeoutStopSec"]) >= drain + 2 * STOP_SECONDS + 20
