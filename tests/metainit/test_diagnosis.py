"""`metainit doctor` against set-ups that are really broken."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from metainit.cli import main
from metainit.diagnosis import Finding, diagnose
from metainit.places import cache_folder

NOWHERE = Path("/proc/metainit")
"""A folder that nobody can make, not even root."""


@pytest.fixture(autouse=True)
def sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> None:
    """A set-up that is as it should be, to be broken in one place."""
    (tmp_path / "home").mkdir()
    shutil.copyfile(empty_store, tmp_path / "home" / empty_store.name)
    monkeypatch.setenv("METAINIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "cache"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def by_subject(server: str | None = None) -> dict[str, Finding]:
    return {finding.subject: finding for finding in diagnose(server)}


def test_a_sound_set_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_returns(["doctor"], 0)
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("error")]
    assert any(line.startswith("ok       registry: 0 names registered") for line in lines)
    assert any(line.startswith(f"ok       data folder: {tmp_path / 'home'}") for line in lines)


def test_the_folders_are_those_that_metainit_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METAINIT_CACHE")
    found = by_subject()["cache folder"]
    assert found.text.startswith(f"{tmp_path / 'home' / 'cache'},")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METAINIT_HOME", "~/data")
    monkeypatch.setenv("METAINIT_CACHE", "~/fast")
    findings = by_subject()
    assert findings["data folder"].text.startswith(f"{tmp_path / 'data'},")
    assert findings["cache folder"].text.startswith(f"{cache_folder('endpoint').parent},")


def main_returns(arguments: list[str], status: int) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == status


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc, where nothing can be written")
@pytest.mark.parametrize(
    ("subject", "variable"), [("data folder", "METAINIT_HOME"), ("cache folder", "METAINIT_CACHE")]
)
def test_a_folder_that_cannot_be_written(
    subject: str, variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, str(NOWHERE))
    main_returns(["doctor", "--json"], 1)
    findings = {f["subject"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings[subject]["level"] == "error"
    assert findings[subject]["text"].startswith(f"{NOWHERE} cannot be written (")
    assert findings[subject]["text"].endswith(f"choose another with {variable}")
    # The registry lies in the data folder, and nothing in the cache.
    assert findings["registry"]["level"] == ("error" if variable == "METAINIT_HOME" else "ok")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write there")
def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    found = by_subject()["cache folder"]
    assert found.level == "error" and "Permission denied" in found.text


def test_a_file_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "file" / "cache"))
    found = by_subject()["cache folder"]
    assert found.level == "error" and "choose another with METAINIT_CACHE" in found.text


@pytest.mark.parametrize(
    ("uri", "says"),
    [("nonsense://x", "unsupported URI 'nonsense://x'"), ("http://127.0.0.1:{port}", "cannot be reached")],
)
def test_a_broken_registry_address(uri: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = uri.format(port=free_port())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    found = by_subject()["registry"]
    assert found.level == "error"
    assert says in found.text and address in found.text
    if "port" in uri:
        assert "or unset it to use the embedded store" in found.text


def test_an_endpoint_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    main_returns(["doctor", "--server", url], 1)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"error    endpoint {url}: cannot reach {url}")
    assert "is the endpoint running there?" in line


def test_an_address_that_is_none() -> None:
    found = by_subject("nonsense")["endpoint nonsense"]
    assert found.level == "error" and "expected e.g. http://" in found.text
