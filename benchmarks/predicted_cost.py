"""What predicting costs: many small networks at once, and one of 774 million parameters.

python -m benchmarks.predicted_cost batching | large | table
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cells import Cells, machine
from hypernets.architecture.space import build_architecture, sample
from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.architecture.trace import trace
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.prediction import predict

TOGETHER = 16
ROUNDS = 9
LARGE = {"layers": 36, "width": 1280, "vocabulary": 50257, "positions": 1024}


class Block(nn.Module):
    """A block of GPT-2: attention, then an MLP four times as wide, each after a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        """Return the next states (batch, tokens, width)."""
        batch, tokens, width = states.shape
        split = self.qkv(self.first(states)).view(batch, tokens, 3, width // 64, 64)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        result: Tensor = states + self.narrow(nn.functional.gelu(self.wide(self.second(states))))
        return result


class LanguageModel(nn.Module):
    """GPT-2 of any size, with the output layer tied to the words."""

    def __init__(self, layers: int, width: int, vocabulary: int, positions: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.empty(positions, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits (batch, tokens, vocabulary)."""
        states = self.words(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            states = block(states)
        return self.norm(states) @ self.words.weight.T


def batching() -> dict[str, Any]:
    """Return the rounds' seconds for some networks at once and one after another, graphs traced before."""
    torch.set_num_threads(2)
    space = SpaceConfig()
    shape = (2, space.channels, space.size, space.size)
    graphs = [
        trace(build_architecture(sample(space, 0, i, "test")), torch.zeros(shape)) for i in range(TOGETHER)
    ]
    found: dict[str, Any] = {}
    for decoder in ("tiled", "low_rank"):
        ghn = Ghn(GhnConfig.model_validate({"decoder": decoder})).eval()
        data = [ghn.features(graph) for graph in graphs]
        seconds: dict[str, list[float]] = {"together": [], "singly": []}
        with torch.no_grad():
            for turn in range(ROUNDS + 1):
                begin = time.perf_counter()
                ghn(graphs, data)
                middle = time.perf_counter()
                for graph, own in zip(graphs, data, strict=True):
                    ghn([graph], [own])
                if turn:
                    seconds["together"].append(middle - begin)
                    seconds["singly"].append(time.perf_counter() - middle)
        found[decoder] = seconds
    return {**found, **machine()}


def large() -> dict[str, Any]:
    """Return seconds and memory of tracing and predicting a network of GPT-2 Large's size."""
    torch.set_num_threads(2)
    with torch.device("meta"):
        network = LanguageModel(**LARGE)
    torch.manual_seed(0)
    ghn = Ghn(GhnConfig(decoder="low_rank", rank=32)).eval()
    begin = time.perf_counter()
    graph = trace(network, torch.zeros(1, 16, dtype=torch.long))
    traced = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weights = predict(ghn, graph, seed=0)
    done = time.perf_counter()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    numel = sum(value.numel() for value in weights.values())
    return {
        "parameters": numel,
        "expected": sum(p.numel() for p in network.parameters()),
        "trace_seconds": round(traced - begin, 2),
        "predict_seconds": round(done - traced, 2),
        "peak_gb": round(after / 2**20, 2),
        "before_gb": round(before / 2**20, 2),
        "model_gb": round(4 * numel / 2**30, 2),
        "finite": all(bool(torch.isfinite(value).all()) for value in weights.values()),
        **machine(),
    }


def table(values: dict[str, Any]) -> None:
    """Print what was measured."""
    for decoder in ("tiled", "low_rank") if "batching" in values else ():
        seconds = values["batching"][decoder]
        ratios = [a / b for a, b in zip(seconds["singly"], seconds["together"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{decoder}: {TOGETHER} at once, {statistics.median(ratios):.2f} times as fast ({spread})")
    for run in values.get("large", []):
        print(run)


def main() -> None:
    """Measure one part, or print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("batching", "large", "large-once", "table"))
    given = parser.parse_args()
    cells = Cells("predicted-cost")
    if given.part == "large-once":
        print(json.dumps(large()))
        return
    if given.part == "large":
        # A process of its own each time: the peak of memory is a process's.
        command = [sys.executable, "-m", "benchmarks.predicted_cost", "large-once"]
        cells.cell(
            "large",
            lambda: [
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                for _ in range(3)
            ],
        )
    elif given.part == "batching":
        cells.cell("batching", batching)
    table(cells.values)


if __name__ == "__main__":
    main()
