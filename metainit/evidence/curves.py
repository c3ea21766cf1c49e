"""Curves of a metric against the adaptation step, and the search for a start's best routine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine
from metainit.domains.base import Domain, TaskBatch
from metainit.errors import DivergenceError
from metainit.evidence.statistics import Values
from metainit.meta.engine import choose, task_threads
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import function_of

GRID_RATIO = math.sqrt(10)
Setting = tuple[str, float]
"""Optimizer and step size."""
SGD_GRID = tuple(0.01 * GRID_RATIO**i for i in range(7))
ADAM_GRID = tuple(1e-4 * GRID_RATIO**i for i in range(6))
MAX_EXTENSIONS = 8
"""Half decades beyond the grid; a best value still on the edge then is in effect no step at all."""
SCREENING = 3
FINALISTS = 3
"""Settings of each number of steps that go on from the first tasks to all of them."""
MANY_TASKS = 64
WORST = 0.0
"""What a diverged fit scores: no image in [0, 1] has a lower PSNR, no mask a lower overlap."""


@dataclass(frozen=True)
class Start:
    """Weights to start from and how to go on from them.

    `routine` None: a control, whose optimizer and step size are searched for each number of steps.
    `for_task`: maps a batch of one task to the weights that this task starts from, where these depend on what
    is known of it (its support, its conditions); `weights` then say names and sizes only.
    """

    name: str
    weights: Parameters
    routine: AdaptationRoutine | None = None
    step_sizes: Parameters = field(default_factory=dict)
    for_task: Callable[[TaskBatch], Parameters] | None = None

    def weights_for(self, task: TaskBatch) -> Parameters:
        """Return the weights that a batch of one task starts from."""
        return self.weights if self.for_task is None else self.for_task(task)


@dataclass(frozen=True)
class Bench:
    """A network and a domain to measure starts on, and the threads to do it with."""

    network: nn.Module
    domain: Domain
    pool: ThreadPoolExecutor | None = None

    def curve(
        self,
        start: Start,
        routine: AdaptationRoutine,
        batch: TaskBatch,
        steps: Sequence[int],
        metrics: Collection[str] | None = None,
    ) -> dict[str, Values]:
        """Return each metric ``(tasks, len(steps))`` at the given steps; `WORST` where a fit diverged.

        `metrics`: which ones; all of the domain's unless given.
        """
        function = function_of(self.network)

        def one(task: TaskBatch) -> list[Mapping[str, float]]:
            losses = TaskLosses(self.domain, function, task, batched=False)
            query = {k: v[0] for k, v in task.query.items()}
            found: list[Mapping[str, float]] = []
            walk = trajectory(losses, start.weights_for(task), routine, start.step_sizes, max(steps))
            try:
                for step, weights in enumerate(walk):
                    if step in steps:
                        with torch.no_grad():
                            rendered = self.domain.render(function(weights), query, task.shared)
                        found.append(_finite(self.domain.metrics(rendered, query, metrics)))
            except DivergenceError:
                pass
            return found + [{}] * (len(steps) - len(found))

        how = choose("auto", start.weights, len(batch))
        rows = list(self.pool.map(one, batch) if self.pool and how == "threads" else map(one, batch))
        names = {name: None for row in rows for point in row for name in point} or {self.domain.metric: None}
        return {name: np.array([[point.get(name, WORST) for point in row] for row in rows]) for name in names}


def _finite(metrics: Mapping[str, float]) -> Mapping[str, float]:
    return {k: v if math.isfinite(v) else WORST for k, v in metrics.items()}


@contextmanager
def bench(network: nn.Module, domain: Domain) -> Iterator[Bench]:
    """Yield a bench that on a CPU fits as many tasks at once as torch uses threads."""
    if choose("auto", weights_of(network), tasks=MANY_TASKS) != "threads":
        yield Bench(network, domain)
        return
    with task_threads(torch.get_num_threads()) as pool:
        yield Bench(network, domain, pool)


def best_routines(
    on: Bench,
    draws: Sequence[Start],
    batch: TaskBatch,
    steps: Sequence[int],
    metric: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[int, AdaptationRoutine]:
    """Return, for each number of steps, the optimizer and constant step size that do best on `batch`.

    SGD and Adam are searched on a grid of half decades that grows until no best value lies on its edge, so
    that a control is never judged with a step size that was cut off. Every setting is tried on the first
    `SCREENING` tasks, and the `FINALISTS` best of each number of steps on all of them; where the best of
    these lies on the edge, the grid grows on.

    Args:
        on: network and domain.
        draws: where the fits begin: draws of one rule, among which the tasks are dealt out.
        batch: validation tasks, neither trained on nor reported.
        steps: numbers of steps, each searched on its own (0 is left out).
        metric: what to maximize; the domain's headline metric unless given.
        progress: told about each setting that is tried.
    """
    horizons = [s for s in steps if s > 0]
    if not horizons:
        return {}

    judged = metric or on.domain.metric

    def score(setting: Setting, tasks: TaskBatch, wanted: Sequence[int]) -> Values:
        if progress is not None:
            progress(f"{draws[0].name}: {setting[0]} {setting[1]:.2g}, {len(tasks)} tasks")
        routine = _constant(*setting, max(wanted))
        parts = [
            on.curve(start, routine, tasks[index :: len(draws)], wanted, [judged])[judged]
            for index, start in enumerate(draws[: len(tasks)])
        ]
        mean: Values = np.concatenate(parts).mean(0)
        return mean

    few = batch[: max(SCREENING, len(draws))]
    screened = {s: score(s, few, horizons) for s in _grid()}
    extensions = MAX_EXTENSIONS
    while extensions and (beyond := _beyond_the_edges(screened, len(horizons))):
        screened |= {s: score(s, few, horizons) for s in sorted(beyond)}
        extensions -= 1
    rank = {h: sorted(screened, key=lambda s: -screened[s][i]) for i, h in enumerate(horizons)}
    if len(few) == len(batch):
        return {h: _constant(*rank[h][0], h) for h in horizons}

    final: dict[int, dict[Setting, float]] = {h: {} for h in horizons}

    def judge(wanted: Mapping[Setting, list[int]]) -> None:
        for setting, own in wanted.items():
            for h, value in zip(own, score(setting, batch, own), strict=True):
                final[h][setting] = value

    finalists = {s: [h for h in horizons if s in rank[h][:FINALISTS]] for s in screened}
    judge({s: own for s, own in finalists.items() if own})
    # All tasks may prefer an edge of what the few were screened with: then what lies beyond is tried on all.
    while extensions:
        further = {h: _beyond(final[h], {*screened, *final[h]}) for h in horizons}
        if not any(further.values()):
            break
        judge({s: [h for h in horizons if s in further[h]] for s in sorted(set().union(*further.values()))})
        extensions -= 1
    return {h: _constant(*max(final[h], key=lambda s: final[h][s]), h) for h in horizons}


def sparingly(tell: Callable[[str], None], seconds: float = 10.0) -> Callable[[str], None]:
    """Return what passes on at most one text in so many seconds, none of them at once.

    Example:
        >>> said = []
        >>> tell = sparingly(said.append)
        >>> tell('sgd 0.1')
        >>> said
        []
    """
    last = time.monotonic()

    def now_and_then(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            tell(text)

    return now_and_then


def _grid() -> list[Setting]:
    return [*(("sgd", size) for size in SGD_GRID), *(("adam", size) for size in ADAM_GRID)]


def _beyond_the_edges(scores: Mapping[Setting, Values], horizons: int) -> set[Setting]:
    """Return the settings next to each optimizer's best ones that lie on the edge of its grid."""
    parts = [_beyond({s: float(v[i]) for s, v in scores.items()}, scores) for i in range(horizons)]
    return set().union(*parts)


def _beyond(scores: Mapping[Setting, float], tried: Collection[Setting]) -> set[Setting]:
    """Return the settings next to each optimizer's best one where that lies on the edge of what was tried."""
    wanted: set[Setting] = set()
    for optimizer in {name for name, _ in scores}:
        # Of each optimizer on its own: one that is cut off may lose for that reason only.
        mine = {size: value for (name, size), value in scores.items() if name == optimizer}
        sizes = [size for name, size in tried if name == optimizer]
        best = max(mine, key=lambda size: mine[size])
        # On a plateau (masks that do not change yet, say) an edge is no better than what lies inside,
        # and nothing is cut off; where every fit diverged, all that can help is smaller steps.
        inside = [v for size, v in mine.items() if min(sizes) < size < max(sizes)]
        cut_off = mine[best] > max(inside, default=-math.inf) or mine[best] <= WORST
        if best == min(sizes) and cut_off:
            wanted.add((optimizer, best / GRID_RATIO))
        if best == max(sizes) and cut_off:
            wanted.add((optimizer, best * GRID_RATIO))
    return wanted


def _constant(optimizer: str, step_size: float, steps: int) -> AdaptationRoutine:
    return AdaptationRoutine(
        optimizer="adam" if optimizer == "adam" else "sgd", steps=steps, step_size=step_size
    )


def tuned_curve(
    on: Bench,
    start: Start,
    tuning: TaskBatch,
    batch: TaskBatch,
    steps: Sequence[int],
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Values], dict[int, AdaptationRoutine]]:
    """Return a start's curve where each number of steps has its own best routine, and those routines."""
    routines = {} if start.routine else best_routines(on, [start], tuning, steps, progress=progress)
    return curve_of(on, start, routines, batch, steps), routines


def curve_of(
    on: Bench,
    start: Start,
    routines: Mapping[int, AdaptationRoutine],
    batch: TaskBatch,
    steps: Sequence[int],
) -> dict[str, Values]:
    """Return a start's curve with its own routine, or else with one for each number of steps."""
    if start.routine is not None:
        return on.curve(start, start.routine, batch, steps)
    if not routines:
        return on.curve(start, _constant("sgd", 0.0, 0), batch, steps)
    columns: dict[int, dict[str, Values]] = {}
    # Horizons that share a setting share its run; the untouched start comes with the first of them.
    settings: dict[Setting, list[int]] = {}
    for step, routine in sorted(routines.items()):
        settings.setdefault((routine.optimizer, routine.step_size), []).append(step)
    untouched = [s for s in steps if s == 0]
    for (optimizer, step_size), own in settings.items():
        wanted, untouched = untouched + own, []
        found = on.curve(start, _constant(optimizer, step_size, max(wanted)), batch, wanted)
        for index, step in enumerate(wanted):
            columns[step] = {name: values[:, index] for name, values in found.items()}
    names = columns[steps[0]].keys()
    return {name: np.stack([columns[s][name] for s in steps], axis=1) for name in names}


def weights_of(network: nn.Module) -> Parameters:
    """Return a copy of the network's parameters by name."""
    return {k: v.detach().clone() for k, v in network.named_parameters()}


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """Copy parameters into the network, in place."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            value.copy_(weights[name])
    return network
