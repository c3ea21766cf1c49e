"""GHN-3 beside the published implementation: the same tensors, in how much time and memory.

METAINIT_GHN3=folder python -m benchmarks.ghn3_peer [run|table] [--quick]

Random weights, the same for both. Each measurement is a fresh process, the two take turns, and the fastest of
the rounds counts: `graph` from a network at hand, `predict` into it with that graph, `whole` both, `again` a
second prediction in the same process; CPU seconds beside each. `memory` is what the process gains at its peak
over what it holds before, with network and hypernetwork in place.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cells import Cells, machine
from benchmarks.peers import ghn3_reference as reference
from hypernets.architecture.space import build_architecture, sample
from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.ghn3_config import SIZES, Ghn3Config
from hypernets.ghn.ghn3_graph import graph_of
from hypernets.ghn.ghn3_network import Ghn3
from hypernets.ghn.ghn3_prediction import init_ghn3_, predict_ghn3

NETWORKS = ("resnet50", "vit_b_16", "convnext_tiny")
SIDES = ("ours", "reference")
SPACE_CONFIG = Ghn3Config(hidden=64, layers=3, heads=8, channels=64, kernel=11, classes=10)
META_BATCH, BATCH, SIDE = 8, 64, 14
MEBI = 1 << 20


def weights_of(config: Ghn3Config, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of a trained network's spread: no bias and no last layer is near zero."""
    torch.manual_seed(seed)
    state = Ghn3(config).state_dict()
    return {name: value + 0.5 * torch.randn_like(value) * _spread(value) for name, value in state.items()}


def _spread(value: Tensor) -> float:
    return float(value.std()) if value.dim() > 1 else 0.3


def ours(config: Ghn3Config, weights: Mapping[str, Tensor]) -> Ghn3:
    """Return our network with given weights."""
    with torch.device("meta"):
        ghn = Ghn3(config)
    ghn.load_state_dict(dict(weights), assign=True)
    return ghn.eval()


def example_inputs() -> Tensor:
    """Return what the published implementation runs a network on."""
    return torch.zeros(2, 3, 224, 224)


def compare(network: str, size: str, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how far the tensors are apart, and what only one of the two predicts."""
    target = getattr(reference.torchvision_models(), network)().eval()
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    tensors, skipped = predict_ghn3(ours(SIZES[size], weights), target, example_inputs())
    ghn = reference.build(SIZES[size], weights)
    reference.predict_(ghn, target, reference.graph_of(target))
    theirs = {name: p.detach() for name, p in target.named_parameters() if not torch.equal(p, before[name])}
    # The row of the class token is an unseeded draw there.
    rows = {name: slice(1 if name.endswith("pos_embedding") else 0, None) for name in theirs}
    apart = {
        name: float((tensors[name] - value)[:, rows[name]].abs().max())
        if value.dim() == 3
        else float((tensors[name] - value).abs().max())
        for name, value in theirs.items()
        if name in tensors
    }
    return {
        "largest_difference": max(apart.values()),
        "tensors": len(apart),
        "only_ours": sorted(tensors.keys() - theirs.keys()),
        "only_theirs": sorted(theirs.keys() - tensors.keys()),
        "skipped": sorted(skipped),
        "silent": sorted(before.keys() - theirs.keys()),
    }


def measure(side: str, network: str, size: str, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure one side in this process."""
    target = getattr(reference.torchvision_models(), network)().eval()
    graph: Callable[[], Any]
    predict: Callable[[Any], Any]
    if side == "ours":
        mine, inputs = ours(SIZES[size], weights), example_inputs()
        graph = lambda: graph_of(target, inputs)  # noqa: E731
        predict = lambda made: init_ghn3_(mine, target, inputs, graph=made)  # noqa: E731
    else:
        theirs = reference.build(SIZES[size], weights)
        graph = lambda: reference.graph_of(target)  # noqa: E731
        predict = lambda made: reference.predict_(theirs, target, made)  # noqa: E731
    held = _forget_peak()
    marks = [(time.perf_counter(), time.process_time())]

    def mark() -> None:
        marks.append((time.perf_counter(), time.process_time()))

    made = graph()
    mark()
    predict(made)
    mark()
    gained = _memory("VmHWM") - held
    predict(made)
    mark()
    names = ("graph", "predict", "again")
    found = {
        name + suffix: after[kind] - before[kind]
        for name, before, after in zip(names, marks[:-1], marks[1:], strict=True)
        for kind, suffix in ((0, ""), (1, "_cpu"))
    }
    parameters = sum(p.numel() for p in target.parameters()) + sum(v.numel() for v in weights.values())
    return {
        **found,
        "whole": found["graph"] + found["predict"],
        "whole_cpu": found["graph_cpu"] + found["predict_cpu"],
        "memory_mib": gained / MEBI,
        "weights_mib": 4 * parameters / MEBI,
    }


def _memory(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    found = re.search(rf"{field}:\s+(\d+) kB", text)
    assert found is not None
    return 1024 * int(found[1])


def _forget_peak() -> int:
    """Set the peak to what is held now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def training_networks(count: int = META_BATCH, seed: int = 0) -> list[nn.Module]:
    """Draw small classifiers for grey images of which GHN-3 predicts everything."""
    space = SpaceConfig(size=SIDE)
    found: list[nn.Module] = []
    index = 0
    while len(found) < count:
        network = build_architecture(sample(space, seed, index))
        index += 1
        if not graph_of(network, torch.zeros(2, 1, SIDE, SIDE)).skipped:
            found.append(network)
    return found


def our_training_step(
    networks: list[nn.Module],
    images: Tensor,
    labels: Tensor,
    config: Ghn3Config,
    weights: Mapping[str, Tensor],
    steps: int = 10,
) -> dict[str, Any]:
    """Time the same training steps as `reference_training_step` with our GHN-3."""
    ghn = Ghn3(config).train()
    ghn.load_state_dict(dict(weights))
    optimizer = torch.optim.AdamW(
        ghn.parameters(), lr=reference.LEARNING_RATE, weight_decay=reference.WEIGHT_DECAY
    )
    graphs = [graph_of(network, images[:2], config.virtual_edges) for network in networks]
    took, losses = [], []
    for _ in range(steps + 1):
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = torch.zeros(())
        for network, filled in zip(networks, ghn(graphs), strict=True):
            logits = torch.func.functional_call(network.train(), filled, (images,))
            penalty = torch.stack([value.norm() for value in filled.values()]).sum()
            loss = loss + functional.cross_entropy(logits, labels) + reference.PENALTY * penalty
        loss = loss / len(networks)
        loss.backward()
        nn.utils.clip_grad_norm_(ghn.parameters(), reference.CLIP)
        optimizer.step()
        took.append(time.perf_counter() - begun)
        losses.append(float(loss.detach()))
    seconds = statistics.median(took[1:])
    return {"rate": len(networks) * len(images) / seconds, "seconds": seconds, "losses": losses}


def train(side: str, weights: Mapping[str, Tensor], steps: int) -> dict[str, Any]:
    """Time training steps of one side on a meta-batch of 8 networks and 64 images of noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(BATCH, 1, SIDE, SIDE, generator=generator)
    labels = torch.randint(10, (BATCH,), generator=generator)
    step = our_training_step if side == "ours" else reference.reference_training_step
    networks = training_networks()
    alone = [step([n], images, labels, SPACE_CONFIG, weights, 1)["losses"][0] for n in networks]
    return {**step(networks, images, labels, SPACE_CONFIG, weights, steps), "losses_alone": alone}


def in_fresh_process(arguments: list[str], threads: int) -> dict[str, Any]:
    """Run a part of this module in a process of its own, and return what it prints."""
    command = [sys.executable, "-m", "benchmarks.ghn3_peer", *arguments, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def fastest(runs: list[dict[str, float]]) -> dict[str, float]:
    """Return the smallest value of each quantity."""
    return {name: min(run[name] for run in runs) for name in runs[0]}


def run(sizes: list[str], networks: list[str], rounds: int, threads: int) -> None:
    """Measure what is missing."""
    reference.folder()
    cells = Cells("ghn3_peer")
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes:
            path = Path(scratch) / f"{size}.safetensors"
            save_file(weights_of(SIZES[size]), path)
            for network in networks:
                common = [network, size, str(path)]

                def compute(common: list[str] = common) -> dict[str, Any]:
                    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
                    for _ in range(rounds):
                        for side in SIDES:
                            runs[side].append(in_fresh_process(["one", side, *common], threads))
                    return {
                        "machine": {**machine(), "threads": threads},
                        "rounds": rounds,
                        "equality": in_fresh_process(["equality", "both", *common], threads),
                        **{side: fastest(found) for side, found in runs.items()},
                    }

                cells.cell(f"{network}, {size}", compute)
        path = Path(scratch) / "space.safetensors"
        save_file(weights_of(SPACE_CONFIG), path)

        def training() -> dict[str, Any]:
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for _ in range(rounds):
                for side in SIDES:
                    runs[side].append(in_fresh_process(["train", side, "-", "-", str(path)], threads))
            best = {side: max(found, key=lambda r: float(r["rate"])) for side, found in runs.items()}
            return {"machine": {**machine(), "threads": threads}, "rounds": rounds, **best}

        cells.cell("training", training)
    print(table())


def table() -> str:
    """Return the tables as markdown."""
    values = Cells("ghn3_peer").values
    lines = [
        "| network, size | largest difference | left out, ours with a reason / theirs silently "
        "| graph CPU s | predict | whole | again | whole, wall s | peak memory MiB (of weights) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in values.items():
        if name == "training":
            continue
        mine, theirs, equality = cell["ours"], cell["reference"], cell["equality"]
        times = [
            f"{mine[key]:.2f} / {theirs[key]:.2f} ({mine[key] / theirs[key]:.2f}x)"
            for key in ("graph_cpu", "predict_cpu", "whole_cpu", "again_cpu", "whole")
        ]
        share = [1 + side["memory_mib"] / side["weights_mib"] for side in (mine, theirs)]
        lines.append(
            f"| {name} | {equality['largest_difference']:.1e} of {equality['tensors']} tensors "
            f"| {len(equality['skipped'])} / {len(equality['silent'])} | {' | '.join(times)} "
            f"| {mine['memory_mib']:.0f} / {theirs['memory_mib']:.0f} ({share[0]:.2f}x / {share[1]:.2f}x) |"
        )
    if "training" in values:
        mine, theirs = values["training"]["ours"], values["training"]["reference"]
        lines += [
            "",
            "| training step | architectures x images a second | first loss, alone (mean) | together |",
            "|---|---|---|---|",
            *(
                f"| {name} | {cell['rate']:.0f} | {statistics.fmean(cell['losses_alone']):.6f} "
                f"| {cell['losses'][0]:.6f} |"
                for name, cell in (("ours", mine), ("published", theirs))
            ),
        ]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "action", nargs="?", default="run", choices=("run", "table", "one", "equality", "train")
    )
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", default=["t", "s"], choices=sorted(SIZES))
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if given.action == "table":
        print(table())
        return
    if given.action == "run":
        run(given.sizes, given.networks, given.rounds, given.threads)
        return
    torch.set_num_threads(given.threads)
    side, network, size, path = given.rest
    # Copied, because what is mapped is not held before it is read.
    weights = {name: value.clone() for name, value in load_file(path).items()}
    answers = {
        "one": lambda: measure(side, network, size, weights),
        "equality": lambda: compare(network, size, weights),
        "train": lambda: train(side, weights, given.steps),
    }
    print(json.dumps(answers[given.action]()))


if __name__ == "__main__":
    main()
