"""The registry's subcommands, as a user calls them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from metainit import checkpoint
from pipelines import registry_commands as commands
from pipelines.gate import admit
from pipelines.registry import Registry
from tests.pipelines.conftest import MakeFolder, make_evidence

app = typer.Typer()
app.command("list")(commands.list_)
for command in ("show", "pull", "promote", "rollback"):
    app.command(command)(getattr(commands, command))


def call(*arguments: str, status: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
    assert result.exit_code == status, result.output
    return result.output


def call_json(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json"))


@pytest.fixture
def registry(home: Path, make_folder: MakeFolder) -> Registry:
    """Three versions of one name: previous, champion and challenger."""
    made = Registry()
    for seed, level in ((1, 30), (2, 31), (3, 29)):
        folder = make_folder(seed, make_evidence(level, seed=seed))
        admit(made, made.register(folder, "faces"))
    return made


def test_list(registry: Registry, make_folder: MakeFolder) -> None:
    registry.register(make_folder(4), "scans")
    text = call("list")
    for part in ("champion", "challenger", "previous", "reptile", "+1.5 over siren", "scans"):
        assert part in text
    faces, scans = call_json("list")
    assert (faces["name"], faces["default"]) == ("faces", 2)
    assert faces["aliases"] == {"champion": 2, "challenger": 3, "previous": 1}
    assert [v["version"] for v in faces["versions"]] == [3, 2, 1]
    assert scans["default"] == 1 and scans["versions"][0]["headline"] is None


def test_list_of_nothing_says_how_to_begin(home: Path) -> None:
    assert "metainit train" in call("list")
    assert call_json("list") == []


def test_show(registry: Registry) -> None:
    text = call("show", "faces")
    for part in ("faces/2", "Nichol 2018", "siren(width=4)", "2 steps of sgd", "than the champion"):
        assert part in text
    detail = call_json("show", "faces@previous")
    assert (detail["name"], detail["version"]) == ("faces", 1)
    assert detail["card"]["routine"]["steps"] == 2
    assert detail["evidence"]["metric"] == "psnr"


def test_pull_a_file_or_a_folder(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "out" / "faces.safetensors"
    answer = call_json("pull", "faces/1", "-o", str(file))
    assert answer == {
        "reference": "faces/1",
        "sha256": registry.resolve("faces/1").sha256,
        "path": str(file),
    }
    assert checkpoint.load(file).card.name == "faces"
    assert [p.name for p in file.parent.iterdir()] == [file.name]
    assert "faces/2 ->" in call("pull", "faces", "-o", str(tmp_path / "whole"))
    for part in ("checkpoint.safetensors", "evidence.json", "recipe.yaml", "pictures/curve.png"):
        assert (tmp_path / "whole" / part).is_file()


def test_promote_and_rollback(registry: Registry) -> None:
    assert call_json("promote", "faces", "3", "champion")["aliases"] == ["champion"]
    assert registry.aliases("faces") == {"champion": 3, "previous": 2}
    assert "faces/2 is champion" in call("rollback", "faces")


def test_what_goes_wrong_has_a_status_and_a_way_out(registry: Registry) -> None:
    for arguments, status, says in (
        (("show", "face"), 1, "did you mean 'faces'?"),
        (("show", "faces@best"), 1, "its aliases are"),
        (("pull", "faces/9", "-o", "x.safetensors"), 1, "its versions are"),
        (("show", "a@b@c"), 2, "expected name"),
        (("pull", "faces"), 2, "--out"),
        (("promote", "faces", "second", "champion"), 2, "int"),
        (("show", "faces", "--graph"), 1, "keeps no architecture graph"),
    ):
        assert says in call(*arguments, status=status).replace("\n", " ")


class Endpoint:
    """A client of an endpoint that serves one name."""

    offline = False

    def __init__(self, url: str) -> None:
        assert url == "http://endpoint"

    def list(self) -> list[dict[str, Any]]:
        version = {key: self.show("")[key] for key in ("version", "aliases", "method", "network")}
        version |= {"headline": None, "size": 10, "kind": "prior", "sha256": "00"}
        return [{"name": "far", "default": 7, "aliases": {}, "versions": [version]}]

    def show(self, reference: str) -> dict[str, Any]:
        return {
            "name": "far",
            "version": 7,
            "aliases": ["champion"],
            "kind": "prior",
            "method": "maml",
            "network": "siren",
            "headline": None,
            "sha256": "00",
            "size": 10,
            "card": {"method": {"name": "maml", "paper": ""}},
            "evidence": {"metric": "psnr"},
        }

    def fetch(self, reference: str, path: Path | None = None) -> Path | None:
        if path is not None:
            assert reference == "far/7"  # pinned: the alias may move between two requests
            path.write_bytes(b"weights")
        return path

    def evidence(self, reference: str, sha256: str) -> dict[str, str]:
        assert sha256 == hashlib.sha256(b"weights").hexdigest()
        return {"metric": "psnr"}


def test_an_endpoint_is_read_in_the_same_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("metainit.client.Client", Endpoint)
    assert "far" in call("list", "--server", "http://endpoint")
    assert "far/7" in call("show", "far", "--server", "http://endpoint")
    call("pull", "far", "-o", str(tmp_path / "all"), "--server", "http://endpoint")
    assert (tmp_path / "all" / "checkpoint.safetensors").read_bytes() == b"weights"
    assert json.loads((tmp_path / "all" / "evidence.json").read_text()) == {"metric": "psnr"}
    file = tmp_path / "one.safetensors"
    assert call_json("pull", "far", "-o", str(file), "--server", "http://endpoint")["path"] == str(file)
