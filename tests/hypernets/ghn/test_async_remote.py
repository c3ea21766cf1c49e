"""A client that awaits has weights predicted: the same as one that blocks, while its loop goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx
import pytest
import torch
from torch import nn

from metainit.async_client import AsyncClient
from metainit.client import Client
from metainit.errors import EndpointError, GraphError
from serving.app import create_app
from serving.store import Store
from tests.metainit.faults import URL, InLoop, Wire
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

INPUTS = torch.zeros(2, 1, 8, 8)


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    shelf = Shelf(tmp_path / "registry")
    shelf.add_hypernetwork("digits", 0, "champion")
    with InProcess(create_app(Store(shelf, tmp_path / "store", poll=3600.0))) as transport:
        yield Wire(transport)


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 5))


def test_both_fill_a_network_alike(wire: Wire, tmp_path: Path) -> None:
    beats = 0

    async def main() -> nn.Module:
        async with AsyncClient(URL, transport=InLoop(wire), cache=tmp_path / "cache") as client:

            async def heart() -> None:
                nonlocal beats
                while True:
                    await anyio.sleep(0.005)
                    beats += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(heart)
                filled = await client.predict(network(), "digits", example_inputs=INPUTS, seed=3)
                tasks.cancel_scope.cancel()
            with pytest.raises(GraphError):
                await client.predict(network(), "digits", example_inputs=torch.zeros(2, 3))
        return filled

    there = anyio.run(main)
    assert beats > 1
    with Client(URL, transport=wire, cache=tmp_path / "other") as client:
        here = client.predict(network(), "digits", example_inputs=INPUTS, seed=3)
    for name, value in here.state_dict().items():
        assert torch.allclose(there.state_dict()[name], value, rtol=1e-3, atol=1e-5)


def test_offline_gives_the_prediction_that_was_fetched(wire: Wire, tmp_path: Path) -> None:
    with Client(URL, transport=wire, cache=tmp_path) as client:
        filled = client.predict(network(), "digits", example_inputs=INPUTS, seed=3)
    wire.down = True
    with Client(URL, transport=wire, cache=tmp_path, offline=True) as client:
        again = client.predict(network(), "digits", example_inputs=INPUTS, seed=3)
        assert torch.equal(again.get_parameter("0.weight"), filled.get_parameter("0.weight"))
        with pytest.raises(EndpointError, match="the prediction of digits for this graph and seed"):
            client.predict(network(), "digits", example_inputs=INPUTS, seed=4)


def test_what_is_generated_is_read_with_care(tmp_path: Path) -> None:
    answers = [{}, {"items": [{"seed": 9, "sha256": "0" * 64, "size": 1}]}]

    def handle(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/inits/zoo/generate"
        return httpx.Response(201, json=answers.pop(0))

    with Client(URL, transport=httpx.MockTransport(handle), cache=tmp_path) as client:
        for said in ("no list of networks", "of the seeds"):
            with pytest.raises(EndpointError, match=said):
                client.generated("zoo", 1, seed=0)
