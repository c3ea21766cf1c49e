"""The search for an adaptation routine: what is searched, and what a setting is worth.

Plain Python, without Ray: `SearchConfig` says what is searched, `Objective` judges one setting.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator
from torch import nn

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Record
from metainit.domains.base import Augmenting, Domain, TaskBatch
from metainit.errors import DivergenceError
from metainit.evidence.curves import WORST, Start
from metainit.meta.state import TaskLosses
from metainit.networks import function_of

Point = dict[str, float]
"""One setting: a value for each name that is searched."""
Range = tuple[float, float]
Curves = npt.NDArray[np.float64]
AROUND = 30.0
"""How far the step size is searched around the card's, as a factor, where no range is given."""


class SearchConfig(Record):
    """What is searched and how long.

    Step sizes and weight decays are searched on a logarithmic scale. `augmentation` and `weight_decay` are
    for tasks of labelled examples, and left out where the domain's cannot be augmented. Half of the trials
    are random, as in the paper. `parallel` trials are judged at once and told together, in order, so that a
    search depends on that number and not on how long each takes.

    Example:
        >>> SearchConfig(trials=8).random_trials
        4
    """

    trials: int = Field(default=24, ge=1, le=10_000)
    sampler: Literal["gp", "tpe"] = "gp"
    parallel: int = Field(default=1, ge=1, le=1000)
    tasks: int = Field(default=8, ge=1, le=10_000)
    max_steps: int = Field(default=80, ge=1, le=100_000)
    patience: int = Field(default=10, ge=1)
    optimizer: Literal["sgd", "adam"] | None = None
    step_size: Range | None = None
    augmentation: Range | None = (0.0, 0.8)
    weight_decay: Range | None = (1e-6, 1e-2)
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> SearchConfig:
        for name in ("step_size", "augmentation", "weight_decay"):
            span: Range | None = getattr(self, name)
            lowest = 0.0 if name == "augmentation" else np.nextafter(0, 1)
            if span is not None and not lowest <= span[0] < span[1]:
                raise ValueError(f"{name}: expected two numbers, the first below the second, got {span}")
        if self.augmentation is not None and self.augmentation[1] > 1:
            raise ValueError(f"augmentation: expected probabilities, got {self.augmentation}")
        return self

    @property
    def random_trials(self) -> int:
        """How many trials come before the model proposes any."""
        return max(1, self.trials // 2)

    def space(self, domain: Domain, routine: AdaptationRoutine) -> dict[str, Range]:
        """Return the ranges to search for a domain, around the routine of the card."""
        middle = routine.step_size or 0.01
        found = {"step_size": self.step_size or (middle / AROUND, middle * AROUND)}
        if isinstance(domain, Augmenting):
            for name, span in (("augmentation", self.augmentation), ("weight_decay", self.weight_decay)):
                if span is not None:
                    found[name] = span
        return found


class Outcome(Record):
    """What a setting is worth.

    `score`: the metric's mean over the tasks after `steps` steps, the median of each task's best number of
    steps. `best_steps`: those of each task. `curve`: the mean after each number of steps that was looked at.
    """

    score: float
    steps: int
    best_steps: tuple[int, ...]
    curve: tuple[float, ...]


class Trial(Record):
    """A setting and what it is worth."""

    point: Point
    outcome: Outcome


@dataclass(frozen=True)
class Objective:
    """Judges settings of a start's routine on validation tasks.

    Example:
        >>> from metainit.domains.ct import CTConfig, CTDomain
        >>> from metainit.evidence.curves import weights_of
        >>> from metainit.networks import Siren
        >>> domain, network = CTDomain(CTConfig(size=16, held_out=2)), Siren(out_features=1, width=8, depth=3)
        >>> start = Start('siren', weights_of(network), AdaptationRoutine(steps=2, step_size=0.01))
        >>> objective = Objective(network, domain, start, domain.tasks(0, 0, 2, 'validation'), SearchConfig())
        >>> objective.routine({'step_size': 0.02}, steps=3).step_size
        0.02
    """

    network: nn.Module
    domain: Domain
    start: Start
    tasks: TaskBatch
    config: SearchConfig
    pool: ThreadPoolExecutor | None = None

    @property
    def base(self) -> AdaptationRoutine:
        """The routine that the search starts from: the card's."""
        assert self.start.routine is not None
        return self.start.routine

    def routine(self, point: Mapping[str, float], steps: int) -> AdaptationRoutine:
        """Return the card's routine with other values and without learned step sizes."""
        changes = {"per_tensor": {}, "per_parameter": False, "continuation": None, "steps": steps}
        if self.config.optimizer is not None:
            changes["optimizer"] = self.config.optimizer
        return AdaptationRoutine.model_validate({**self.base.model_dump(), **changes, **point})

    def __call__(self, point: Mapping[str, float]) -> Outcome:
        """Adapt to every task until none has improved for `patience` steps, and take the median best step.

        Source: Hendryx et al. 2019, update hyperparameter optimization. There each task is scored at its own
        best step; here all are at the median, which is what the card can hold.
        """
        config = self.config
        curves = self._curves(self.routine(point, config.max_steps), config.max_steps, config.patience)
        best = curves.argmax(1)
        steps = int(np.median(best))
        return self._outcome(curves, steps, best)

    def baseline(self) -> Outcome:
        """Judge the card's own routine, with learned step sizes where it has them, after its own steps."""
        curves = self._curves(self.base, self.base.steps, self.base.steps + 1)
        return self._outcome(curves, self.base.steps, curves.argmax(1))

    def _outcome(self, curves: Curves, steps: int, best: npt.NDArray[np.intp]) -> Outcome:
        mean = curves.mean(0)
        return Outcome(
            score=float(mean[steps]),
            steps=steps,
            best_steps=tuple(int(b) for b in best),
            curve=tuple(float(v) for v in mean),
        )

    def _curves(self, routine: AdaptationRoutine, max_steps: int, patience: int) -> Curves:
        """Return the metric of each task after 0, 1, ... steps; all tasks take as many."""
        walks = [self._values(task, routine, max_steps) for task in self.tasks]
        columns: list[list[float]] = []
        best, since = [-math.inf] * len(walks), [0] * len(walks)
        for _ in range(max_steps + 1):
            advance = self.pool.map(next, walks) if self.pool else map(next, walks)
            columns.append(list(advance))
            for index, value in enumerate(columns[-1]):
                improved = value > best[index]
                best[index] = max(value, best[index])
                since[index] = 0 if improved else since[index] + 1
            if min(since) >= patience:
                break
        return np.array(columns).T

    def _values(self, task: TaskBatch, routine: AdaptationRoutine, steps: int) -> Iterator[float]:
        """Yield the metric before the first step and after each; `WORST` from where the fit diverges."""
        function, metric = function_of(self.network), self.domain.metric
        losses = TaskLosses(self.domain, function, task, batched=False)
        query = {k: v[0] for k, v in task.query.items()}
        sizes = self.start.step_sizes if routine.per_parameter else {}
        try:
            for weights in trajectory(losses, self.start.weights_for(task), routine, sizes, steps):
                with torch.no_grad():
                    rendered = self.domain.render(function(weights), query, task.shared)
                value = self.domain.metrics(rendered, query, [metric])[metric]
                yield value if math.isfinite(value) else WORST
        except DivergenceError:
            pass
        while True:
            yield WORST
