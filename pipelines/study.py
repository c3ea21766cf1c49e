"""Which setting of a routine is tried next: random ones, then what a model of the past ones proposes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from metainit.card import AdaptationRoutine
from pipelines.search import Outcome, Point, Range, SearchConfig, Trial

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


class Study:
    """Proposes settings: random ones first, then where a model of the past ones expects the most.

    The model is a Gaussian process with expected improvement (``gp``, as in the paper) or a tree of Parzen
    estimators (``tpe``), both of Optuna. The first setting is `first`, where one is given. The same seed and
    answers give the same proposals.

    Example:
        >>> study = Study({'step_size': (0.01, 1.0)}, SearchConfig(trials=3), first={'step_size': 0.1})
        >>> study.ask(2)[0]
        {'step_size': 0.1}
    """

    def __init__(
        self, space: Mapping[str, Range], config: SearchConfig, first: Mapping[str, float] | None = None
    ) -> None:
        import optuna

        # It says on every proposal that a package is missing that would only make it faster.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        samplers = {"gp": optuna.samplers.GPSampler, "tpe": optuna.samplers.TPESampler}
        sampler = samplers[config.sampler](seed=config.seed, n_startup_trials=config.random_trials)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space: dict[str, BaseDistribution] = {
            name: optuna.distributions.FloatDistribution(low, high, log=name != "augmentation")
            for name, (low, high) in space.items()
        }
        if first is not None:
            inside = {k: min(max(v, space[k][0]), space[k][1]) for k, v in first.items() if k in space}
            self._study.enqueue_trial(inside)
        self._open: list[optuna.trial.Trial] = []
        self.done: list[Trial] = []

    def ask(self, count: int) -> list[Point]:
        """Return settings to judge; `tell` has to follow."""
        with warnings.catch_warnings():
            # Optuna: what is enqueued leaves values of its own to the sampler.
            warnings.filterwarnings("ignore", category=UserWarning, module="optuna")
            self._open = [self._study.ask(self._space) for _ in range(count)]
        return [dict(trial.params) for trial in self._open]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Take in what the settings of the last `ask` are worth, in their order."""
        for trial, outcome in zip(self._open, outcomes, strict=True):
            self._study.tell(trial, outcome.score)
            self.done.append(Trial(point=dict(trial.params), outcome=outcome))
        self._open = []

    @property
    def best(self) -> Trial:
        """The best trial so far; of equal ones the one with fewer steps."""
        return max(self.done, key=lambda t: (t.outcome.score, -t.outcome.steps))


def first_point(routine: AdaptationRoutine) -> Point:
    """Return the card's routine as a setting, without what was learned."""
    return {
        "step_size": routine.step_size or 0.01,
        "augmentation": routine.augmentation,
        "weight_decay": routine.weight_decay,
    }


def run_search(
    study: Study,
    config: SearchConfig,
    judge: Callable[[Mapping[str, float]], Outcome],
    progress: Callable[[Sequence[Trial]], None] | None = None,
) -> Trial:
    """Search in this process, in rounds of `parallel` settings; return the best trial."""
    while len(study.done) < config.trials:
        points = study.ask(min(config.parallel, config.trials - len(study.done)))
        study.tell([judge(point) for point in points])
        if progress is not None:
            progress(study.done)
    return study.best
