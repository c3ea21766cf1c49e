"""A generator on an endpoint: what it draws there fills networks here, bit by bit as here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
import typer
from torch import nn
from typer.testing import CliRunner

from hypernets.generator.remote import connected
from hypernets.generator.start import Generated
from metainit import checkpoint
from metainit.adaptation import Task
from metainit.client import Client
from metainit.errors import EndpointError, MismatchError
from metainit.initialization import Initialization
from metainit.networks import build
from metainit.transfer import Retry
from pipelines import generate_command
from pipelines.generate_command import Generates
from serving.app import create_app
from serving.store import Store
from tests.hypernets.ghn.test_remote import URL, Watched
from tests.metainit.meta.problems import SineDomain
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = Shelf(tmp_path_factory.mktemp("registry"))
    shelf.add_generator("shapes", 0, "champion")
    shelf.add("faces", 0)
    return shelf


@pytest.fixture(scope="module")
def wire(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    store = Store(shelf, tmp_path_factory.mktemp("store"), poll=3600.0)
    with InProcess(create_app(store)) as transport:
        yield Watched(transport)


@pytest.fixture
def client(wire: Watched, tmp_path: Path) -> Iterator[Client]:
    retry = Retry(attempts=3, first_wait=0.0, longest_wait=0.0)
    wire.seen.clear()
    with Client(URL, transport=wire, retry=retry, cache=tmp_path / "cache") as client:
        yield client


def local(shelf: Shelf) -> Generated:
    return Generated(checkpoint.load(shelf.files["shapes"][1]))


def network(shelf: Shelf) -> nn.Module:
    spec = local(shelf).card.network
    assert spec is not None
    return build(spec, seed=9)


def test_the_client_brings_one_file_for_each_seed(client: Client, wire: Watched, shelf: Shelf) -> None:
    files = client.generated("shapes", 34, seed=2, condition="star", observation=[[1.0] * 4] * 2, what="mean")
    assert [path for path in files if path.is_file()] == list(files) and len(set(files)) == 34
    seen = torch.ones(2, 4)
    expected = local(shelf).generate(34, 2, condition="star", observation=seen, what="mean")
    for path, one in zip(files, expected, strict=True):
        assert path.read_bytes() == checkpoint.to_bytes(one.tensors, one.card)
    asked = [path for method, path, _ in wire.seen if method == "POST"]
    assert asked == ["/v1/inits/shapes/generate", "/v1/inits/shapes/versions/1/generate"]
    wire.seen.clear()
    again = client.generated("shapes@champion", 2, seed=3, condition="star", observation=seen, what="mean")
    assert list(again) == list(files[1:3])
    assert wire.seen == [("POST", "/v1/inits/shapes@champion/generate", 200)]  # the blobs were here already


def test_a_generator_there_is_a_start_here(client: Client, shelf: Shelf) -> None:
    start = connected(client, "shapes")
    assert isinstance(start, Initialization) and isinstance(start, Generates)
    assert start.card == local(shelf).card and start.observed_shape == (2, 4)
    assert start.evidence == {"metric": "psnr", "steps": [0, 2]}
    there = start.init_(network(shelf), seed=3, condition=1, what="one_step")
    here = local(shelf).init_(network(shelf), seed=3, condition=1, what="one_step")
    for value, truth in zip(there.parameters(), here.parameters(), strict=True):
        assert torch.equal(value, truth)
    domain = SineDomain()
    task = Task(domain, domain.tasks(0, 0, 1))
    start.adapt(there, task)
    local(shelf).adapt(here, task)
    for value, truth in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(value, truth)
    torch.manual_seed(0)
    drawn = [start.init_(network(shelf), what="one_step") for _ in range(2)]
    assert not torch.equal(next(drawn[0].parameters()), next(drawn[1].parameters()))


def test_what_is_refused_changes_nothing(client: Client, shelf: Shelf) -> None:
    own = network(shelf)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with pytest.raises(EndpointError, match="0 to 2"):
        connected(client, "shapes").init_(own, seed=0, condition=7)
    with pytest.raises(EndpointError, match="faces/1 is a prior"):
        connected(client, "faces").init_(own, seed=0)
    with pytest.raises(MismatchError):
        connected(client, "shapes").init_(nn.Linear(2, 2), seed=0, what="mean")
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_the_command_draws_on_an_endpoint(
    wire: Watched, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "shared"))
    made = httpx.Client
    monkeypatch.setattr(
        "metainit.client.httpx.Client", lambda **options: made(**{**options, "transport": wire})
    )
    monkeypatch.setattr("metainit.initialization.load", lambda address: connected(None, address))
    app = typer.Typer()
    app.command("generate")(generate_command.generate)
    words = [
        "shapes@champion",
        "--server",
        f"{URL}/",
        "-n",
        "2",
        "--what",
        "mean",
        "-o",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.output
    answer = json.loads(result.output)
    assert answer["generator"] == "shapes" and [one["seed"] for one in answer["files"]] == [0, 1]
    expected = local(shelf).generate(2, 0, what="mean")
    for one, truth in zip(answer["files"], expected, strict=True):
        assert Path(one["path"]).read_bytes() == checkpoint.to_bytes(truth.tensors, truth.card)
        assert checkpoint.load(one["path"]).card.kind == "weights"


def test_a_part_of_the_weights_is_a_file_of_its_own(client: Client, shelf: Shelf) -> None:
    path = client.fetch("faces", dtype="bfloat16")
    stored = checkpoint.load(path)
    truth = checkpoint.load(shelf.files["faces"][1])
    for name, value in truth.tensors.items():
        assert torch.equal(stored.tensors[name], value.bfloat16())
    assert client.fetch("faces", tensors=["layers.0.weight"]) == client.fetch("faces")
    with pytest.raises(EndpointError, match="no tensor 'layer'"):
        client.fetch("faces", tensors=["layer"])
