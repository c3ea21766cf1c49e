"""The endpoint over a registry with 10,000 versions: looks, pages, alias moves, and the time to start.

python -m benchmarks.endpoint_registry [--part looks|pages|start] [--database sqlite|postgresql]

10,000 rows are written into MLflow's tables; all of them name the artifacts of one version that was really
registered. The 100 models that an endpoint starts with are registered one by one. What was asked: a page
of the list in under 1 s, an alias move seen in under 5 s, a start in at most 30 s with Ray and 8 s on a
running Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.cells import Cells, machine
from metainit import checkpoint
from metainit.card import Card, Method

if TYPE_CHECKING:
    from pipelines.registry import Registry

SHAPES = {"100 names x 100 versions": (100, 100), "10,000 names x 1 version": (10_000, 1)}
ROUNDS = 5
MODELS = 100
_ROWS = 20_000


def folder_of(folder: Path, name: str, seed: int, elements: int = 25_000) -> Path:
    """Write a folder as a run ends with: 100 kB of weights and evidence with a headline."""
    tensors = {"w": torch.randn(elements, generator=torch.Generator().manual_seed(seed))}
    card = Card(kind="prior", name=name, method=Method(name="reptile"))
    checkpoint.save(folder / "checkpoint.safetensors", tensors, card)
    headline = {"metric": "psnr", "steps": 2, "value": 31.2, "control": "siren", "control_value": 23.7}
    headline |= {"gain": 7.5, "low": 7.1, "high": 7.9, "tasks": 64, "seeds": 3}
    (folder / "evidence.json").write_text(json.dumps({"headline": headline}))
    return folder


def fill(uri: str, names: int, each: int, folder: Path) -> Registry:
    """Return a registry with so many names and versions, of which one was really registered."""
    import sqlalchemy
    from mlflow.store.model_registry.dbmodels import models

    from pipelines.registry import FORMAT, FORMAT_TAG, Registry

    registry = Registry(uri)
    real = registry.register(folder_of(folder / "real", "real", 0), "real")
    source = registry.connection.client.get_model_version_download_uri("real", "1")
    past = int(time.time() * 1000) - 86_400_000
    listed = [f"model-{number:05d}" for number in range(names)]
    versions = [(name, number + 1) for name in listed for number in range(each)]
    fixed = {"creation_time": past, "last_updated_time": past}
    tables: list[tuple[Any, list[dict[str, Any]]]] = [
        (models.SqlRegisteredModel, [{"name": name, **fixed} for name in listed]),
        (
            models.SqlRegisteredModelTag,
            [{"name": name, "key": FORMAT_TAG, "value": FORMAT} for name in listed],
        ),
        (
            models.SqlModelVersion,
            [
                {"name": n, "version": v, "source": source, "run_id": uuid.uuid4().hex, **fixed}
                | {"storage_location": source, "current_stage": "None", "status": "READY"}
                for n, v in versions
            ],
        ),
        (
            models.SqlModelVersionTag,
            [
                {"name": n, "version": v, "key": key, "value": value}
                for n, v in versions
                for key, value in real.tags.items()
            ],
        ),
        (
            models.SqlRegisteredModelAlias,
            [{"name": name, "alias": "champion", "version": each} for name in listed],
        ),
    ]
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as transaction:
        for table, rows in tables:
            for start in range(0, len(rows), _ROWS):
                transaction.execute(sqlalchemy.insert(table), rows[start : start + _ROWS])
    engine.dispose()
    return registry


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """Yield the address of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/mlflow.db"
        return
    from tests.pipelines.postgres import postgres

    with postgres() as address:
        yield address


def seconds(action: Callable[[], Any], rounds: int = ROUNDS) -> dict[str, float]:
    """Return median and worst wall-clock seconds of an action."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        action()
        took.append(time.perf_counter() - began)
    return {"median": statistics.median(took), "worst": max(took)}


def looks(kind: str, names: int, each: int) -> dict[str, Any]:
    """Time looks: the first, one that finds nothing, a listing, and one that finds an alias that moved."""
    from pipelines import following

    with tempfile.TemporaryDirectory() as temporary, database(kind, Path(temporary)) as uri:
        registry = fill(uri, names, each, Path(temporary))
        began = time.perf_counter()
        seen = following.look(registry)
        first = time.perf_counter() - began
        assert sum(len(known.versions) for known in seen.names.values()) == names * each + 1
        listed, following.SHARE = following.SHARE, 1e-9
        nothing = seconds(lambda: following.look(registry, seen))
        moved = []
        for number in range(ROUNDS):
            registry.point("model-00007", f"mine-{number}", each)
            began = time.perf_counter()
            seen = following.look(registry, seen)
            moved.append(time.perf_counter() - began)
            assert f"mine-{number}" in seen.names["model-00007"].aliases
        following.SHARE = 1e9
        listing = seconds(lambda: following.look(registry, seen), 2)
        following.SHARE = listed
    finding = {"median": statistics.median(moved), "worst": max(moved)}
    return {"first": first, "nothing new": nothing, "alias moved": finding, "listing": listing, **machine()}


def pages(kind: str, names: int, each: int) -> dict[str, Any]:
    """Time pages of the list in process and over loopback, and how long an alias move takes to be served."""
    import httpx
    import uvicorn

    from pipelines.registry import Registry
    from serving.app import create_app
    from serving.haproxy import free_port
    from serving.late import LateRegistry
    from serving.looking import following
    from serving.store import Store

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        registry = fill(stack.enter_context(database(kind, folder)), names, each, folder)

        def opened() -> Registry:
            return Registry(registry.uri)

        store = Store(LateRegistry(opened), folder / "store", look=following(opened))
        server = uvicorn.Server(uvicorn.Config(create_app(store), port=free_port(), log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        began = time.perf_counter()
        thread.start()
        with httpx.Client(base_url=f"http://127.0.0.1:{server.config.port}", timeout=120) as http:
            while not server.started:
                time.sleep(0.05)
            ready = time.perf_counter() - began
            answers = {
                f"page of {limit}": seconds(
                    lambda n=limit: http.get(f"/v1/inits?limit={n}").raise_for_status()
                )
                for limit in (50, 200)
            }
            size = len(http.get("/v1/inits?limit=200").content)
            last = http.get(f"/v1/inits?limit=200&after=model-{max(names - 100, 0):05d}").json()
            assert last["next"] is None
            name = f"model-{names - 1:05d}"
            seen = []
            for number in range(3):
                registry.point(name, f"mine-{number}", each)
                began = time.perf_counter()
                while http.get(f"/v1/inits/{name}@mine-{number}").status_code != 200:
                    time.sleep(0.02)
                seen.append(time.perf_counter() - began)
        server.should_exit = True
        thread.join(30)
    moves = {"alias served after": {"median": statistics.median(seen), "worst": max(seen)}}
    return {"ready": ready, **answers, "bytes of 200": size, **moves, **machine()}


def start(program: str, *arguments: str) -> dict[str, Any]:
    """Time a start in a process of its own, with a registry of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"METAINIT_HOME": temporary, "PYTHONPATH": os.getcwd()}
        environment.pop("MLFLOW_TRACKING_URI", None)
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-4000:])
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result | machine()


_START = """
import json, re, sys, tempfile, time
from pathlib import Path
import httpx
from benchmarks.endpoint_registry import folder_of
from pipelines.registry import Registry
from serving import deployments
from serving.haproxy import free_port

registry = Registry()
for number in range(int(sys.argv[2])):
    name = f"model-{number:03d}"
    with tempfile.TemporaryDirectory() as folder:
        version = registry.register(folder_of(Path(folder), name, number), name)
    registry.point(version.name, "champion", 1)
prepared = None
if sys.argv[1] == "1":
    prepared = deployments.prepare()
    deployments._ensure_ray()
began = time.perf_counter()
with deployments.start(port=free_port(), prepared=prepared) as endpoint:
    ready = time.perf_counter() - began
    with httpx.Client(base_url=endpoint.url, timeout=30) as http:
        listed = len(http.get("/v1/inits?limit=200").json()["items"])
        answer = http.get("/v1/inits/model-099/weights").raise_for_status()
        first = time.perf_counter() - began
        while " 100.0" not in re.findall("metainit_pulled.*", http.get("/metrics").text)[-1]:
            time.sleep(0.2)
        brought = time.perf_counter() - began
print(json.dumps({"ready": ready, "first weights": first, "all at hand": brought, "listed": listed,
                  "laps": endpoint.seconds}))
"""

_EMPTY = """
import json, time
import httpx
from benchmarks.endpoint_lookups import empty_app
from serving import deployments
from serving.haproxy import free_port

deployments.prepare()
deployments._ensure_ray()
port, began = free_port(), time.perf_counter()
from ray import serve
from ray.serve.config import HTTPOptions, ProxyLocation
serve.start(proxy_location=ProxyLocation.HeadOnly, http_options=HTTPOptions(host="127.0.0.1", port=port),
            logging_config={"log_level": "WARNING", "enable_access_log": False})
started = time.perf_counter() - began
serve.run_many([serve.RunTarget(empty_app(), name="empty", route_prefix="/")],
               wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
while True:
    try:
        if httpx.get(f"http://127.0.0.1:{port}/").status_code == 200:
            break
    except httpx.TransportError:
        pass
    time.sleep(0.1)
ready = time.perf_counter() - began
serve.shutdown()
print(json.dumps({"ready": ready, "laps": {"serve": started}}))
"""
"""What Serve itself takes to answer the first request of an application that does nothing."""


def main() -> None:
    """Compute what is missing and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("looks", "pages", "start"))
    parser.add_argument("--shape", choices=SHAPES, action="append", help="all unless given")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    cells = Cells("endpoint")
    parts = (options.part,) if options.part else ("looks", "pages", "start")
    for part in parts:
        if part == "start":
            for running in (False, True):
                where = "on a running Ray" if running else "with Ray"
                cells.cell(
                    f"start/100 models, {where}",
                    lambda r=running: start(_START, str(int(r)), str(MODELS)),
                )
            cells.cell("start/empty application, on a running Ray", lambda: start(_EMPTY))
            continue
        compute = looks if part == "looks" else pages
        for shape in options.shape or SHAPES:
            names, each = SHAPES[shape]
            cells.cell(
                f"registry/{part}, {shape}, {options.database}",
                lambda n=names, e=each, f=compute: f(options.database, n, e),
            )
    for name, value in sorted(cells.values.items()):
        if name.startswith(("registry/", "start/")):
            print(name, json.dumps(value))


if __name__ == "__main__":
    main()
