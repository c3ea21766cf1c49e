"""Run the trials of a search on Ray Tune."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from metainit.errors import MetainitError
from pipelines.local_ray import ray_cluster
from pipelines.search import Outcome, Point, SearchConfig, Trial
from pipelines.study import Study
from pipelines.trials import Setup, judged, worker_objective

Progress = Callable[[Sequence[Trial]], None]
SCORE, OUTCOME, POINT = "score", "outcome", "point"


class Rounds(Searcher):
    """Hands out the settings of one round and tells the study about them in their order, all at once."""

    def __init__(self, study: Study, config: SearchConfig, progress: Progress | None = None) -> None:
        super().__init__(metric=SCORE, mode="max")
        self._study, self._config, self._progress = study, config, progress
        self._waiting: list[Point] = []
        self._order: list[str] = []
        self._answers: dict[str, Outcome] = {}
        self._size = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return the next setting of the round; None while others of a full round are judged."""
        if not self._waiting:
            left = self._config.trials - len(self._study.done)
            if self._order or left <= 0:
                return None
            self._size = min(self._config.parallel, left)
            self._waiting = self._study.ask(self._size)
        self._order.append(trial_id)
        return {POINT: self._waiting.pop(0)}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Keep an answer, and end the round with its last one."""
        if error or not result or OUTCOME not in result:
            return
        self._answers[trial_id] = Outcome.model_validate_json(result[OUTCOME])
        if len(self._answers) == self._size:
            self._study.tell([self._answers[i] for i in self._order])
            self._order, self._answers = [], {}
            if self._progress is not None:
                self._progress(self._study.done)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: a search goes on from its trials' own files."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing, likewise."""


def run_on_tune(study: Study, setup: Setup, folder: Path, progress: Progress | None = None) -> None:
    """Let Ray Tune judge the settings that a study proposes, `parallel` at once.

    `folder` is shared by the driver and the workers, as on one machine or on a network drive.

    Raises:
        MetainitError: Ray cannot be reached, or a trial failed.
    """
    config = setup.search
    with ray_cluster():
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, setup=setup.model_dump_json(), folder=str(folder)), {"cpu": 1}
            ),
            tune_config=tune.TuneConfig(
                search_alg=Rounds(study, config, progress),
                num_samples=config.trials,
                max_concurrent_trials=None,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=setup.key,
                storage_path=str(folder / "ray"),
                verbose=0,
                # A round without one of its answers never ends, and no other follows it.
                failure_config=tune.FailureConfig(fail_fast=True),
            ),
        )
        results = tuner.fit()
    if results.errors:
        text = str(results.errors[0]).strip().splitlines()
        raise MetainitError(f"a trial failed: {text[-1] if text else 'no reason was given'}")
    if len(study.done) < config.trials:
        raise MetainitError(
            f"Ray Tune ended after {len(study.done)} of {config.trials} trials; what was judged is kept in "
            f"{folder}, and the same command goes on from there"
        )


def _trial(config: dict[str, Any], setup: str, folder: str) -> None:
    """Judge one setting in a worker process."""
    place = Setup.model_validate_json(setup).working_folder
    if os.path.isdir(place):
        os.chdir(place)
    outcome = judged(worker_objective(setup), config[POINT], Path(folder))
    tune.report({SCORE: outcome.score, OUTCOME: outcome.model_dump_json()})
