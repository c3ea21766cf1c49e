"""Weights of three sizes through the endpoint, plain uvicorn, MLflow's artifact proxy and nginx.

All servers run at once over the same files; a round asks one after the other, in an order that turns with
each round, so that ratios are taken within rounds.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Cells, machine
from benchmarks.endpoint_load import read_apart
from benchmarks.endpoint_servers import (
    PATIENCE,
    REPLICA,
    ROOT,
    forget_peak,
    memory,
    mlflow_server,
    nginx_server,
    processes,
    uvicorn_server,
)
from metainit import checkpoint
from metainit.card import Card, Method
from metainit.transfer import file_sha256

BEHIND = "blobs from nginx"
TARGETS = ("endpoint", "uvicorn", "mlflow", "nginx", BEHIND)
CROWD, CROWD_FETCHES = 32, 1000


@dataclass(frozen=True)
class Size:
    """Weights of so many float32 `elements`, fetched so often in a round over so many connections."""

    elements: int
    fetches: int
    clients: int


SIZES = {
    "1 MB": Size(250_000, 300, 4),
    "25 MB": Size(6_250_000, 24, 4),
    "500 MB": Size(125_000_000, 2, 2),
}
TINY = {"1 MB": Size(250_000, 8, 2), "2 MB": Size(500_000, 4, 2)}


@dataclass(frozen=True)
class Place:
    """Where a target has the files: a port, and a path for each size."""

    port: int
    paths: dict[str, str]


@contextmanager
def servers(folder: Path, sizes: dict[str, Size]) -> Iterator[tuple[dict[str, Place], dict[str, int]]]:
    """Start every server over the same files; give the place of each target, and the files' sizes."""
    from serving.deployments import start
    from serving.haproxy import free_port

    os.environ["METAINIT_HOME"] = str(folder / "home")
    os.environ["PYTHONPATH"] = str(ROOT)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    files = {name: _register(folder / name.replace(" ", ""), size.elements) for name, size in sizes.items()}
    listed = list(files.values())
    with ExitStack() as stack:
        ports = {target: free_port() for target in TARGETS}
        places = {}
        store = folder / "store"
        plain = stack.enter_context(uvicorn_server(folder, ports["uvicorn"], listed))
        places["uvicorn"] = Place(ports["uvicorn"], dict(zip(files, plain, strict=True)))
        there = (folder, ports["nginx"], listed, ports[BEHIND], store / "blobs")
        sent = stack.enter_context(nginx_server(*there))
        places["nginx"] = Place(ports["nginx"], dict(zip(files, sent, strict=True)))
        blobs = {name: f"/v1/blobs/{file_sha256(file)}" for name, file in files.items()}
        places[BEHIND] = Place(ports[BEHIND], blobs)
        artifacts = folder / "mlflow" / "artifacts"
        artifacts.mkdir(parents=True)
        for number, file in enumerate(listed):
            os.link(file, artifacts / f"{number}.safetensors")
        stack.enter_context(mlflow_server(artifacts.parent, ports["mlflow"]))
        proxy = "/api/2.0/mlflow-artifacts/artifacts"
        places["mlflow"] = Place(
            ports["mlflow"], {name: f"{proxy}/{i}.safetensors" for i, name in enumerate(files)}
        )
        endpoint = stack.enter_context(
            start(port=ports["endpoint"], cache=store, poll=5.0, patience=PATIENCE)
        )
        places["endpoint"] = Place(
            int(endpoint.url.rsplit(":", 1)[1]),
            {name: f"/v1/inits/bench-{name.replace(' ', '')}/weights" for name in files},
        )
        yield places, {name: file.stat().st_size for name, file in files.items()}


def _register(folder: Path, elements: int) -> Path:
    from pipelines.registry import Registry

    name = f"bench-{folder.name}"
    card = Card(kind="prior", name=name, method=Method(name="none"))
    path = folder / "checkpoint.safetensors"
    checkpoint.save(path, {"w": torch.randn(elements, generator=torch.Generator())}, card)
    Registry().register(folder, name)
    return path


def run(cells: Cells, rounds: int, sizes: dict[str, Size] = SIZES, crowd: int = CROWD_FETCHES) -> None:
    """Measure what is not there yet: a cell is a round of one size, or of the crowd of clients."""
    names = [f"weights/{what}, round {i}" for what in (*sizes, "crowd") for i in range(rounds)]
    if all(name in cells.values for name in names):
        return
    with (
        tempfile.TemporaryDirectory(prefix="mi-") as folder,
        servers(Path(folder), sizes) as (places, lengths),
    ):
        cells.cell("weights/machine", machine)
        (replica,) = processes(REPLICA)
        for number in range(rounds):
            order = TARGETS[number % len(TARGETS) :] + TARGETS[: number % len(TARGETS)]
            for name, size in sizes.items():

                def measure(
                    name: str = name, size: Size = size, order: tuple[str, ...] = order
                ) -> dict[str, Any]:
                    result: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)}
                    for target in order:
                        place = places[target]
                        forget_peak(replica)
                        result[target] = read_apart(
                            place.port, place.paths[name], lengths[name], size.fetches, size.clients
                        )
                        if target == "endpoint":
                            result["replica"] = memory(replica)
                    return result

                cells.cell(f"weights/{name}, round {number}", measure)

            def gather(order: tuple[str, ...] = order) -> dict[str, Any]:
                small = next(iter(sizes))
                return {
                    "load": round(os.getloadavg()[0], 2),
                    **{
                        target: read_apart(
                            places[target].port, places[target].paths[small], lengths[small], crowd, CROWD
                        )
                        for target in order
                        if target != "mlflow"
                    },
                }

            cells.cell(f"weights/crowd, round {number}", gather)
