"""The load on an endpoint: a reader of large answers in this process, and `wrk` for small ones.

python -m benchmarks.endpoint_load PORT PATH SIZE FETCHES CLIENTS

The reader keeps a number of connections busy, each asking again once its answer is complete, and throws the
bytes away: about three system calls a megabyte. It runs in a process of its own that imports nothing else, so
that its share of the machine can be told from the servers'.
"""

from __future__ import annotations

import json
import os
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

BUFFER_BYTES = 1 << 20
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RATE = re.compile(r"Requests/sec: *([0-9.]+)")
_BAD = re.compile(r"Non-2xx or 3xx responses: *(\d+)|Socket errors: (.*)")


@dataclass(frozen=True)
class Load:
    """What a run of the reader saw: 10^6 bytes a second, latencies in ms, its share of the cores."""

    rate: float
    p50: float
    p99: float
    share: float


@dataclass
class _Connection:
    """One connection: what is still to come of its answer; -1 says that the head has not come yet."""

    socket: socket.socket
    left: int = -1
    head: bytes = b""
    asked: float = 0.0


def read(port: int, path: str, size: int, fetches: int, clients: int) -> Load:
    """Fetch a file of `size` bytes `fetches` times over `clients` connections.

    Raises:
        RuntimeError: an answer is not 200, or of another size.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    buffer, latencies = memoryview(bytearray(BUFFER_BYTES)), list[float]()
    with ExitStack() as stack:
        connections = [
            _Connection(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60)))
            for _ in range(clients)
        ]
        selector = stack.enter_context(selectors.DefaultSelector())
        wall, cpu, started = time.perf_counter(), time.process_time(), 0
        for connection in connections[:fetches]:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            _ask(connection, request)
            started += 1
        while len(latencies) < fetches:
            ready = selector.select(timeout=60)
            if not ready:
                raise RuntimeError(f"port {port} sent nothing for a minute")
            for key, _ in ready:
                if not _take(key.data, buffer, size):
                    continue
                latencies.append(time.perf_counter() - key.data.asked)
                if started < fetches:
                    _ask(key.data, request)
                    started += 1
        seconds, spent = time.perf_counter() - wall, time.process_time() - cpu
    p50, p99 = (1e3 * quantile(latencies, q) for q in (0.5, 0.99))
    return Load(fetches * size / seconds / 1e6, p50, p99, share(spent, seconds))


def _ask(connection: _Connection, request: bytes) -> None:
    connection.left, connection.head, connection.asked = -1, b"", time.perf_counter()
    connection.socket.sendall(request)


def _take(connection: _Connection, buffer: memoryview, size: int) -> bool:
    """Take what has come; return whether the answer is complete."""
    count = connection.socket.recv_into(buffer)
    if count == 0:
        raise RuntimeError(f"the connection ended with {connection.left} bytes to come")
    if connection.left < 0:
        connection.head += bytes(buffer[:count])
        head, found, body = connection.head.partition(b"\r\n\r\n")
        if not found:
            return False
        length = _LENGTH.search(head)
        if b" 200 " not in head[:16] or length is None or int(length[1]) != size:
            raise RuntimeError(f"expected 200 with {size} bytes, got {head[:400]!r}")
        connection.left, count = size, len(body)
    connection.left -= count
    return connection.left == 0


def quantile(values: list[float], q: float) -> float:
    """Return the value below which a share `q` of the values lies, by nearest rank.

    Example:
        >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([3.0, 1.0, 2.0], 0.99)
        (2.0, 3.0)
    """
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def share(cpu: float, wall: float) -> float:
    """Return the share of the machine's cores that `cpu` seconds in `wall` seconds are."""
    return cpu / wall / (os.cpu_count() or 1)


def read_apart(port: int, path: str, size: int, fetches: int, clients: int) -> dict[str, Any]:
    """Run the reader in a process of its own and return its `Load` as a JSON value."""
    numbers = [str(size), str(fetches), str(clients)]
    command = [sys.executable, "-m", "benchmarks.endpoint_load", str(port), path, *numbers]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    load: dict[str, Any] = json.loads(done.stdout)
    return load


def wrk(port: int, path: str, seconds: float, clients: int, headers: dict[str, str]) -> dict[str, Any]:
    """Ask for a small answer as often as it comes; return requests a second and the share of `wrk`.

    Raises:
        RuntimeError: there is no `wrk` (Debian package wrk), or an answer was bad.
    """
    program = shutil.which("wrk")
    if program is None:
        raise RuntimeError("no wrk on the path; install the package of that name")
    command = [program, "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "--timeout", "30s"]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    before = _children()
    began = time.perf_counter()
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{path}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    wall, spent = time.perf_counter() - began, _children() - before
    rate, bad = _RATE.search(done.stdout), _BAD.search(done.stdout)
    if rate is None or bad is not None:
        raise RuntimeError(f"{path} was not answered well: {done.stdout}")
    return {"rate": float(rate[1]), "share": share(spent, wall)}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    place, where, *rest = sys.argv[1:]
    print(json.dumps(asdict(read(int(place), where, *map(int, rest)))))
