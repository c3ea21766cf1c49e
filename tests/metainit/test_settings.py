"""The environment: every variable is in the table, and what is set wrong is found."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from metainit import settings
from metainit.diagnosis import environment
from metainit.installed import packages

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bMETAINIT_[A-Z0-9_]*[A-Z0-9]\b")
EXAMPLES = {"METAINIT_EXAMPLE"}


@pytest.fixture(autouse=True)
def none_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*settings.VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_the_table_names_every_variable() -> None:
    read = {
        name
        for package in ("metainit", "hypernets", "pipelines", "serving")
        for path in (ROOT / package).rglob("*.py")
        for name in NAME.findall(path.read_text())
        if not name.startswith(settings.PREFIXES) and f"{name}_" not in settings.PREFIXES
    }
    assert read - EXAMPLES <= settings.VARIABLES.keys()


def texts() -> dict[str, str]:
    return {finding.subject: f"{finding.level} {finding.text}" for finding in environment()}


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts() == {"environment": "ok no METAINIT_ variable is set"}
    monkeypatch.setenv("METAINIT_CACHE", "/x")
    monkeypatch.setenv("METAINIT_SERVE_REPLICAS", "2")
    assert texts() == {"environment": "ok METAINIT_CACHE, METAINIT_SERVE_REPLICAS"}
    monkeypatch.setenv("METAINIT_CASHE", "/x")
    assert "did you mean 'METAINIT_CACHE'?" in texts()["METAINIT_CASHE"]
    monkeypatch.setenv("METAINIT_OFFLINE", "1")
    assert texts()["METAINIT_OFFLINE"].startswith("warning 1: the client answers from its cache alone")
    monkeypatch.setenv("METAINIT_OFFLINE", "nearly")
    assert texts()["METAINIT_OFFLINE"].startswith("error METAINIT_OFFLINE='nearly'")
    monkeypatch.setenv("METAINIT_KEY", "mi_secret")
    assert "sent nowhere" in texts()["METAINIT_KEY"] and "mi_secret" not in str(texts())
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    assert "error names /nowhere.pem, which does not exist" in texts()["SSL_CERT_FILE"]


def test_packages_are_compared_with_what_is_needed() -> None:
    found = {finding.subject: finding for finding in packages()}
    assert found["packages"].level == "ok" and "httpx 0." in found["packages"].text
    assert {"extra ray", "extra serve", "extra graph"} <= found.keys()
    assert not {"extra all", "extra dev"} & found.keys()
