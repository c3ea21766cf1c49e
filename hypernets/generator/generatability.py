r"""Whether weights can be generated from a set of fits at all, asked before hours are spent on it.

A generator that has learned a set of fits perfectly still gives weights *between* those it has seen. So the
midpoint of two fits has to be a network that works: its loss on the two tasks, between the loss of the fits
(the ends) and that of the base where all of them began. The share of what fitting gained that is left at the
midpoint is

.. math:: s = \frac{L_\text{base} - L_\text{midpoint}}{L_\text{base} - L_\text{end}}

For a network that is linear in its weights, with a squared loss, perfect fits and the mean of all tasks as
base, s is 1/2. For fits that have gone to unrelated places (of random starts, or with permuted neurons), the
midpoint is worse than a good base, and s negative.

Source: the midpoint test of weight spaces, Frankle et al. 2020, arXiv:1912.05671 (linear mode connectivity).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import vmap

from hypernets.generator.flat import FlatLayout
from metainit.card import Record
from metainit.domains.base import Domain, Predict, TaskBatch, Tensors
from metainit.domains.seeding import generator_of
from metainit.errors import DataError

Verdict = Literal["generatable", "doubtful", "not generatable", "not fitted"]
GENERATABLE = 0.25
"""The share from which on a generator has something to learn: half of what the linear case has."""
FITTED = 0.5
"""Fits that keep more of the base's loss than this share of it have not been fitted."""
CHUNK = 64
"""Tasks that are evaluated at once."""


class Generatability(Record):
    """What the midpoints of pairs of fits say: mean losses, and the share of the gain that is left there.

    `metric`, `metric_ends`, `metric_midpoints` and `metric_base`: the same of the domain's headline metric,
    where it was measured.
    """

    pairs: int = Field(ge=1)
    ends: float
    midpoints: float
    base: float
    share: float
    verdict: Verdict
    metric: str = ""
    metric_ends: float | None = None
    metric_midpoints: float | None = None
    metric_base: float | None = None

    @property
    def sentence(self) -> str:
        """The verdict in words, with the way out."""
        measured = (
            f"{self.verdict}: halfway between two fits {self.share:.0%} of what fitting gained is left "
            f"(loss {self.ends:.3g} at the fits, {self.midpoints:.3g} halfway, {self.base:.3g} at the base)"
        )
        if self.metric_midpoints is not None:
            measured += (
                f"; {self.metric} {self.metric_ends:.3g}, {self.metric_midpoints:.3g} and "
                f"{self.metric_base:.3g}"
            )
        return measured + WAYS_OUT[self.verdict]


WAYS_OUT: Mapping[Verdict, str] = {
    "generatable": "",
    "doubtful": ". Fit with fewer or smaller steps, so that the fits stay closer to their base",
    "not generatable": (
        ". The fits have gone to unrelated places: begin from a meta-learned prior, and fit with fewer or "
        "smaller steps"
    ),
    "not fitted": ". The fits hardly differ from their base: fit with more or larger steps",
}


def judge(ends: Tensor, midpoints: Tensor, base: Tensor) -> Generatability:
    """Return what losses on the tasks of pairs of fits say.

    Args:
        ends: of each fit on its own task ``(pairs, 2)``.
        midpoints: of the pair's midpoint on the same tasks ``(pairs, 2)``.
        base: of the base on the same tasks ``(pairs, 2)``.

    Raises:
        DataError: the shapes differ, there is no pair, or the losses of ends or base are not finite.

    Example:
        >>> ones = torch.ones(3, 2)
        >>> judge(ends=0 * ones, midpoints=0.5 * ones, base=ones).verdict
        'generatable'
        >>> judge(ends=0 * ones, midpoints=4 * ones, base=ones).verdict
        'not generatable'
    """
    if not ends.shape == midpoints.shape == base.shape or ends.dim() != 2 or ends.numel() == 0:
        raise DataError(
            "expected losses (pairs, 2) of ends, midpoints and base, got "
            f"{tuple(ends.shape)}, {tuple(midpoints.shape)} and {tuple(base.shape)}"
        )
    if not bool(torch.isfinite(ends).all() and torch.isfinite(base).all()):
        raise DataError("expected finite losses of fits and base: leave fits that diverged out")
    at_ends, at_base = float(ends.double().mean()), float(base.double().mean())
    # A midpoint that is no network at all is as bad as can be written down.
    largest = torch.finfo(torch.float32).max / 4
    between = float(midpoints.double().nan_to_num(largest, largest).clamp(max=largest).mean())
    gained = at_base - at_ends
    share = (at_base - between) / gained if gained > 0 else 0.0
    verdict: Verdict
    if at_ends > FITTED * at_base and at_base > 0:
        verdict = "not fitted"
    elif share >= GENERATABLE:
        verdict = "generatable"
    else:
        verdict = "doubtful" if share >= 0 else "not generatable"
    return Generatability(
        pairs=len(ends), ends=at_ends, midpoints=between, base=at_base, share=share, verdict=verdict
    )


def pairs_of(count: int, seed: int = 0) -> Tensor:
    """Return a random cycle through `count` fits as pairs ``(count, 2)``: each is in two of them.

    Raises:
        DataError: there are fewer than two fits.
    """
    if count < 2:
        raise DataError(f"expected at least two fits to look between, got {count}")
    order = torch.randperm(count, generator=generator_of("pairs", seed))
    return torch.stack([order, order.roll(1)], dim=1)


def generatability(
    domain: Domain,
    function: Callable[[Mapping[str, Tensor]], Predict],
    base: Mapping[str, Tensor],
    layout: FlatLayout,
    deltas: Tensor,
    tasks: TaskBatch,
    seed: int = 0,
) -> Generatability:
    """Return what the midpoints of random pairs of fits are worth on the tasks of both.

    Args:
        domain: whose losses and headline metric count.
        function: from a network's parameters to what it computes.
        base: the parameters where the fits began.
        layout: which of them the fits moved, and in which order.
        deltas: the fits minus the base ``(T, size)``.
        tasks: the task of each fit.
        seed: of the pairs.

    Raises:
        DataError: there are fewer than two fits, or not a task for each.
    """
    if len(deltas) != len(tasks):
        raise DataError(f"expected a task for each of {len(deltas)} fits, got {len(tasks)}")
    pairs = pairs_of(len(deltas), seed)
    halfway = deltas[pairs].mean(1)
    first, second = pairs[:, 0].tolist(), pairs[:, 1].tolist()

    def losses(moved: Tensor, on: list[int]) -> Tensor:
        return evaluated(domain, function, base, layout, moved, chosen(tasks, on))[0]

    nothing = torch.zeros_like(deltas)
    ends, ends_metric = evaluated(domain, function, base, layout, deltas, tasks, metrics=True)
    start, start_metric = evaluated(domain, function, base, layout, nothing, tasks, metrics=True)
    one, metric = evaluated(domain, function, base, layout, halfway, chosen(tasks, first), metrics=True)
    found = judge(ends[pairs], torch.stack([one, losses(halfway, second)], 1), start[pairs])
    return found.model_copy(
        update={
            "metric": domain.metric,
            "metric_ends": float(ends_metric.mean()),
            "metric_midpoints": float(metric.nan_to_num().mean()),
            "metric_base": float(start_metric.mean()),
        }
    )


@torch.no_grad()
def evaluated(
    domain: Domain,
    function: Callable[[Mapping[str, Tensor]], Predict],
    base: Mapping[str, Tensor],
    layout: FlatLayout,
    deltas: Tensor,
    tasks: TaskBatch,
    metrics: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the support loss and the headline metric of the network that each task's delta gives, ``(T,)``.

    The metric is that of the query; it is empty unless it is asked for.
    """
    shared = tasks.shared

    def loss(moved: Tensors, support: Tensors) -> Tensor:
        return domain.support_loss(function({**base, **moved}), support, shared)

    def render(moved: Tensors, query: Tensors) -> Tensor:
        return domain.render(function({**base, **moved}), query, shared)

    start = layout.flatten({name: base[name] for name in layout.names})
    found: list[Tensor] = []
    values: list[float] = []
    for begin in range(0, len(tasks), CHUNK):
        part = slice(begin, begin + CHUNK)
        moved = layout.unflatten(start + deltas[part].to(start))
        some = tasks[part]
        found.append(vmap(loss)(moved, some.support).cpu())
        if metrics:
            rendered = vmap(render)(moved, some.query).cpu()
            truth = {name: value.cpu() for name, value in some.query.items()}
            for number, picture in enumerate(rendered):
                of_task = {name: value[number] for name, value in truth.items()}
                values.append(domain.metrics(picture, of_task, [domain.metric])[domain.metric])
    return torch.cat(found), torch.tensor(values)


def chosen(tasks: TaskBatch, numbers: list[int]) -> TaskBatch:
    """Return some tasks of a batch, in any order and as often as they are named."""
    support, query, conditions = (
        {name: value[numbers] for name, value in part.items()}
        for part in (tasks.support, tasks.query, tasks.conditions)
    )
    ids, groups = (tuple(names[n] for n in numbers) for names in (tasks.ids, tasks.groups))
    return TaskBatch(support, query, tasks.shared, ids, groups, conditions)
