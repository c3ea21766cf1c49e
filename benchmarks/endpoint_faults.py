"""Faults under load: what clients with their own retries notice of each, and how long.

The registry is an MLflow server that keeps the artifacts too. Every fault has its own minute (`seconds`): a
fifth of it passes, the fault comes, it is mended at three fifths where it does not heal itself. Clients of
`metainit.Client` fetch and look up without a pause longer than 50 ms; they try at most four times and wait at
most ten seconds in all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.cells import Cells, machine
from benchmarks.endpoint_servers import PATIENCE, REPLICA, ROOT, memory, mlflow_server, processes, programs
from benchmarks.endpoint_watch import RETRY, Record, Watched
from metainit import checkpoint
from metainit.card import Card, Method
from metainit.client import Client
from metainit.errors import MetainitError
from metainit.transfer import file_sha256

NAME = "load"
SMALL, LARGE = 500_000, 16_000_000
"""Float32 elements of a checkpoint: 2 MB, and 64 MB where a download has to last."""
THREADS = 4
DISK_BYTES = 400 << 20
SLOW_SOCKETS = 200


@dataclass
class Rig:
    """What a fault acts on: the endpoint, its registry, and the versions that were registered."""

    folder: Path
    port: int
    registry_port: int
    endpoint: Any = None
    registry: ExitStack = field(default_factory=ExitStack)
    registered: int = 0
    digests: dict[int, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Address of the endpoint."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def registry_uri(self) -> str:
        """Address of the registry."""
        return f"http://127.0.0.1:{self.registry_port}"

    @property
    def artifacts(self) -> Path:
        """Where the registry keeps its files."""
        return self.folder / "registry" / "artifacts"

    @property
    def store(self) -> Path:
        """The endpoint's own copies, on a disk of their own where that can be had."""
        return self.folder / "disk" / "store"

    def start_registry(self) -> None:
        """Start the MLflow server."""
        (self.folder / "registry").mkdir(exist_ok=True)
        self.registry.enter_context(mlflow_server(self.folder / "registry", self.registry_port, workers=1))

    def start(self) -> None:
        """Start the endpoint in the Ray that runs."""
        from serving.deployments import start

        self.endpoint = start(
            port=self.port, registry_uri=self.registry_uri, cache=self.store, poll=1.0, patience=PATIENCE
        )

    def register(self, elements: int = SMALL) -> Any:
        """Register a new version and return it; no alias points there yet."""
        from pipelines.registry import Registry

        self.registered += 1
        card = Card(kind="prior", name=NAME, method=Method(name="none"))
        generator = torch.Generator().manual_seed(self.registered)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder) / "checkpoint.safetensors"
            checkpoint.save(path, {"w": torch.randn(elements, generator=generator)}, card)
            version = Registry(self.registry_uri).register(Path(folder), NAME)
            self.digests[version.version] = file_sha256(path)
        return version

    def crown(self, version: Any) -> None:
        """Make a version the champion."""
        from pipelines.registry import Registry

        Registry(self.registry_uri).set_alias(version, "champion")

    def served(self) -> str:
        """Return the checksum that the champion has on the endpoint now, or nothing."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.head(f"{self.url}/v1/inits/{NAME}@champion/weights", timeout=5)
            return answer.headers.get("etag", "").strip('"')
        return ""

    def until_served(self, version: Any, patience: float) -> float | None:
        """Wait until a version is the champion on the endpoint; return the seconds, or None."""
        began = time.monotonic()
        while time.monotonic() - began < patience:
            if self.served() == self.digests[version.version]:
                return time.monotonic() - began
            time.sleep(0.1)
        return None


@contextmanager
def rig() -> Iterator[Rig]:
    """Start Ray, registry and endpoint with one version; everything is stopped and deleted behind it."""
    import ray

    from serving.deployments import prepare
    from serving.haproxy import free_port

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mi-")))
        os.environ["METAINIT_HOME"] = str(folder / "home")
        os.environ["PYTHONPATH"] = str(ROOT)
        for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
            os.environ.pop(name, None)
        (folder / "disk").mkdir()
        if _mounted(folder / "disk"):
            stack.callback(subprocess.run, ["umount", "-l", str(folder / "disk")], check=True)
        made = Rig(folder, free_port(), free_port())
        stack.callback(made.registry.close)
        made.start_registry()
        made.crown(made.register())
        fast = prepare()
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=100 << 20,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _system_config={"worker_niceness": 0},  # as `start` does where it starts Ray itself
        )
        stack.callback(ray.shutdown)
        if fast is not None:
            stack.callback(fast.remove)
        made.start()
        stack.callback(lambda: made.endpoint.stop())
        yield made


def _mounted(folder: Path) -> bool:
    """Mount a small disk in memory, where this user may."""
    if os.getuid() != 0 or shutil.which("mount") is None:
        return False
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True).returncode == 0


def hammer(rig: Rig, record: Record, stop: threading.Event, pace: float, kind: int) -> None:
    """Fetch what the champion is, anew each time, or look it up, until `stop`; write down what came."""
    folder = rig.folder / f"client-{kind}-{threading.get_ident()}"
    inner = httpx.HTTPTransport(verify=False)
    transport = Watched(inner, record, pace)
    while not stop.is_set():
        began = time.monotonic()
        try:
            with Client(rig.url, transport=transport, retry=RETRY, cache=folder) as client:
                if kind % 2 == 0:
                    came = file_sha256(client.fetch(f"{NAME}@champion"))
                else:
                    came = client.show(f"{NAME}@champion")["sha256"]
            record.done(time.monotonic() - began, came, right=came in rig.digests.values())
        except MetainitError as error:
            record.failed(time.monotonic() - began, str(error))
        shutil.rmtree(folder, ignore_errors=True)
        stop.wait(0.05)
    inner.close()


@contextmanager
def loaded(rig: Rig, record: Record, pace: float) -> Iterator[None]:
    """Keep the clients going during the block."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=hammer, args=(rig, record, stop, pace, kind), daemon=True)
        for kind in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


Fault = Callable[[Rig, float], dict[str, Any]]
"""Does the harm, mends it where it has to be, within about so many seconds; returns what else it saw."""


def registry_gone(rig: Rig, seconds: float) -> dict[str, Any]:
    """The registry's server is stopped, and started again."""
    rig.registry.close()
    time.sleep(seconds / 2)
    ready = httpx.get(f"{rig.url}/readyz", timeout=30).json()
    rig.registry = ExitStack()
    rig.start_registry()
    return {"said stale": ready["stale"]}


def artifacts_gone(rig: Rig, seconds: float) -> dict[str, Any]:
    """A new champion is named whose files the artifact store has lost for a while."""
    version = rig.register()
    away = rig.artifacts.with_name("away")
    rig.artifacts.rename(away)
    rig.crown(version)
    time.sleep(seconds / 2)
    kept = rig.served() in rig.digests.values() and rig.served() != rig.digests[version.version]
    if rig.artifacts.exists():
        shutil.rmtree(rig.artifacts)
    away.rename(rig.artifacts)
    return {"previous kept": kept, "new champion after": rig.until_served(version, 90)}


def replica_killed(rig: Rig, seconds: float) -> dict[str, Any]:
    """The replica's process is killed."""
    (replica,) = processes(REPLICA)
    replica.kill()
    return {}


def haproxy_killed(rig: Rig, seconds: float) -> dict[str, Any]:
    """The proxy's process is killed."""
    killed = programs("haproxy")
    for process in killed:
        process.kill()
    return {"killed": len(killed)}


def proxy_actor_killed(rig: Rig, seconds: float) -> dict[str, Any]:
    """The Ray worker that keeps the proxy is killed."""
    killed = [*processes("ray::HAProxyManager"), *processes("ray::ProxyActor")]
    for process in killed:
        process.kill()
    return {"killed": len(killed)}


def disk_full(rig: Rig, seconds: float) -> dict[str, Any]:
    """The endpoint's disk fills up before a new champion comes, and is freed."""
    filler = rig.folder / "disk" / "filler"
    if not os.path.ismount(filler.parent):
        return {"skipped": "no disk of its own could be mounted"}
    with filler.open("wb") as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * (1 << 20))
            stream.flush()
    version = rig.register()
    rig.crown(version)
    time.sleep(seconds / 2)
    kept = rig.served() in rig.digests.values() and rig.served() != rig.digests[version.version]
    filler.unlink()
    return {"previous kept": kept, "new champion after": rig.until_served(version, 90)}


def corrupt_champion(rig: Rig, seconds: float) -> dict[str, Any]:
    """A version whose file was damaged in the artifact store becomes the champion; a good one follows."""
    before = {path for path in rig.artifacts.rglob("checkpoint.safetensors")}
    version = rig.register()
    (path,) = {path for path in rig.artifacts.rglob("checkpoint.safetensors")} - before
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    del rig.digests[version.version]  # its bytes are wrong from now on
    rig.crown(version)
    began, quarantined = time.monotonic(), {}
    while not quarantined and time.monotonic() - began < seconds + 30:
        time.sleep(0.2)
        quarantined = httpx.get(f"{rig.url}/readyz", timeout=30).json()["quarantined"]
    time.sleep(max(0.0, seconds / 2 - (time.monotonic() - began)))
    kept = rig.served() in rig.digests.values()
    good = rig.register()
    rig.crown(good)
    return {
        "previous kept": kept,
        "quarantined": sorted(quarantined),
        "new champion after": rig.until_served(good, 90),
    }


def slow_clients(rig: Rig, seconds: float) -> dict[str, Any]:
    """Many sockets ask for a large file and read a byte a second."""
    (replica,) = processes(REPLICA)
    before = memory(replica)["now"]
    sockets = []
    request = f"GET /v1/inits/{NAME}@champion/weights HTTP/1.1\r\nHost: endpoint\r\n\r\n".encode()
    for _ in range(SLOW_SOCKETS):
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(5)
        slow.connect(("127.0.0.1", rig.port))
        slow.sendall(request)
        slow.setblocking(False)
        sockets.append(slow)
    began = time.monotonic()
    highest, ended = before, set[int]()
    while time.monotonic() - began < seconds:
        for number, slow in enumerate(sockets):
            with contextlib.suppress(BlockingIOError):
                try:
                    if slow.recv(1) == b"":
                        ended.add(number)
                except ConnectionError:
                    ended.add(number)
        highest = max(highest, memory(replica)["now"])
        time.sleep(1)
    for slow in sockets:
        slow.close()
    return {"sockets": len(sockets), "ended by the endpoint": len(ended), "grown MB": highest - before}


def restarted(rig: Rig, seconds: float) -> dict[str, Any]:
    """The endpoint is stopped while downloads run, and started again in the same Ray."""
    began = time.monotonic()
    rig.endpoint.stop()
    stopped = time.monotonic() - began
    rig.start()
    return {"stop": stopped, "start": rig.endpoint.seconds}


FAULTS: dict[str, Fault] = {
    "registry gone": registry_gone,
    "artifact store gone": artifacts_gone,
    "replica killed": replica_killed,
    "HAProxy killed": haproxy_killed,
    "proxy's worker killed": proxy_actor_killed,
    "disk full": disk_full,
    "corrupt champion": corrupt_champion,
    "slow clients": slow_clients,
    "restart in downloads": restarted,
}
LONG = ("slow clients", "restart in downloads")
"""Faults that want downloads which take a while."""
PACE = 32e6
"""Bytes a second at which a client takes a long download."""


def settle(rig: Rig, patience: float = 120.0) -> None:
    """Wait until ten look-ups in a row are answered: a fault is not to suffer from the one before.

    Raises:
        RuntimeError: that does not come about.
    """
    began, good = time.monotonic(), 0
    while good < 10:
        if time.monotonic() - began > patience:
            raise RuntimeError(f"{rig.url} does not recover within {patience:.0f} s")
        good = good + 1 if rig.served() in rig.digests.values() else 0
        time.sleep(0.2)


def measure(rig: Rig, name: str, seconds: float) -> dict[str, Any]:
    """Load the endpoint, do one fault, and return what the clients saw of it."""
    settle(rig)
    if name in LONG:
        version = rig.register(LARGE)
        rig.crown(version)
        rig.until_served(version, 90)
    record = Record()
    load, began, cpu = round(os.getloadavg()[0], 2), time.monotonic(), time.process_time()
    with loaded(rig, record, PACE if name in LONG else 0.0):
        time.sleep(seconds / 5)
        record.fault = time.monotonic()
        seen = FAULTS[name](rig, seconds * 2 / 5)
        time.sleep(max(seconds * 4 / 5 - (time.monotonic() - record.fault), seconds / 5))
    wall = time.monotonic() - began
    return {
        "load": load,
        "seconds": wall,
        "share": (time.process_time() - cpu) / wall / (os.cpu_count() or 1),
        **record.summary(),
        "lost versions": _lost_once_settled(rig),
        **seen,
    }


def _lost_once_settled(rig: Rig) -> list[int]:
    settle(rig)
    return lost(rig)


def lost(rig: Rig) -> list[int]:
    """Return the registered versions that the endpoint does not give, or not right."""
    missing = []
    with tempfile.TemporaryDirectory(dir=rig.folder) as folder:
        with Client(rig.url, retry=RETRY, cache=Path(folder)) as client:
            for number, digest in rig.digests.items():
                try:
                    if file_sha256(client.fetch(f"{NAME}/{number}")) != digest:
                        missing.append(number)
                except MetainitError as error:
                    print(f"{NAME}/{number} is lost: {error}", file=sys.stderr)
                    missing.append(number)
    return missing


def run(cells: Cells, seconds: float, names: list[str]) -> None:
    """Measure what is not there yet: a cell is a fault."""
    wanted = [name for name in names if f"faults/{name}" not in cells.values]
    if not wanted:
        return
    with rig() as made:
        cells.cell("faults/machine", machine)
        for name in wanted:
            cells.cell(f"faults/{name}", lambda name=name: measure(made, name, seconds))
