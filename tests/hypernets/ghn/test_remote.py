"""A hypernetwork on an endpoint: traced here, predicted there, and nothing half-filled."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from torch import nn

import metainit
from hypernets.ghn.remote import RemotePredicted
from metainit.client import Client
from metainit.errors import EndpointError, GraphError, MismatchError, SourceError
from metainit.transfer import Retry
from serving.app import create_app
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

URL = "http://endpoint"
INPUTS = torch.zeros(2, 1, 8, 8)


class Watched(httpx.BaseTransport):
    """Passes requests on, remembers them, and may spoil an answer."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner, self.seen = inner, list[tuple[str, str, int]]()
        self.faults: list[httpx.Response] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = self.faults.pop(0) if self.faults else self.inner.handle_request(request)
        self.seen.append((request.method, request.url.path, answer.status_code))
        return answer


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Watched]:
    shelf = Shelf(tmp_path / "registry")
    shelf.add_hypernetwork("digits", 0, "champion")
    shelf.add("faces", 0)
    store = Store(shelf, tmp_path / "store", poll=3600.0)
    with InProcess(create_app(store)) as transport:
        yield Watched(transport)


@pytest.fixture
def client(wire: Watched, tmp_path: Path) -> Iterator[Client]:
    retry = Retry(attempts=3, first_wait=0.0, longest_wait=0.0)
    with Client(URL, transport=wire, retry=retry, cache=tmp_path / "cache") as client:
        yield client


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5)
    )


def local(shelf: Path) -> metainit.Initialization:
    return metainit.load(shelf / "digits" / "1" / "checkpoint.safetensors")


def same(one: nn.Module, two: nn.Module) -> bool:
    """Compare weights up to rounding: an endpoint has other numbers of threads inside its operations."""
    first, second = one.state_dict(), two.state_dict()
    return all(torch.allclose(first[name], second[name], rtol=1e-3, atol=1e-5) for name in first)


def test_what_comes_over_http_is_what_the_file_predicts(
    client: Client, wire: Watched, tmp_path: Path
) -> None:
    there = client.predict(network(), "digits", example_inputs=INPUTS, seed=3)
    here = local(tmp_path / "registry").init_(network(), example_inputs=INPUTS, seed=3)
    assert same(there, here) and not same(there, network())
    wire.seen.clear()
    again = client.predict(network(), "digits@champion", example_inputs=INPUTS, seed=3)
    assert same(again, there)
    assert wire.seen == [("POST", "/v1/inits/digits@champion/predict", 200)]  # the blob was here already
    for more in ({"seed": 4}, {"exact": True}):
        other = client.predict(network(), "digits", example_inputs=INPUTS, **more)
        expected = local(tmp_path / "registry").init_(network(), example_inputs=INPUTS, **more)  # type: ignore[call-arg]
        assert same(other, expected) and not same(other, there)


def test_without_a_seed_each_network_is_another_one(client: Client) -> None:
    one, two, three = network(), network(), network()
    torch.manual_seed(0)
    drawn = [client.predict(n, "digits", example_inputs=INPUTS) for n in (one, two)]
    torch.manual_seed(0)
    again = client.predict(three, "digits", example_inputs=INPUTS)
    assert not same(*drawn) and same(drawn[0], again)
    assert torch.linalg.matrix_rank(drawn[0].get_parameter("4.weight")) == 5


def test_what_is_kept_stays_and_statistics_follow_the_data(client: Client) -> None:
    before = network()
    data = torch.randn(32, 1, 8, 8)
    filled = client.predict(
        network(), "digits", example_inputs=INPUTS, seed=0, keep=["4.bias"], observation=data
    )
    assert torch.equal(filled.get_parameter("4.bias"), before.get_parameter("4.bias"))
    assert not torch.equal(filled.get_parameter("0.bias"), before.get_parameter("0.bias"))
    assert not torch.equal(filled.get_buffer("1.running_mean"), before.get_buffer("1.running_mean"))


def test_an_address_is_a_source(wire: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "shared"))
    made = httpx.Client
    monkeypatch.setattr(
        "metainit.client.httpx.Client", lambda **options: made(**{**options, "transport": wire})
    )
    start = metainit.load(f"{URL}/v1/inits/digits")
    assert isinstance(start, RemotePredicted)
    assert wire.seen == [("HEAD", "/v1/inits/digits/weights", 200)]  # the hypernetwork stays there
    filled = metainit.init_(network(), f"{URL}/v1/inits/digits", example_inputs=INPUTS, seed=3)
    assert same(filled, local(tmp_path / "registry").init_(network(), example_inputs=INPUTS, seed=3))
    assert start.card.kind == "ghn" and start.evidence == {"metric": "psnr", "steps": [0, 2]}
    prior = metainit.load(f"{URL}/v1/inits/faces")
    assert prior.card.kind == "prior" and not isinstance(prior, RemotePredicted)


def refused(client: Client, network: nn.Module, reference: str = "digits", **arguments: object) -> str:
    """Return why a network was not filled, and make sure that nothing of it was."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises((EndpointError, GraphError, MismatchError, SourceError)) as caught:
        client.predict(network, reference, **{"example_inputs": INPUTS, **arguments})  # type: ignore[arg-type]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    return str(caught.value)


def test_what_is_refused_changes_nothing(client: Client, wire: Watched) -> None:
    assert "faces/1 is a prior" in refused(client, network(), "faces")
    assert "did you mean 'digits'?" in refused(client, network(), "digit")
    assert "cannot be traced" in refused(client, network(), example_inputs=torch.zeros(2, 3))
    assert "example_inputs" in refused(client, network(), example_inputs=None)
    assert "no condition" in refused(client, network(), condition=3)
    trained = network()
    trained(torch.randn(4, 1, 8, 8))
    assert "looks trained" in refused(client, trained)
    assert not same(client.predict(trained, "digits", example_inputs=INPUTS, overwrite=True), network())
    busy = httpx.Response(429, headers={"retry-after": "1"})
    wire.faults = [busy, httpx.Response(503)]
    client.predict(network(), "digits", example_inputs=INPUTS, seed=9)
    wire.faults = [busy] * 3
    assert "after 3 tries" in refused(client, network(), seed=10)
    for wrong in ({"sha256": "00", "size": 3}, {"sha256": "0" * 64, "size": "3"}, {}):
        wire.faults = [httpx.Response(201, json=wrong)]
        assert "is this a metainit endpoint?" in refused(client, network(), seed=11)


def test_an_answer_for_another_graph_is_refused(client: Client, wire: Watched) -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    client.predict(other, "digits", example_inputs=INPUTS, seed=0)
    answer = wire.inner.handle_request
    wrong: list[httpx.Response] = []

    def swapped(request: httpx.Request) -> httpx.Response:
        found = answer(request)
        if request.method == "POST":
            wrong.append(found)
            return httpx.Response(201, json={**found.json(), **kept})
        return found

    path = next((client._kept.folder / "blobs").glob("*.safetensors"))
    kept = {"sha256": path.stem, "size": path.stat().st_size}
    wire.inner.handle_request = swapped  # type: ignore[method-assign]
    assert "answered for the graph" in refused(client, network(), seed=1)
    assert wrong


def test_a_prediction_is_a_start_by_itself(client: Client, tmp_path: Path) -> None:
    filled = client.predict(network(), "digits", example_inputs=INPUTS, seed=3, keep=["4.bias"])
    path = next((client._kept.folder / "blobs").glob("*.safetensors"))
    assert client.blob(path.stem) == path
    start = metainit.load(path)
    fresh = start.init_(network())
    assert same(fresh, filled)
    with pytest.raises(
        MismatchError, match="another network than this Linear; missing: bias, weight; unexpected: 0.bias"
    ):
        start.init_(nn.Linear(384, 5))
    with pytest.raises(EndpointError, match="has no blob"):
        client.blob("0" * 64)
