"""Throughput of predictions for 16 clients at once: orders answered in batches beside one by one.

python -m benchmarks.endpoint_predict [--rounds 3] [--serve]

What is measured is the endpoint's own path without its HTTP: the limits and the kept answers
(`Predicting`), one worker with one thread, in this process or on Ray Serve, and a folder on the disk.
Every prediction is a new one: the clients want weights for a ResNet-18 (11.7 million parameters),
each with seeds of its own. The second kind of load, in which every client has another network of that
size, shows what batches cannot do. Batches and single orders take turns within a round, and ratios are
taken within rounds, of seconds and of CPU seconds: those of a busy machine say more. On Serve the worker's
CPU seconds are not among them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cells, machine
from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.serialize import to_json
from hypernets.architecture.trace import trace
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.predicted import predicted_checkpoint
from hypernets.ghn.prediction import predict
from metainit import checkpoint
from metainit.card import Card, Method, Provenance
from metainit.transfer import file_sha256
from serving.cache import Entry
from serving.catalog import Facts
from serving.prediction import Limits, Predicting, Question
from serving.predictions import Predictions
from serving.predictor import LocalPredictor, Predictor
from serving.work import BATCH

CLIENTS = 16
ASKED = 1
"""Predictions that each client asks for, one after the other."""
HYPERNETWORKS: Mapping[str, GhnConfig] = {
    "default, 32 x 32 block": GhnConfig(),
    "GHN-3-T's, 64 x 64 block": GhnConfig(block=64, kernel=11),
    "LoGAH's, rank 32": GhnConfig(decoder="low_rank"),
}
LOADS = ("one network", "16 networks")
KEPT_BYTES = 1 << 30


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.around = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, outputs, height / stride, width / stride)."""
        inner = torch.relu(self.norm1(self.conv1(images)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.around(images))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2016, arXiv:1512.03385) for images (B, 3, height, width)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        first = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.stem = nn.Sequential(first, nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        widths = (64, 64, 128, 256, 512)
        blocks: list[nn.Module] = []
        for number, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks += [Block(inputs, outputs, 2 if number else 1), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(512, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, classes)."""
        logits: Tensor = self.classifier(self.blocks(self.stem(images)).mean((2, 3)))
        return logits


@contextmanager
def in_this_process() -> Iterator[Mapping[int, Predictor]]:
    """Give a predictor that answers orders in batches and one that does not, by batch size."""
    yield {batch: LocalPredictor(batch=batch) for batch in (1, BATCH)}


@contextmanager
def on_serve() -> Iterator[Mapping[int, Predictor]]:
    """Start one replica of each kind on Ray Serve."""
    import ray
    from ray import serve

    from serving.ray_predictor import PREDICTOR, RayPredictor, deployment

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=200 << 20,
        log_to_driver=False,
    )
    try:
        serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
        for batch in (1, BATCH):
            deployed = deployment(PREDICTOR, 1, 2 * CLIENTS, None, {}, batch)
            serve.run(deployed, name=f"batch-{batch}", route_prefix=None)
        yield {batch: RayPredictor(f"batch-{batch}") for batch in (1, BATCH)}
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
        ray.shutdown()


def graph_of(classes: int) -> ArchitectureGraph:
    """Return the graph of a ResNet-18."""
    return trace(ResNet18(classes), (torch.zeros(2, 3, 64, 64),))


def stored(folder: Path, config: GhnConfig) -> Entry:
    """Write an untrained hypernetwork, and return it as a version that is served: speed needs no training."""
    torch.manual_seed(0)
    recipe = {"hypernetwork": config.model_dump(mode="json")}
    card = Card(kind="ghn", name="bench", method=Method(name="ghn"), provenance=Provenance(recipe=recipe))
    path = folder / "bench.safetensors"
    saved = checkpoint.save(path, Ghn(config).state_dict(), card)
    facts = Facts("bench", 1, file_sha256(path), path.stat().st_size, "ghn", "ghn")
    return Entry(facts, path, saved.card.model_dump(mode="json"), None, None, {})


async def load(entry: Entry, predictor: Predictor, graphs: list[dict[str, Any]]) -> tuple[float, float]:
    """Return predictions a second, and a CPU second of this process, when 16 clients ask for new ones."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Predictions(Path(folder), most_bytes=KEPT_BYTES)
        predicting = Predicting(predictor, kept, Limits(seconds=600.0))
        await predicting.answer(entry, Question(graph=graphs[0], seed=10_000))  # opens the hypernetwork

        async def client(number: int) -> None:
            for turn in range(ASKED):
                seed = number * ASKED + turn
                await predicting.answer(entry, Question(graph=graphs[number % len(graphs)], seed=seed))

        began, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(client(number) for number in range(CLIENTS)))
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        return CLIENTS * ASKED / seconds, CLIENTS * ASKED / cpu


def stages(config: GhnConfig) -> dict[str, float]:
    """Return the CPU seconds that one prediction takes, by stage: the first is what a batch shares."""
    torch.manual_seed(0)
    ghn = Ghn(config).eval().requires_grad_(False)
    card = Card(kind="ghn", name="bench", method=Method(name="ghn"))
    graph = graph_of(1000)
    shared = _best(lambda: predict(ghn, graph, exact=True))
    seeded = _best(lambda: predict(ghn, graph, seed=0))
    tensors, own = predicted_checkpoint(ghn, card, graph)
    return {
        "shared": shared,
        "residual": seeded - shared,
        "bytes": _best(lambda: checkpoint.to_bytes(tensors, own)),
    }


def forwards(config: GhnConfig) -> dict[str, Any]:
    """Return what it would bring to ask the hypernetwork for eight networks in one forward."""
    torch.manual_seed(0)
    ghn = Ghn(config).eval().requires_grad_(False)
    graphs = [graph_of(100 + number) for number in range(8)]

    def together() -> list[dict[str, Tensor]]:
        with torch.no_grad():
            return ghn(graphs)

    def alone() -> list[dict[str, Tensor]]:
        with torch.no_grad():
            return [ghn([graph])[0] for graph in graphs]

    one, other = together(), alone()
    equal = [torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a]
    return {
        "seconds together": _best(together),
        "seconds alone": _best(alone),
        "tensors": len(equal),
        "equal tensors": sum(equal),
    }


def _best(computed: Callable[[], object], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        began = time.process_time()
        computed()
        seconds.append(time.process_time() - began)
    return min(seconds)


def run(rounds: int, serve: bool) -> Cells:
    """Measure what is not there yet."""
    torch.set_num_threads(1)
    cells = Cells("endpoint")
    cells.cell("predict/machine", machine)
    _measure_loads(cells, rounds, serve)
    for name, config in HYPERNETWORKS.items():
        cells.cell(f"predict/stages, {name}", lambda config=config: stages(config))
    cells.cell("predict/forward of 8 networks", lambda: forwards(GhnConfig()))
    return cells


def _measure_loads(cells: Cells, rounds: int, serve: bool) -> None:
    graphs = {"one network": [to_json(graph_of(1000))]}
    graphs["16 networks"] = [to_json(graph_of(1000 - number)) for number in range(CLIENTS)]
    where = "Serve" if serve else "in process"
    wanted = [
        (f"predict/{where}, {name}, {kind}, round {number}", name, kind, number)
        for number in range(rounds)
        for name, config in HYPERNETWORKS.items()
        for kind in (LOADS if config == GhnConfig() else LOADS[:1])
    ]
    if all(key in cells.values for key, *_ in wanted):
        return
    with tempfile.TemporaryDirectory() as folder, (on_serve if serve else in_this_process)() as workers:
        entries = {
            name: stored(Path(folder) / str(i), HYPERNETWORKS[name]) for i, name in enumerate(HYPERNETWORKS)
        }
        for key, name, kind, number in wanted:

            def measure(name: str = name, kind: str = kind, number: int = number) -> dict[str, float]:
                sizes = (BATCH, 1) if number % 2 else (1, BATCH)
                speeds: dict[str, float] = {}
                for n in sizes:
                    wall, cpu = asyncio.run(load(entries[name], workers[n], graphs[kind]))
                    speeds |= {f"batch {n}": wall, f"batch {n}, a CPU second": cpu}
                speeds["gain"] = speeds[f"batch {BATCH}"] / speeds["batch 1"]
                batched, alone = speeds[f"batch {BATCH}, a CPU second"], speeds["batch 1, a CPU second"]
                return {**speeds, "gain, a CPU second": batched / alone}

            cells.cell(key, measure)


def table(cells: Cells) -> str:
    """Return the results as a markdown table: medians over rounds, gains within rounds."""
    columns = ("batch 1", f"batch {BATCH}", "gain", "gain, a CPU second")
    lines = [
        f"| worker | hypernetwork | 16 clients want | {' | '.join(columns)} |",
        f"|---|---|---|{'---|' * len(columns)}",
    ]
    for where in ("in process", "Serve"):
        for name in HYPERNETWORKS:
            for kind in LOADS:
                begin = f"predict/{where}, {name}, {kind}, round"
                rounds = [value for key, value in cells.values.items() if key.startswith(begin)]
                if rounds:
                    spreads = " | ".join(_spread([one[column] for one in rounds]) for column in columns)
                    lines.append(f"| {where} | {name} | {kind} | {spreads} |")
    lines += [
        f"\n{name}: seconds of one prediction {cells.values[f'predict/stages, {name}']}"
        for name in HYPERNETWORKS
    ]
    forward, about = cells.values["predict/forward of 8 networks"], cells.values["predict/machine"]
    return "\n".join([*lines, f"\nEight networks in one forward: {forward}.", f"Machine: {about}."])


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="replicas on Ray Serve")
    arguments = parser.parse_args()
    print(table(run(arguments.rounds, arguments.serve)))


if __name__ == "__main__":
    main()
