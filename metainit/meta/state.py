"""The state that an outer rule moves, and the losses of the tasks that it sees.

The same rules run task by task (no task axis) and on all tasks at once (every parameter has a leading task
axis, the network is batched by `torch.func.vmap`): a rule asks `TaskLosses` to spread the weights over the
tasks and to add gradients up over them, and is otherwise unaware of the axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from metainit.domains.base import Domain, Predict, TaskBatch
from metainit.meta.variation import Variation, seen_in, split_tail

Parameters = dict[str, Tensor]


class MetaParameters(NamedTuple):
    """What meta-learning learns.

    `weights`: the start, by state-dict name. `step_sizes`: per tensor ``(steps,)`` or per parameter
    ``(steps, *shape)``, by the same names; empty where they are not learned.
    """

    weights: Parameters
    step_sizes: Parameters


class MetaGradient(NamedTuple):
    """Sums over `tasks` tasks: the meta-gradient, and the query loss after adaptation.

    Of Reptile, which has no query, `loss` is the support loss before its last inner step.
    """

    weights: Parameters
    step_sizes: Parameters
    loss: Tensor
    tasks: int


class Rule(Protocol):
    """An outer rule: the meta-gradient of the tasks behind `losses`, summed over them."""

    def __call__(self, losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
        """Return the sum over the tasks of each one's meta-gradient."""
        ...


@dataclass(frozen=True)
class InnerSteps:
    """The inner loop: its number of steps and its step size where none is learned.

    `adapts`: the names of the tensors that it moves; empty: all. `variation`: what a step sees of the
    support. `tail`: examples of the support that a rule with a tail holds back.
    """

    steps: int
    step_size: float
    adapts: tuple[str, ...] = ()
    variation: Variation = Variation()
    tail: int = 0

    def moved(self, parameters: Parameters) -> Parameters:
        """Return those of the parameters that the inner loop moves."""
        return {k: parameters[k] for k in self.adapts} if self.adapts else dict(parameters)

    def seeded(self, seed: int) -> InnerSteps:
        """Return the same inner loop with another seed, where anything depends on it."""
        return replace(self, variation=replace(self.variation, seed=seed)) if self.variation.active else self

    def at(self, meta: MetaParameters, name: str, step: int) -> Tensor | float:
        """Return the step size of one tensor at one step; past the last learned one that repeats."""
        if name not in meta.step_sizes:
            return self.step_size
        learned = meta.step_sizes[name]
        return learned[min(step, learned.shape[0] - 1)]


@dataclass(frozen=True)
class TaskLosses:
    """Support and query loss of some tasks as functions of the network's parameters."""

    domain: Domain
    function: Callable[[Mapping[str, Tensor]], Predict]
    batch: TaskBatch
    batched: bool
    variation: Variation = Variation()

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(self.batch)

    def spread(self, weights: Parameters) -> Parameters:
        """Give every task its own view of the weights (a leading task axis where batched)."""
        if not self.batched:
            return dict(weights)
        return {k: v.expand(self.tasks, *v.shape) for k, v in weights.items()}

    def gather(self, per_task: Tensor) -> Tensor:
        """Add a per-task tensor up over the tasks."""
        return per_task.sum(0) if self.batched else per_task

    def support(self, parameters: Parameters, step: int = 0) -> Tensor:
        """Return the support loss of a step, summed over the tasks (each depends on its own weights only)."""
        observed = seen_in(step, self.domain, self.batch.support, self.variation)
        return self._total(self.domain.support_loss, parameters, observed)

    def query(self, parameters: Parameters) -> Tensor:
        """Return the query loss, summed over the tasks."""
        return self._total(self.domain.query_loss, parameters, self.batch.query)

    def split(self, tail: int) -> tuple[TaskLosses, TaskLosses]:
        """Return the losses without the last examples of each support, and those of these examples alone.

        Raises:
            MismatchError: there are no examples, or none would be left.
        """
        kept, held_back = split_tail(self.batch.support, self.domain, tail)
        return (
            replace(self, batch=replace(self.batch, support=kept)),
            replace(self, batch=replace(self.batch, support=held_back), variation=Variation()),
        )

    def _total(
        self,
        loss: Callable[[Predict, Parameters, Parameters], Tensor],
        parameters: Parameters,
        observed: Parameters,
    ) -> Tensor:
        shared = self.batch.shared

        def of_one_task(weights: Parameters, seen: Parameters) -> Tensor:
            return loss(self.function(weights), seen, shared)

        if self.batched:
            total: Tensor = vmap(of_one_task)(parameters, observed).sum()
            return total
        return of_one_task(parameters, {k: v[0] for k, v in observed.items()})


def zeros_like(parameters: Parameters) -> Parameters:
    """Return zeros of the same names, shapes and types."""
    return {k: torch.zeros_like(v) for k, v in parameters.items()}
