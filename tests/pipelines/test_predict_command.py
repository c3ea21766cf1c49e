"""`metainit predict`, and the picture that `metainit show --graph` draws of what came."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import skimage.io
import torch
import typer
from torch import nn
from typer.testing import CliRunner

import metainit
from hypernets.ghn.ghn3_checkpoint import to_checkpoint
from hypernets.ghn.ghn3_config import Ghn3Config
from hypernets.ghn.ghn3_network import Ghn3
from metainit import checkpoint
from metainit.errors import MetainitError
from pipelines import predict_command, registry_commands
from pipelines.registry import Registry
from tests.serving.shelf import Shelf

NETWORKS = """
import torch
from torch import nn

class Namespace:
    @staticmethod
    def small():
        return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))

def tokens():
    return nn.Sequential(nn.Embedding(11, 8), nn.Flatten(), nn.Linear(32, 3))

def broken():
    raise OSError("no such file")

number = int
"""
app = typer.Typer()
app.command("predict")(predict_command.predict)
app.command("show")(registry_commands.show)


@pytest.fixture(scope="module")
def hypernetwork(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    shelf.add_hypernetwork("digits", 0)
    return shelf.files["digits"][1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a module of networks, which no other test has imported."""
    (tmp_path / f"nets_{tmp_path.name}.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))
    return tmp_path


def call(*arguments: str, status: int = 0) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, MetainitError):
        return f"error: {result.exception}"
    assert result.exit_code == status, result.output
    return result.output


def predict(folder: Path, name: str, *arguments: Any, status: int = 0) -> str:
    return call("predict", f"nets_{folder.name}:{name}", *map(str, arguments), status=status)


def test_weights_for_a_users_network(folder: Path, hypernetwork: Path) -> None:
    options = ("--from", hypernetwork, "-o", "out.safetensors", "--input-shape", "1,1,8,8")
    answer = json.loads(predict(folder, "Namespace.small", *options, "--keep", "3.*", "--json"))
    assert answer["predicted"] == 2 and answer["skipped"] == {
        "3.weight": "the caller keeps it", "3.bias": "the caller keeps it",
    }  # fmt: skip
    stored = checkpoint.load("out.safetensors")
    assert (stored.card.kind, stored.card.graph) == ("weights", answer["graph"])
    assert stored.card.provenance.recipe["hypernetwork"] == "digits" and stored.card.provenance.seeds == [0]
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 5))
    before = network[3].weight.clone()
    metainit.init_(network, "out.safetensors")
    assert torch.equal(network[0].weight, stored.tensors["0.weight"])
    assert torch.equal(network[3].weight, before)
    text = predict(folder, "Namespace.small", *options)
    assert "digits predicted 4 parameters" in text and "metainit.init_(network, 'out.safetensors')" in text
    first = checkpoint.load("out.safetensors").card.digest
    predict(folder, "Namespace.small", *options, "--seed", "1")
    assert checkpoint.load("out.safetensors").card.digest != first
    predict(folder, "Namespace.small", *options)
    assert checkpoint.load("out.safetensors").card.digest == first


def test_inputs_may_be_tokens(folder: Path, hypernetwork: Path) -> None:
    options = ("--from", hypernetwork, "-o", "out.safetensors", "--input-shape", "2,4:int64")
    assert json.loads(predict(folder, "tokens", *options, "--json"))["predicted"] == 3


def test_a_registered_hypernetwork_needs_no_scheme(folder: Path, hypernetwork: Path, home: Path) -> None:
    Registry().register(hypernetwork.parent, "digits")
    for name in ("digits", "digits/1", "models:/digits"):
        text = predict(folder, "tokens", "--from", name, "-o", "o.safetensors", "--input-shape", "2,4:int64")
        assert "digits predicted 3 parameters" in text


WRONG = [
    (("tokens", "--input-shape", "a,b"), 2, "expected sizes such as"),
    (("tokens", "--input-shape", "2,4:int46"), 2, "expected sizes such as"),
    (("tokens",), 2, "--input-shape is needed"),
    (("tokenz", "--input-shape", "2,4"), 2, "did you mean 'tokens'?"),
    (("broken", "--input-shape", "2,4"), 1, "OSError: no such file"),
    (("number", "--input-shape", "2,4"), 1, "returned a int, expected a torch.nn.Module"),
    (("tokens", "--input-shape", "2,4:int64", "--keep", "head.*"), 1, "'head.*' fits no parameter"),
    (("tokens", "--input-shape", "2,4"), 1, "cannot be traced"),
    (("tokens", "--input-shape", "2,4", "-o", "x.bin"), 2, "ends in .safetensors"),
    (("tokens", "--input-shape", "2,4", "--from", "siren"), 1, "predicts nothing"),
]


@pytest.mark.parametrize(("arguments", "status", "words"), WRONG)
def test_what_is_wrong_is_named(
    folder: Path, hypernetwork: Path, home: Path, arguments: tuple[str, ...], status: int, words: str
) -> None:
    name, *more = arguments
    defaults = ["--from", hypernetwork, "-o", "out.safetensors"]
    if "--from" in more and "siren" in more:
        Shelf(folder / "shelf").add("siren", 0)
        Registry().register(folder / "shelf" / "siren" / "1", "siren")
    text = predict(folder, name, *defaults, *more, status=status)
    assert words in " ".join(text.replace("│", " ").split()) and not (folder / "out.safetensors").exists()


def test_a_published_hypernetwork_says_how_it_is_used(folder: Path) -> None:
    config = Ghn3Config(hidden=8, layers=1, heads=2, channels=8, kernel=11, classes=10)
    to_checkpoint(config, Ghn3(config).state_dict(), folder / "p.safetensors", "published", "a file of ours")
    options = ("--from", "p.safetensors", "-o", "out.safetensors", "--input-shape", "1,1,8,8")
    text = predict(folder, "Namespace.small", *options, status=1)
    assert "method 'ghn3'" in text and "metainit.init_(network, 'p.safetensors', example_inputs=" in text


def test_a_module_that_is_not_there_is_named(folder: Path, hypernetwork: Path) -> None:
    options = ("--from", hypernetwork, "-o", "out.safetensors")
    assert "no module 'nowhere'" in call("predict", "nowhere:net", *map(str, options), status=2)
    assert "expected MODULE:CALLABLE" in call("predict", "nowhere", *map(str, options), status=2)
    (folder / f"bad_{folder.name}.py").write_text("import nowhere_else")
    text = call("predict", f"bad_{folder.name}:net", *map(str, options), status=1)
    assert "cannot be imported" in text and "nowhere_else" in text


def test_the_graph_of_predicted_weights_is_drawn(folder: Path, hypernetwork: Path) -> None:
    options = ("--from", hypernetwork, "-o", "out.safetensors", "--input-shape", "1,1,8,8")
    made = json.loads(predict(folder, "Namespace.small", *options, "--json"))
    shown = json.loads(call("show", "out.safetensors", "--graph", "-o", "graph.svg", "--json"))
    assert shown["graph"] == made["graph"] and shown["parameters"] == 4
    assert "<svg" in (folder / "graph.svg").read_text()
    assert "-> graph.png" in call("show", "out.safetensors", "--graph")
    assert skimage.io.imread("graph.png").std() > 10
    text = call("show", str(hypernetwork), "--graph", status=1)
    assert "'digits' (kind ghn) keeps no architecture graph" in text
    assert "-o goes with --graph" in call("show", "digits", "-o", "graph.png", status=2)
