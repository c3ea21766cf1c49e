"""Ray clusters of several nodes on this machine: each node a `ray start` of its own, which can be killed."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
HEAD = "127.0.1.1"
"""Every node has an address of its own on the loopback interface (Ray takes 127.0.0.1 for the machine's)."""
START_SECONDS, STOP_SECONDS = 120.0, 30.0
START_ATTEMPTS = 3


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def answers(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def wait_for(what: Callable[[], bool], seconds: float, failed: Callable[[], str]) -> None:
    """Wait until `what` holds; past the time, fail with what `failed` says."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, failed()
        time.sleep(0.2)


def descendants(pid: int) -> dict[int, str]:
    """Return the processes below `pid` and their command lines."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    found: dict[int, str] = {}
    for child in parents:
        above = child
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and child != pid:
            try:
                found[child] = (Path("/proc") / str(child) / "cmdline").read_text()
            except OSError:
                continue
    return found


@dataclass
class Node:
    """One node: the `ray start --block` that all its processes are below."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def up(self) -> bool:
        """Whether the node has joined its cluster."""
        return not self.ended and "Ray runtime started" in self.log.read_text()

    @property
    def ended(self) -> bool:
        """Whether the command has ended."""
        return self.process.poll() is not None

    def has(self, name: str) -> bool:
        """Whether a process of this name, such as a training worker, lives on the node."""
        return any(name in line for line in descendants(self.process.pid).values())

    def kill(self) -> None:
        """End every process of the node at once, as a machine that loses its power does."""
        whole = [self.process.pid, *descendants(self.process.pid)]
        for pid in whole:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait(timeout=STOP_SECONDS)

    def stop(self) -> None:
        """End the node as its own command does."""
        if self.process.poll() is None:
            below = descendants(self.process.pid)
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
            for pid in below:
                if (Path("/proc") / str(pid)).exists():
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue


@dataclass
class Cluster:
    """A head, which runs no workers unless it is given CPUs, and the nodes that have joined it."""

    folder: Path
    short: Path
    address: str
    gcs: str
    token: Path
    environment: Mapping[str, str]
    nodes: list[Node] = field(default_factory=list)

    def join(self, cpus: int = 1) -> Node:
        """Start one more node."""
        host = f"127.0.1.{len(self.nodes) + 2}"
        return self.start(f"--address={self.gcs}", f"--num-cpus={cpus}", f"--node-ip-address={host}")

    def start(self, *options: str) -> Node:
        """Start a node, the head first; one that a busy machine has not brought up in time is tried again.

        Every node has a temporary folder of its own, as every machine has: in one that they shared, each
        would put its own copy of a job's files in the place of the others'.
        """
        for attempt in range(START_ATTEMPTS):
            name = f"{len(self.nodes)}.{attempt}"
            log = self.folder / f"node-{name}.log"
            words = ["start", *options, f"--temp-dir={self.short / name}", "--object-store-memory=100000000"]
            with log.open("wb") as stream:
                process = subprocess.Popen(
                    [str(BIN / "ray"), *words, "--block", "--disable-usage-stats"],
                    env=dict(self.environment),
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    cwd=self.folder,
                )
            node = Node(process, log)
            try:
                wait_for(lambda node=node: node.up or node.ended, START_SECONDS, log.read_text)
            except AssertionError:
                node.kill()
            if node.up:
                self.nodes.append(node)
                return node
        raise AssertionError(log.read_text())


@contextmanager
def cluster(
    folder: Path, nodes: int = 0, *, head_cpus: int = 0, cpus: int = 1, **environment: str
) -> Iterator[Cluster]:
    """Start a head and `nodes` nodes of `cpus` CPUs each, all on the loopback interface; stop them after."""
    folder.mkdir(parents=True, exist_ok=True)
    port, dashboard = free_ports(2)
    token = folder / "token"
    token.write_text(secrets.token_hex(16))
    whole = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",  # at Ray's 15 a busy machine leaves workers next to nothing
        "METAINIT_HOME": str(folder / "home"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **environment,
    }
    # A socket's path has at most 107 characters, and Ray's own part of it is long.
    with tempfile.TemporaryDirectory(prefix="mi-", dir="/tmp", ignore_cleanup_errors=True) as short:
        made = Cluster(folder, Path(short), f"http://127.0.0.1:{dashboard}", f"{HEAD}:{port}", token, whole)
        try:
            made.start(
                "--head",
                f"--num-cpus={head_cpus}",
                f"--port={port}",
                f"--dashboard-port={dashboard}",
                f"--node-ip-address={HEAD}",
            )
            for _ in range(nodes):
                made.join(cpus)
            wait_for(lambda: answers(dashboard), START_SECONDS, made.nodes[0].log.read_text)
            yield made
        finally:
            for node in reversed(made.nodes):
                node.stop()
