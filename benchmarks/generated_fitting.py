"""Fits of many tasks at once from starts of their own: quality after each step, and steps to a target."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from hypernets.generator.task_loss import Ground
from metainit.adaptation import ADAM_BETAS, ADAM_EPSILON, learned_step_sizes
from metainit.domains.base import TaskBatch
from metainit.evidence.curves import GRID_RATIO
from metainit.evidence.statistics import Values

ADAM = tuple(1e-4 * GRID_RATIO**i for i in range(6))
EXTENSIONS = 6
NEVER = math.inf


@dataclass(frozen=True)
class Fitting:
    """Tasks that are fitted all at once.

    `quality`: what one task's parameters are worth, of ``(predict, query, shared)``, as a tensor without
    dimension. `steps`: how many to take. `at_once`: tasks that are fitted together; many convolutional
    networks at once slow each other down.
    """

    ground: Ground
    tasks: TaskBatch
    quality: Callable[..., Tensor]
    steps: int
    at_once: int = 256

    def adam(self, deltas: Tensor, step_size: float) -> Values:
        """Return the quality of each task after 0, 1, ... steps of Adam, ``(tasks, steps + 1)``."""
        return self._in_parts(deltas, lambda part, own: part._adam(own, step_size))

    def routine(self, deltas: Tensor) -> Values:
        """Return the quality of each task after 0, 1, ... steps of the base's own routine."""
        return self._in_parts(deltas, lambda part, own: part._routine(own))

    def _in_parts(self, deltas: Tensor, fit: Callable[[Fitting, Tensor], Values]) -> Values:
        size = self.at_once
        parts = [slice(i, i + size) for i in range(0, len(deltas), size)]
        return np.concatenate([fit(replace(self, tasks=self.tasks[p]), deltas[p]) for p in parts])

    def _adam(self, deltas: Tensor, step_size: float) -> Values:
        values = deltas.clone()
        first, second = torch.zeros_like(values), torch.zeros_like(values)
        beta1, beta2 = ADAM_BETAS
        found = [self._judged(values)]
        for step in range(1, self.steps + 1):
            slope = self._slope(values)
            first.lerp_(slope, 1 - beta1)
            second.lerp_(slope.square(), 1 - beta2)
            scale = (second / (1 - beta2**step)).sqrt() + ADAM_EPSILON
            values = values - step_size * first / (1 - beta1**step) / scale
            found.append(self._judged(values))
        return np.stack(found, 1)

    def _routine(self, deltas: Tensor) -> Values:
        ground = self.ground
        assert ground.routine is not None
        values, found = deltas.clone(), [self._judged(deltas)]
        for step in range(ground.routine.steps):
            values = values - self._sizes(step) * self._slope(values)
            found.append(self._judged(values))
        return np.stack(found, 1)

    def _sizes(self, step: int) -> Tensor:
        """Return the step size of each number."""
        ground = self.ground
        assert ground.routine is not None
        learned = learned_step_sizes(ground.routine, ground.step_sizes or {})
        parts = []
        for name, shape in zip(ground.layout.names, ground.layout.shapes, strict=True):
            own = learned.get(name)
            # Past the steps that were learned the last step size goes on.
            size = ground.routine.step_size if own is None else own[min(step, len(own) - 1)]
            parts.append(torch.as_tensor(size, dtype=torch.float32).expand(shape).flatten())
        return torch.cat(parts)

    def _slope(self, values: Tensor) -> Tensor:
        ground, tasks = self.ground, self.tasks

        def loss(delta: Tensor, support: dict[str, Tensor]) -> Tensor:
            predict = ground.function(ground.moved(delta))
            return ground.domain.support_loss(predict, support, tasks.shared)

        found: Tensor = vmap(grad(loss))(values, tasks.support)
        return found

    @torch.no_grad()
    def _judged(self, values: Tensor) -> Values:
        ground, tasks = self.ground, self.tasks

        def worth(delta: Tensor, query: dict[str, Tensor]) -> Tensor:
            return self.quality(ground.function(ground.moved(delta)), query, tasks.shared)

        found: Values = vmap(worth)(values, tasks.query).double().numpy()
        return np.nan_to_num(found, nan=-NEVER)


def crossings(curves: Values, target: float) -> Values:
    """Return the step at which each curve ``(tasks, steps + 1)`` reaches a target, between steps by a line.

    A curve that never does counts with twice the steps that were taken.
    """
    reached = curves >= target
    first = np.where(reached.any(1), reached.argmax(1), -1)
    found = np.full(len(curves), 2.0 * (curves.shape[1] - 1))
    for row, step in enumerate(first):
        if step == 0:
            found[row] = 0.0
        elif step > 0:
            low, high = curves[row, step - 1], curves[row, step]
            part = 1.0 if not math.isfinite(low) else (target - low) / (high - low)
            found[row] = step - 1 + part
    return found


@dataclass
class Search:
    """The step size with the best score; the grid grows while the best lies on its edge."""

    scores: dict[float, float] = field(default_factory=dict)

    def best(self, score: Callable[[float], float]) -> float:
        """Return the step size with the highest score."""
        for rate in ADAM:
            self.scores[rate] = score(rate)
        for _ in range(EXTENSIONS):
            best = max(self.scores, key=lambda k: self.scores[k])
            if best == min(self.scores):
                rate = best / GRID_RATIO
            elif best == max(self.scores):
                rate = best * GRID_RATIO
            else:
                break
            self.scores[rate] = score(rate)
        return max(self.scores, key=lambda k: self.scores[k])
