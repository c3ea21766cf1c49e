"""`metainit pull --server` shows how far it is where somebody looks on, and is silent elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from metainit.client import Client
from pipelines.registry_commands import pull
from serving.app import create_app
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path / "registry")
    shelf.add("faces", 0, "champion", elements=5000)
    with InProcess(create_app(Store(shelf, tmp_path / "store", poll=3600.0))) as transport:
        client = partial(Client, transport=transport, cache=tmp_path / "cache")
        monkeypatch.setattr("metainit.client.Client", client)
        yield shelf


@pytest.mark.parametrize("watched", [True, False])
def test_the_bar(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watched: bool) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if watched else "0")
    app = typer.Typer()
    app.command()(pull)
    target = tmp_path / "faces.safetensors"
    result = CliRunner().invoke(app, ["faces", "-o", str(target), "--server", "http://endpoint"])
    assert result.exit_code == 0, result.output
    assert target.read_bytes() == shelf.files["faces"][1].read_bytes()
    assert f"faces/1 -> {target}" in result.stdout.replace("\n", "")
    assert ("kB" in result.stderr) == watched


@pytest.mark.parametrize("name", ["faces", "faces@champion", "faces/1"])
def test_what_was_pulled_comes_again_without_the_endpoint(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    app = typer.Typer()
    app.command()(pull)

    def pulled(name: str, target: Path) -> str:
        result = CliRunner().invoke(app, [name, "-o", str(target), "--server", "http://endpoint"])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    pulled(name, tmp_path / "folder")
    monkeypatch.setenv("METAINIT_OFFLINE", "1")
    for again in (name, "faces/1"):
        assert f"{again} -> " in pulled(again, tmp_path / "again.safetensors")
        assert (tmp_path / "again.safetensors").read_bytes() == shelf.files["faces"][1].read_bytes()
    pulled(name, tmp_path / "other")
    assert (tmp_path / "other" / "checkpoint.safetensors").is_file()
