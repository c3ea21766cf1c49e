"""Throughput of weights through the endpoint beside plain uvicorn and the limit of the machine.

python -m benchmarks.endpoint [--rounds 9]

All servers run at once; one client on one connection fetches from one after the other, in an order
that changes with each round. A cell is a round, and ratios are taken within rounds. The limit is a
thread that calls `sendfile`: no Python touches the bytes.
"""

from __future__ import annotations

import argparse
import http.client
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import Cells, machine
from metainit import checkpoint
from metainit.card import Card, Method

SIZES = {"1 MB": 250_000, "100 MB": 25_000_000}
"""Name of a size -> float32 elements."""
REQUESTS = {"1 MB": 150, "100 MB": 4}
TARGETS = ("uvicorn", "endpoint", "sendfile")
ROOT = Path(__file__).parents[1]
Addresses = dict[tuple[str, str], tuple[int, str]]


def fetch(port: int, path: str, times: int, size: int, buffer: memoryview) -> float:
    """Return megabytes (10^6 bytes) a second of `times` fetches over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)  # opens the connection and warms the page cache
    _drain(connection.getresponse(), buffer, size)
    began = time.perf_counter()
    for _ in range(times):
        connection.request("GET", path)
        _drain(connection.getresponse(), buffer, size)
    seconds = time.perf_counter() - began
    connection.close()
    return times * size / seconds / 1e6


def _drain(answer: http.client.HTTPResponse, buffer: memoryview, size: int) -> None:
    total = 0
    while count := answer.readinto(buffer):
        total += count
    if answer.status != 200 or total != size:
        raise RuntimeError(f"got {answer.status} with {total} bytes, expected 200 with {size}")


def copy_speed(size: int = 100_000_000) -> float:
    """Return megabytes a second of copying memory."""
    source, target = memoryview(bytearray(size)), memoryview(bytearray(size))
    times = []
    for _ in range(5):
        began = time.perf_counter()
        target[:] = source
        times.append(time.perf_counter() - began)
    return size / statistics.median(times) / 1e6


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Addresses, dict[str, int], dict[str, float]]]:
    """Start every server over the same files; give addresses by (size, target), and sizes."""
    from serving.deployments import start
    from serving.haproxy import free_port

    os.environ["METAINIT_HOME"] = str(folder / "home")
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    files = [_register(folder / name.replace(" ", ""), SIZES[name]) for name in SIZES]
    with ExitStack() as stack:
        ports = {}
        for kind in ("uvicorn", "sendfile"):
            ports[kind] = free_port()
            command = [sys.executable, "-m", "benchmarks.plain_servers", kind, str(ports[kind])]
            process = subprocess.Popen([*command, *map(str, files)], cwd=ROOT)
            stack.callback(process.wait, 10)
            stack.callback(process.terminate)
        endpoint = stack.enter_context(start(port=free_port(), poll=2.0))
        ports["endpoint"] = int(endpoint.url.rsplit(":", 1)[1])
        addresses: Addresses = {}
        for number, name in enumerate(SIZES):
            weights = f"/v1/inits/bench-{name.replace(' ', '')}/weights"
            for target in TARGETS:
                path = weights if target == "endpoint" else f"/{number}"
                addresses[name, target] = (ports[target], path)
        sizes = {name: file.stat().st_size for name, file in zip(SIZES, files, strict=True)}
        yield addresses, sizes, endpoint.seconds


def _register(folder: Path, elements: int) -> Path:
    from pipelines.registry import Registry

    name = f"bench-{folder.name}"
    card = Card(kind="prior", name=name, method=Method(name="none"))
    path = folder / "checkpoint.safetensors"
    checkpoint.save(path, {"w": torch.randn(elements, generator=torch.Generator())}, card)
    Registry().register(folder, name)
    return path


def run(rounds: int) -> Cells:
    """Measure what is not there yet."""
    cells = Cells("endpoint")
    names = [f"{size}, round {number}" for size in SIZES for number in range(rounds)]
    if all(name in cells.values for name in names):
        return cells
    buffer = memoryview(bytearray(1 << 20))
    with (
        tempfile.TemporaryDirectory() as folder,
        servers(Path(folder)) as (addresses, sizes, seconds),
    ):
        cells.cell("machine", machine)
        cells.cell("memory copy, MB/s", copy_speed)
        cells.cell("start-up, seconds", lambda: seconds)
        for number in range(rounds):
            for size in SIZES:

                def measure(size: str = size, number: int = number) -> dict[str, Any]:
                    shift = number % len(TARGETS)
                    load = round(os.getloadavg()[0], 2)
                    speeds = {}
                    for target in (*TARGETS[shift:], *TARGETS[:shift]):
                        port, path = addresses[size, target]
                        speeds[target] = fetch(port, path, REQUESTS[size], sizes[size], buffer)
                    return {"load": load, **speeds}

                cells.cell(f"{size}, round {number}", measure)
    return cells


def table(cells: Cells) -> str:
    """Return the results as a markdown table: medians over rounds, ratios within rounds."""
    lines = [
        "| weights | server | MB/s, median (min to max) | ratio to uvicorn FileResponse |",
        "|---|---|---|---|",
    ]
    for size in SIZES:
        rounds = [value for name, value in cells.values.items() if name.startswith(f"{size}, round")]
        for target in TARGETS:
            speeds = [value[target] for value in rounds]
            ratios = [value[target] / value["uvicorn"] for value in rounds]
            lines.append(f"| {size} | {target} | {_spread(speeds, 0)} | {_spread(ratios, 2)} |")
    copied = cells.values["memory copy, MB/s"]
    seconds = cells.values["start-up, seconds"]
    return "\n".join(
        [
            *lines,
            f"\nA copy of memory runs at {copied:.0f} MB/s. Start-up in seconds: {seconds}.",
            f"Machine: {cells.values['machine']}.",
        ]
    )


def _spread(values: Sequence[float], digits: int) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    print(table(run(parser.parse_args().rounds)))


if __name__ == "__main__":
    main()
