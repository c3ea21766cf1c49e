"""Evidence for a generator: curves of generated starts and their controls on held-out tasks.

Every start here gives each task weights of its own, from what is known of the task. All are measured twice:
with the optimizer and step size that are best for the start after each number of steps, and with the base's
own routine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from hypernets.generator.settings import EXTENSIONS, Setting, search
from hypernets.generator.task_loss import Ground
from metainit.card import Spec
from metainit.domains.base import TaskBatch
from metainit.errors import DataError
from metainit.evidence.curves import Bench, Start, bench, best_routines, curve_of
from metainit.evidence.record import EvidenceRecord, Role, Series, Subject, assembled
from metainit.evidence.statistics import Values

Note = Callable[[str], None]
Given = Callable[[TaskBatch, int], Tensor]
"""Held-out tasks and a seed -> a delta from the base for each, (B, D)."""
ROUTINE = " (prior's routine)"
"""Behind the name of a start that runs the routine of the base."""


@dataclass(frozen=True)
class GivenStart:
    """A start with weights of its own for each task; `seeded`: they depend on the seed.

    `facts`: what else there is to say of it once it has given all, such as how many draws were refused.
    """

    name: str
    role: Role
    give: Given
    seeded: bool = True
    facts: Mapping[str, int] = field(default_factory=dict)


def measure_given(
    starts: Sequence[GivenStart],
    ground: Ground,
    network: nn.Module,
    tuning: TaskBatch,
    test: TaskBatch,
    *,
    steps: Sequence[int] = (0, 1, 2, 5, 10),
    headline: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    domain: Spec | None = None,
    spec: Spec | None = None,
    candidate_digest: str = "",
    progress: Note | None = None,
) -> EvidenceRecord:
    """Measure starts on held-out tasks, with tuned optimizers and with the base's routine.

    Args:
        starts: one of them the candidate; the first of its role is that of the headline.
        ground: what deltas are added to.
        network: the network that is fitted.
        tuning: validation tasks, on which optimizers and step sizes are chosen.
        test: the tasks that are reported.
        steps: numbers of steps.
        headline: the number of steps of the headline; as many as the base's routine has unless given, or the
            last number where it has none.
        seeds: of what is drawn.
        domain: what the tasks are, for the record.
        spec: of the network, for the record.
        candidate_digest: of the generator's card.
        progress: told what goes on.

    Raises:
        DataError: there are no tasks, or no steps.
    """
    wanted = sorted(set(steps))
    if not wanted or not len(test) or not len(tuning):
        raise DataError("evidence needs steps, tasks to choose optimizers on, and others to report on")
    note = progress or (lambda text: None)
    at = headline_of(ground, wanted, headline)
    wanted = sorted({*wanted, at})
    series: list[Series] = []
    with bench(network, ground.domain) as on:
        for start in starts:
            note(f"measuring {start.name}")
            series += _both(on, start, ground, tuning, test, wanted, at, seeds, note)
    subject = Subject(
        metric=ground.domain.metric,
        data_fingerprint=ground.domain.fingerprint(),
        task_ids=test.ids,
        steps=wanted,
        seeds=seeds,
        groups=test.groups,
        domain=domain,
        network=spec,
    )
    return assembled(series, subject, candidate_digest=candidate_digest)


def headline_of(ground: Ground, steps: Sequence[int], headline: int | None) -> int:
    """Return the steps of the headline: what is asked for, else the base's own number, else the last."""
    if headline is not None:
        return headline
    return max(steps) if ground.routine is None else ground.routine.steps


def quality_after(ground: Ground, network: nn.Module, tasks: TaskBatch, deltas: Tensor, steps: int) -> float:
    """Return the mean metric of tasks that start from their deltas (B, D), after some steps.

    Of the base's own routine, as a headline is; where it has none, with the optimizer that does best on the
    tasks themselves.
    """
    start = start_given("start", ground, tasks, deltas, own_routine=ground.routine is not None)
    with bench(network, ground.domain) as on:
        routines = {} if ground.routine is not None else best_routines(on, [start], tasks, [steps])
        return float(curve_of(on, start, routines, tasks, [steps])[ground.domain.metric].mean())


def best_setting(
    grid: Sequence[Sequence[float]],
    make: Callable[[Setting], Given],
    ground: Ground,
    network: nn.Module,
    tuning: TaskBatch,
    steps: int,
    seed: int = 0,
    progress: Note | None = None,
    extensions: int = EXTENSIONS,
) -> Setting:
    """Return the setting with which what is made does best on `tuning` after some steps (`quality_after`).

    The grid grows while the best lies on its edge (`hypernets.generator.settings.search`); an empty one has
    the setting ``()`` alone, which nothing is measured for.
    """
    if not grid:
        return ()

    def score(setting: Setting) -> float:
        found = quality_after(ground, network, tuning, make(setting)(tuning, seed), steps)
        if progress is not None:
            progress(f"setting {', '.join(f'{value:.2g}' for value in setting)}: {found:.4g}")
        return found

    return search(grid, score, extensions).best


def start_given(
    name: str, ground: Ground, tasks: TaskBatch, deltas: Tensor, *, own_routine: bool = False
) -> Start:
    """Return the start that gives each of some tasks base plus its delta, (B, D)."""
    by_task = dict(zip(tasks.ids, deltas, strict=True))

    def for_task(task: TaskBatch) -> dict[str, Tensor]:
        return ground.moved(by_task[task.ids[0]])

    if own_routine:
        return Start(name, ground.base, ground.routine, ground.step_sizes or {}, for_task)
    return Start(name, ground.base, for_task=for_task)


def _both(
    on: Bench,
    start: GivenStart,
    ground: Ground,
    tuning: TaskBatch,
    test: TaskBatch,
    steps: Sequence[int],
    headline: int,
    seeds: Sequence[int],
    note: Note,
) -> list[Series]:
    """Return a start's series with tuned optimizers, and with the base's routine where it has one."""
    own = seeds if start.seeded else seeds[:1]
    given = [start.give(test, seed) for seed in own]
    chosen = [start_given(start.name, ground, tuning, start.give(tuning, seed)) for seed in own]
    routines = best_routines(on, chosen, tuning, steps, progress=note)
    tuned = [
        curve_of(on, start_given(start.name, ground, test, deltas), routines, test, steps) for deltas in given
    ]
    facts = {"steps": headline, **start.facts}
    described = {str(k): v.model_dump(mode="json") for k, v in sorted(routines.items())} | facts
    # A user's `adapt` runs the base's routine, so that is what a headline is about, where there is one.
    beside: Role = "source" if start.role == "candidate" and ground.routine is not None else start.role
    found = [Series(start.name, beside, described, _stacked(tuned, len(seeds)))]
    if ground.routine is not None:
        name = start.name + ROUTINE
        curves = [
            curve_of(on, start_given(name, ground, test, deltas, own_routine=True), {}, test, steps)
            for deltas in given
        ]
        routine = ground.routine.model_dump(mode="json", exclude={"per_tensor"}) | facts
        found.append(Series(name, start.role, routine, _stacked(curves, len(seeds))))
    return found


def _stacked(curves: Sequence[Mapping[str, Values]], seeds: int) -> dict[str, Values]:
    """Return values ``(seeds, tasks, steps)``; a start that draws nothing is the same for every seed."""
    stacked = {k: np.stack([c[k] for c in curves]) for k in curves[0]}
    return {k: v if len(v) == seeds else np.repeat(v, seeds, axis=0) for k, v in stacked.items()}


def rendered(ground: Ground, deltas: Tensor, tasks: TaskBatch) -> Tensor:
    """Return what networks at base plus delta (B, D) make of each task, untouched: ``(B, ...)``."""
    pictures = []
    with torch.no_grad():
        for delta, task in zip(deltas, tasks, strict=True):
            query = {k: v[0] for k, v in task.query.items()}
            pictures.append(ground.domain.render(ground.function(ground.moved(delta)), query, task.shared))
    return torch.stack(pictures)
