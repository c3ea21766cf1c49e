"""Small answers: alias look-ups and 304s beside an empty FastAPI route on the same Ray Serve.

The empty app is a second application of the same Serve, with the options of the endpoint's own deployment, so
that proxy, replica and HTTP server are the same and rounds can take turns.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cells import Cells, machine
from benchmarks.endpoint_load import wrk
from benchmarks.endpoint_servers import PATIENCE, ROOT

CLIENTS = 32
EMPTY = "/empty"


def register(name: str = "faces") -> None:
    """Register a small prior with evidence, as a look-up finds it."""
    import torch

    from metainit import checkpoint
    from metainit.card import AdaptationRoutine, Card, Method, Spec
    from pipelines.registry import Registry

    with tempfile.TemporaryDirectory() as folder:
        spec = Spec(name="siren", arguments={"width": 64, "layers": 4})
        routine = AdaptationRoutine(steps=2, step_size=0.01)
        card = Card(kind="prior", name=name, method=Method(name="maml"), network=spec, routine=routine)
        checkpoint.save(Path(folder) / "checkpoint.safetensors", {"w": torch.zeros(64, 64)}, card)
        registry = Registry()
        registry.set_alias(registry.register(Path(folder), name), "champion")


@contextmanager
def endpoint(folder: Path) -> Iterator[tuple[int, str]]:
    """Start the endpoint with the empty app beside it; give the port, and the checksum of the champion."""
    from ray import serve

    from serving.deployments import start
    from serving.haproxy import free_port

    os.environ["METAINIT_HOME"] = str(folder / "home")
    os.environ["PYTHONPATH"] = str(ROOT)
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        os.environ.pop(name, None)
    register()
    port = free_port()
    with start(port=port, poll=5.0, patience=PATIENCE) as running:
        serve.run(empty_app(), name="empty", route_prefix=EMPTY)
        httpx.get(f"{running.url}{EMPTY}/", timeout=60).raise_for_status()
        sha256 = httpx.get(f"{running.url}/v1/inits/faces@champion", timeout=60).json()["sha256"]
        yield port, sha256


def empty_app() -> Any:
    """Return an application of Serve that answers one route with nothing."""
    from fastapi import FastAPI
    from ray import serve

    def make() -> FastAPI:
        app = FastAPI()

        @app.get("/")
        async def nothing() -> dict[str, str]:
            return {}

        return app

    deployment: Any = serve.deployment(
        serve.ingress(make)(),
        name="empty",
        num_replicas=1,
        max_ongoing_requests=256,
        ray_actor_options={"num_cpus": 0.1},
    )
    return deployment.bind()


def questions(sha256: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return what is asked: a path and headers by name, the empty route first."""
    tag = {"If-None-Match": f'"{sha256}"'}
    weights = "/v1/inits/faces@champion/weights"
    return {
        "empty": (f"{EMPTY}/", {}),
        "look-up": ("/v1/inits/faces@champion", {}),
        "weights, 304": (weights, tag),
        "blob, 304": (f"/v1/blobs/{sha256}", tag),
    }


def run(cells: Cells, rounds: int, seconds: float) -> None:
    """Measure what is not there yet: a cell is a round of all questions."""
    names = [f"lookups/round {i}" for i in range(rounds)]
    if all(name in cells.values for name in names):
        return
    with tempfile.TemporaryDirectory(prefix="mi-") as folder, endpoint(Path(folder)) as (port, sha256):
        cells.cell("lookups/machine", machine)
        asked = questions(sha256)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            answers = http.get("/v1/inits/faces@champion")
            tag = answers.headers.get("etag")
            if tag is not None:
                asked["look-up, 304"] = ("/v1/inits/faces@champion", {"If-None-Match": tag})
            for name, (path, fields) in asked.items():
                status = http.get(path, headers=fields).status_code
                if status != (304 if name.endswith("304") else 200):
                    raise RuntimeError(f"{name}: {path} answers {status}")
        order = list(asked)
        for number in range(rounds):
            turned = order[number % len(order) :] + order[: number % len(order)]

            def measure(turned: list[str] = turned) -> dict[str, Any]:
                load = {"load": round(os.getloadavg()[0], 2)}
                return load | {
                    name: wrk(port, asked[name][0], seconds, CLIENTS, asked[name][1]) for name in turned
                }

            cells.cell(f"lookups/round {number}", measure)
