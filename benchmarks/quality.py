"""Time to quality: CPU minutes until two steps are as good as after ten minutes of learn2learn's MAML.

    METAINIT_DATA=... python -m benchmarks.quality tune | peer --seed 0 | ours --seed 0 | table

Both sides train a SIREN of depth 5 and width 256 on the same faces from the same random start, with one
thread. Each side's inner and outer step sizes come from as many trials of the same length, judged on
validation faces; evaluation is not counted in either side's time.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.cells import Cells, cpu_seconds, data_set, machine
from metainit import init_
from metainit.card import AdaptationRoutine, Spec
from metainit.domains.base import TaskBatch
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.evidence.curves import Bench, Start
from metainit.evidence.measuring import held_out
from metainit.meta.learn2learn_engine import import_learn2learn
from metainit.meta.outer import AlgorithmConfig, OuterConfig, routine_of
from metainit.meta.state import MetaParameters
from metainit.networks import build

NETWORK = Spec(name="siren", arguments={"width": 256, "depth": 5, "out_features": 3})
SEEDS = (0, 1, 2)
PEER_SECONDS = 600.0
TRIAL_SECONDS = 30.0
TIE = 0.1
"""Decibels by which trials of one length hardly differ."""
WATCH_SECONDS = 20.0
# Six settings a side, and three more where the best of them lay on the edge.
PEER_GRID = (*itertools.product((0.01, 0.03, 0.1), (1e-4, 3e-4)), (0.003, 3e-4), (0.01, 1e-3), (0.03, 1e-3))
OUR_GRID = (
    *itertools.product((0.005, 0.01, 0.02), (2e-4, 4e-4)),
    (0.01, 1e-4),
    (0.01, 8e-4),
    (0.02, 1e-4),
    (0.04, 2e-4),
)
META_BATCH = 3
OUR_META_BATCH = 2
POINTS = 1024
OUR_STEPS, OUR_TRIAL_STEPS = (600, 56), (90, 8)
"""Outer steps on some of the pixels, and then on all: chosen to last 200 and 30 CPU seconds."""


def faces(points: int | None = None) -> ImageDomain:
    """Return the faces at 64x64."""
    return ImageDomain(
        ImageConfig(npz=data_set("caltech_faces"), split_array="split", fit="resize", points=points)
    )


def after_two_steps(bench: Bench, start: Start, batch: TaskBatch) -> float:
    """Return the mean PSNR after two steps of the start's routine."""
    assert start.routine is not None
    return float(bench.curve(start, start.routine, batch, [2])["psnr"].mean())


class Stopwatch:
    """CPU seconds of training, without those of the evaluation in between."""

    def __init__(self) -> None:
        self._begin, self._excluded, self._watched = cpu_seconds(), 0.0, 0.0
        self.curve: list[tuple[float, float]] = []

    @property
    def seconds(self) -> float:
        """The CPU seconds so far."""
        return cpu_seconds() - self._begin - self._excluded

    def look(self, evaluate: Callable[[], float], last: bool = False) -> None:
        """Evaluate when it is time, off the clock."""
        now = self.seconds
        if last or now - self._watched > WATCH_SECONDS:
            before = cpu_seconds()
            self.curve.append((round(now, 1), round(evaluate(), 3)))
            print(self.curve[-1], flush=True)
            self._excluded += cpu_seconds() - before
            self._watched = now


def run_peer(inner: float, outer: float, seed: int, seconds: float, split: str, tasks: int) -> dict[str, Any]:
    """Train with learn2learn's MAML, second order, all 4,096 pixels, Adam outside, as its examples do."""
    l2l = import_learn2learn()
    domain = faces()
    network = init_(build(NETWORK, seed), "siren", seed=seed)
    maml = l2l.algorithms.MAML(network, lr=inner, first_order=False)
    optimizer = torch.optim.Adam(maml.parameters(), lr=outer)
    bench, batch = Bench(build(NETWORK), domain), held_out(domain, split, tasks)  # type: ignore[arg-type]
    routine = AdaptationRoutine(steps=2, step_size=inner)

    def evaluate() -> float:
        weights = {k: v.detach().clone() for k, v in network.named_parameters()}
        return after_two_steps(bench, Start("peer", weights, routine), batch)

    watch, step = Stopwatch(), 0
    while watch.seconds < seconds:
        optimizer.zero_grad()
        for task in domain.tasks(seed, step, META_BATCH):
            learner = maml.clone()
            support = {k: v[0] for k, v in task.support.items()}
            query = {k: v[0] for k, v in task.query.items()}
            for _ in range(2):
                learner.adapt(domain.support_loss(learner, support, task.shared))
            (domain.query_loss(learner, query, task.shared) / META_BATCH).backward()
        optimizer.step()
        step += 1
        watch.look(evaluate)
    watch.look(evaluate, last=True)
    return {"inner": inner, "outer": outer, "outer_steps": step, "curve": watch.curve}


def run_ours(
    inner: float, outer: float, seed: int, steps: tuple[int, int], split: str, tasks: int
) -> dict[str, Any]:
    """Train Meta-SGD with a step size a parameter: on a quarter of the pixels, at the end on all."""
    from metainit.meta.engine import meta_gradient
    from metainit.meta.outer import OuterLoop, initial_meta_parameters
    from metainit.meta.registry import rule_for
    from metainit.networks import function_of

    algorithm = AlgorithmConfig(
        rule="meta_sgd", order=2, inner_steps=2, inner_step_size=inner, execution="loop"
    )
    config = OuterConfig(
        steps=sum(steps), meta_batch=OUR_META_BATCH, step_size=outer, step_size_rate=0.06, averaging=0.99
    )
    some, full = faces(POINTS), faces()
    network = init_(build(NETWORK, seed), "siren", seed=seed)
    function, rule, inner_steps = function_of(network), rule_for(algorithm), algorithm.inner(network)
    loop = OuterLoop(initial_meta_parameters(network, algorithm), config, algorithm)
    bench, batch = Bench(build(NETWORK), full), held_out(full, split, tasks)  # type: ignore[arg-type]

    def evaluate() -> float:
        meta: MetaParameters = loop.result()
        start = Start("ours", meta.weights, routine_of(meta, algorithm, steps), meta.step_sizes)
        return after_two_steps(bench, start, batch)

    watch = Stopwatch()
    while loop.step < config.steps:
        domain = some if loop.step < steps[0] else full
        tasks_here = domain.tasks(seed, loop.step, OUR_META_BATCH)
        loop.apply(
            meta_gradient(rule, domain, function, loop.meta, tasks_here, inner_steps, algorithm.execution)
        )
        watch.look(evaluate)
    watch.look(evaluate, last=True)
    return {"inner": inner, "outer": outer, "outer_steps": loop.step, "curve": watch.curve}


def tune(cells: Cells) -> None:
    """Run every trial of both sides."""
    for inner, outer in OUR_GRID:
        cells.cell(
            f"tune/ours/{inner:g}/{outer:g}",
            lambda i=inner, o=outer: run_ours(i, o, 0, OUR_TRIAL_STEPS, "validation", 8),
        )
    for inner, outer in PEER_GRID:
        cells.cell(
            f"tune/peer/{inner:g}/{outer:g}",
            lambda i=inner, o=outer: run_peer(i, o, 0, TRIAL_SECONDS, "validation", 8),
        )


def best(cells: Cells, side: str) -> tuple[float, float]:
    """Return the rates of a side's best trial; of trials that tie, the lowest outer rate, for longer runs."""
    trials = [v for k, v in cells.values.items() if k.startswith(f"tune/{side}/")]
    reached = max(t["curve"][-1][1] for t in trials)
    tied = [t for t in trials if t["curve"][-1][1] > reached - TIE]
    chosen = min(tied, key=lambda t: (t["outer"], -t["curve"][-1][1]))
    return chosen["inner"], chosen["outer"]


def _reached(curve: Sequence[Sequence[float]], level: float) -> float:
    """Return the CPU seconds after which a curve has reached a level; infinite where it never does."""
    return next((seconds for seconds, value in curve if value >= level), float("inf"))


def table(cells: Cells) -> None:
    """Print the table for RESULTS.md."""
    print(
        "| seed | learn2learn at its end | ours at its end | ours reaches theirs after | "
        "theirs reaches ours after |"
    )
    print("|---|---|---|---|---|")
    shares = []
    for seed in SEEDS:
        if f"peer/{seed}" not in cells.values or f"ours/{seed}" not in cells.values:
            continue
        goal = cells.values[f"peer/{seed}"]["curve"][-1]
        end = cells.values[f"ours/{seed}"]["curve"][-1]
        reached = _reached(cells.values[f"ours/{seed}"]["curve"], goal[1])
        theirs = _reached(cells.values[f"peer/{seed}"]["curve"], end[1])
        shares.append(end[0] / theirs)
        print(
            f"| {seed} | {goal[1]:.2f} dB ({goal[0]:.0f} s) | {end[1]:.2f} dB ({end[0]:.0f} s) | "
            f"{reached:.0f} s | {theirs:.0f} s |"
        )
    print(f"our time to our end over the peer's to as much: {np.round(shares, 2)}")
    for side in ("peer", "ours"):
        print(side, "rates (inner, outer):", best(cells, side))


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("tune", "peer", "ours", "table"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells("quality")
    if given.part == "tune":
        tune(cells)
    elif given.part == "table":
        table(cells)
    else:
        inner, outer = best(cells, given.part)

        def judged() -> dict[str, Any]:
            if given.part == "peer":
                found = run_peer(inner, outer, given.seed, PEER_SECONDS, "test", 24)
            else:
                found = run_ours(inner, outer, given.seed, OUR_STEPS, "test", 24)
            return {**found, **machine()}

        cells.cell(f"{given.part}/{given.seed}", judged)


if __name__ == "__main__":
    main()
