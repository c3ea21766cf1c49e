"""The fits of one shard: a pure function of the recipe, the base, the data and the shard's number."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from hypernets.generator.generatability import evaluated
from hypernets.generator.members import Members
from hypernets.generator.shards import Shard
from metainit.adaptation import trajectory
from metainit.domains.base import Domain, Enumerable, Observing, Split, TaskBatch
from metainit.domains.seeding import seed_of
from metainit.errors import DivergenceError
from metainit.meta.engine import NARROW_ELEMENTS
from metainit.meta.state import Parameters, TaskLosses
from pipelines.zoo.preparation import PreparedZoo, ShardPlan

OBSERVATION = "observation"
NOT_FINITE = "the weights or the loss in the end are not finite"


@dataclass(frozen=True)
class Fits:
    """Fits of some tasks, in their order: what a shard holds, and the tasks that diverged."""

    deltas: Tensor
    losses: Tensor
    start_losses: Tensor
    metric: Tensor
    kept: tuple[int, ...]
    failed: dict[str, str] = field(default_factory=dict)


def how(execution: Literal["auto", "vmap", "loop"], weights: Parameters) -> Literal["vmap", "loop"]:
    """Resolve ``auto`` from the size of the largest tensor: all tasks at once where networks are narrow.

    With one thread a worker, a SIREN of 697 numbers is fitted ten times as fast all at once as one after
    another, a small U-Net three times; from some 100,000 numbers on what is gained (a fourth) is not worth
    the memory, which grows with the number of tasks.

    Example:
        >>> how('auto', {'w': torch.zeros(24, 24)}), how('auto', {'w': torch.zeros(64, 64, 3, 3)})
        ('vmap', 'loop')
    """
    if execution != "auto":
        return execution
    if any(value.device.type != "cpu" for value in weights.values()):
        return "vmap"
    return "vmap" if max(value.numel() for value in weights.values()) <= NARROW_ELEMENTS else "loop"


@contextmanager
def one_thread() -> Iterator[None]:
    """Have one thread inside operations: shards run side by side, and sums keep their order everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fit_shard(prepared: PreparedZoo, plan: ShardPlan) -> Shard:
    """Fit the tasks of one shard; the same plan gives the same bytes, in whatever process.

    Tasks whose fit diverges are named with the reason; the others are fitted without them.
    """
    tasks = tasks_of(prepared, plan)
    with one_thread():
        parts = [
            fitted(prepared, tasks[begin : begin + prepared.recipe.batch])
            for begin in range(0, len(tasks), prepared.recipe.batch)
        ]
    found = _joined(parts, [prepared.recipe.batch * n for n in range(len(parts))])
    rows = torch.tensor(found.kept, dtype=torch.int64)
    conditions = {kind: value.cpu()[rows] for kind, value in tasks.conditions.items()}
    if prepared.recipe.observations and isinstance(prepared.domain, Observing):
        seen = prepared.domain.observed(tasks.support, tasks.shared)
        conditions[OBSERVATION] = seen.detach().float().cpu()[rows]
    members = Members(found.deltas, conditions, found.losses, tuple(tasks.ids[n] for n in found.kept))
    rest = (found.start_losses, found.metric, found.failed, plan.index)
    return Shard(plan.split, plan.number, members, *rest)


def tasks_of(prepared: PreparedZoo, plan: ShardPlan) -> TaskBatch:
    """Return the tasks of a shard, on the device."""
    recipe = prepared.recipe
    tasks = shard_tasks(prepared.domain, plan.split, plan.index, recipe.shard, recipe.seed)[: plan.count]
    return tasks.to(prepared.device, torch.float32)


def shard_tasks(domain: Domain, split: Split, index: int, shard: int, seed: int) -> TaskBatch:
    """Return the tasks of a whole shard: each training task once where there is an end of them.

    Otherwise they are drawn, and one that was drawn before is left out in the end.

    Args:
        domain: of the zoo.
        split: of the shard.
        index: how many shards of the split come before it.
        shard: how many tasks it has; fewer where the split ends.
        seed: of the zoo's recipe.
    """
    if isinstance(domain, Enumerable) and domain.size(split) is not None:
        return domain.enumerated(split, index * shard, shard)
    return domain.tasks(seed_of("zoo", seed), index, shard, split)


def fitted(prepared: PreparedZoo, tasks: TaskBatch) -> Fits:
    """Return the fits of some tasks; where one diverges, the others are fitted in two halves without it."""
    layout = prepared.layout
    try:
        last = _last(prepared, tasks)
    except DivergenceError as error:
        if len(tasks) == 1:
            return _none(layout.size, {tasks.ids[0]: str(error)})
        middle = len(tasks) // 2
        return _joined([fitted(prepared, tasks[:middle]), fitted(prepared, tasks[middle:])], [0, middle])
    deltas = layout.flatten(last) - layout.flatten({name: prepared.start[name] for name in layout.names})
    whole = torch.isfinite(deltas).all(1).cpu()
    settled = torch.where(torch.isfinite(deltas), deltas, 0)
    losses, metric = evaluated(
        prepared.domain, prepared.function, prepared.start, layout, settled, tasks, metrics=True
    )
    start_losses, _ = evaluated(
        prepared.domain, prepared.function, prepared.start, layout, torch.zeros_like(deltas), tasks
    )
    whole &= torch.isfinite(losses) & torch.isfinite(metric) & torch.isfinite(start_losses)
    kept = whole.nonzero().flatten()
    failed = {tasks.ids[n]: NOT_FINITE for n in (~whole).nonzero().flatten().tolist()}
    return Fits(
        deltas.float().cpu()[kept],
        losses.float()[kept],
        start_losses.float()[kept],
        metric.float()[kept],
        tuple(kept.tolist()),
        failed,
    )


def _last(prepared: PreparedZoo, tasks: TaskBatch) -> Parameters:
    """Return what the fits moved, with a task axis, after the last step.

    Raises:
        DivergenceError: a loss is not finite.
    """
    at_once = how(prepared.recipe.execution, prepared.start) == "vmap"
    names = prepared.layout.names
    ends = []
    for part in [tasks] if at_once else tasks:
        losses = TaskLosses(prepared.domain, prepared.function, part, batched=at_once)
        fit = prepared.fit
        seed = seed_of("fits", prepared.recipe.seed)
        steps = trajectory(losses, prepared.start, fit.routine, prepared.step_sizes, fit.steps, seed=seed)
        for weights in steps:
            end = weights
        ends.append({name: end[name].detach() for name in names})
    if at_once:
        return ends[0]
    return {name: torch.stack([end[name] for end in ends]) for name in names}


def _none(size: int, failed: dict[str, str]) -> Fits:
    nothing = torch.zeros(0)
    return Fits(torch.zeros(0, size), nothing, nothing, nothing, (), failed)


def _joined(parts: list[Fits], begins: list[int]) -> Fits:
    """Return the fits of consecutive tasks together; `begins` says where each part's tasks begin."""
    return Fits(
        torch.cat([part.deltas for part in parts]),
        torch.cat([part.losses for part in parts]),
        torch.cat([part.start_losses for part in parts]),
        torch.cat([part.metric for part in parts]),
        tuple(begin + n for part, begin in zip(parts, begins, strict=True) for n in part.kept),
        {name: reason for part in parts for name, reason in part.failed.items()},
    )
