"""What adapting to five labelled images costs, and the throughput of first-order meta-gradients.

METAINIT_DATA is not needed: the speed does not see what the images show.

python -m benchmarks.segmentation_cost [--rounds 7]

Contenders take turns in an order that turns with each round; ratios are taken within rounds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.cells import Cells, machine
from benchmarks.segmentation_starts import INNER_STEPS, network_spec
from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Continuation
from metainit.domains.base import TaskBatch
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.domains.segmentation_loss import segmentation_loss
from metainit.evidence.curves import weights_of
from metainit.meta.engine import meta_gradient, task_threads
from metainit.meta.learn2learn_engine import import_learn2learn
from metainit.meta.registry import RULES
from metainit.meta.state import InnerSteps, MetaParameters, TaskLosses
from metainit.networks import build, function_of

SIDE, SHOTS, TASKS, STEPS = 96, 5, 4, 20
SIZE = 0.01
INNER = InnerSteps(INNER_STEPS, SIZE)
TOLERANCE = 1e-9
Gradient = dict[str, torch.Tensor]


def tasks(count: int) -> tuple[SegmentationDomain, TaskBatch]:
    """Return synthesised tasks of five images of 96x96 and as many queries."""
    domain = SegmentationDomain(
        SegmentationConfig(source="synthesised", height=SIDE, width=SIDE, shots=SHOTS, queries=SHOTS)
    )
    return domain, domain.tasks(0, 0, count)


def ours(network: nn.Module, domain: SegmentationDomain, batch: TaskBatch) -> Callable[[], Gradient]:
    """Return FOMAML's meta-gradient by the default engine, with the threads that training gives it."""
    function, meta = function_of(network), MetaParameters(weights_of(network), {})
    rule = RULES["fomaml"].orders[1]

    def compute() -> Gradient:
        with task_threads(torch.get_num_threads()) as pool:
            return meta_gradient(rule, domain, function, meta, batch, INNER, "auto", pool).weights

    return compute


def learn2learn(network: nn.Module, batch: TaskBatch, channels_last: bool) -> Callable[[], Gradient]:
    """Return the same by learn2learn's first-order MAML, with the loop of its examples."""
    form = torch.channels_last if channels_last else torch.contiguous_format
    module = copy.deepcopy(network).to(memory_format=form)  # type: ignore[call-overload]
    learner = import_learn2learn().algorithms.MAML(module, lr=SIZE, first_order=True)
    shown = [
        tuple(
            part[0].contiguous(memory_format=form) if part.ndim == 5 else part[0]
            for part in (*task.support.values(), *task.query.values())
        )
        for task in batch
    ]

    def compute() -> Gradient:
        learner.zero_grad()
        for images, labels, queries, truth in shown:
            clone = learner.clone()
            for _ in range(INNER.steps):
                clone.adapt(segmentation_loss(clone(images), labels))
            torch.autograd.backward(segmentation_loss(clone(queries), truth))
        return {k: v.grad.clone() for k, v in module.named_parameters() if v.grad is not None}

    return compute


def contenders_of(dtype: torch.dtype, count: int) -> dict[str, Callable[[], Gradient]]:
    """Return the contenders by name; the network and the tasks are the same for all."""
    network = build(network_spec(), 0).to(dtype)
    domain, batch = tasks(count)
    batch = batch.to(torch.device("cpu"), dtype)
    return {
        "metainit": ours(network, domain, batch),
        "learn2learn": learn2learn(network, batch, channels_last=False),
        "learn2learn, channels last": learn2learn(network, batch, channels_last=True),
    }


def check() -> None:
    """Stop unless all compute the same: in double precision, as kinks blow rounding up over five steps."""
    found = {name: compute() for name, compute in contenders_of(torch.float64, 1).items()}
    truth = found["metainit"]
    scale = max(float(v.abs().max()) for v in truth.values())
    for name, gradient in found.items():
        worst = max(float((gradient[k] - v).abs().max()) for k, v in truth.items()) / scale
        if worst > TOLERANCE:
            raise SystemExit(f"{name} computes something else: {worst:.2g} of the largest entry")


def throughput(rounds: int) -> dict[str, list[float]]:
    """Return the tasks a second of each contender in each round, after a check that they agree."""
    check()
    contenders = contenders_of(torch.float32, TASKS)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            time.sleep(0.3)
            begin = time.perf_counter()
            contenders[name]()
            speeds[name].append(TASKS / (time.perf_counter() - begin))
    return speeds


def adaptation() -> dict[str, float]:
    """Return seconds and peak memory of adapting to one task, in this process and nothing else."""
    import resource

    network = build(network_spec(), 0)
    domain, batch = tasks(1)
    losses = TaskLosses(domain, function_of(network), batch, batched=False)
    routine = AdaptationRoutine(steps=5, step_size=SIZE, continuation=Continuation(step_size=1e-3))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    for _ in trajectory(losses, weights_of(network), routine, {}, STEPS):
        pass
    seconds = time.perf_counter() - begin
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": round(seconds, 3),
        "step_ms": round(1000 * seconds / STEPS, 1),
        "extra_mb": round((after - before) / 1024, 1),
        "process_mb": round(after / 1024, 1),
    }


def table(values: Mapping[str, Sequence[float]]) -> None:
    """Print medians and ratios within rounds."""
    for name, speeds in values.items():
        print(f"{name}: {statistics.median(speeds):.2f} tasks/s ({min(speeds):.2f}-{max(speeds):.2f})")
        if name != "metainit":
            ratios = np.array(values["metainit"]) / np.array(speeds)
            print(f"  metainit over it: {np.median(ratios):.2f} ({ratios.min():.2f}-{ratios.max():.2f})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--adapt", action="store_true", help="adapt once, print the cost as JSON, and end")
    given = parser.parse_args()
    torch.set_num_threads(2)
    if given.adapt:
        print(json.dumps(adaptation()))
        return
    cells = Cells("segmentation-cost")
    # A process of its own each time: the peak of memory is a process's.
    command = [sys.executable, "-m", "benchmarks.segmentation_cost", "--adapt"]
    cells.cell(
        "adaptation",
        lambda: [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            for _ in range(3)
        ],
    )
    cells.cell("throughput", lambda: {"speeds": throughput(given.rounds), **machine()})
    print(cells.values["adaptation"])
    table(cells.values["throughput"]["speeds"])


if __name__ == "__main__":
    main()
