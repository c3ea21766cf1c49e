"""Choose start, optimizer, step size and number of steps on validation tasks: the same search for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metainit.card import AdaptationRoutine, Continuation
from metainit.domains.base import TaskBatch
from metainit.evidence.curves import GRID_RATIO, Bench, Start

OWN = "own"
"""A prior's learned step sizes, the last one repeated."""
Setting = tuple[str, str, float]
"""Start, optimizer and step size."""


@dataclass(frozen=True)
class Search:
    """What is searched: grids that grow, the numbers of steps, and how many tasks judge what.

    `limits`: the best setting is wanted for each, among numbers of steps that are not above it. All settings
    are screened on `screening` tasks; the `finalists` best of each limit are judged on all.
    """

    grids: Mapping[str, Sequence[float]]
    steps: tuple[int, ...]
    limits: tuple[int, ...]
    screening: int
    finalists: int
    max_extensions: int = 5


def routine_of(start: Start, optimizer: str, rate: float, steps: int) -> AdaptationRoutine:
    """Return a constant optimizer; of a prior the one that takes over after its learned steps, if any."""
    kind: Any = optimizer
    if start.routine is None:
        return AdaptationRoutine(optimizer=kind, steps=steps, step_size=rate)
    if optimizer == OWN:
        return start.routine
    return start.routine.model_copy(update={"continuation": Continuation(optimizer=kind, step_size=rate)})


def choose(
    bench: Bench,
    starts: Sequence[Start],
    tuning: TaskBatch,
    search: Search,
    settings: Sequence[Setting] | None = None,
) -> dict[int, dict[str, Any]]:
    """Return, for each limit, the setting and number of steps that do best on the tuning tasks.

    The grids grow until no start's best value lies on an edge. With `settings`, only those are judged, on all
    tasks.
    """
    by_name = {start.name: start for start in starts}
    steps = np.array(search.steps)

    def score(setting: Setting, tasks: TaskBatch) -> np.ndarray:
        start = by_name[setting[0]]
        routine = routine_of(start, *setting[1:], search.steps[-1])
        metric = bench.domain.metric
        mean: np.ndarray = bench.curve(start, routine, tasks, search.steps, [metric])[metric].mean(0)
        return mean

    def best_within(curve: np.ndarray, limit: int) -> float:
        return float(curve[steps <= limit].max())

    screened: dict[Setting, np.ndarray] = {}
    finalists = set(settings or ())
    if settings is None:
        wanted = {(n, o, r) for n in by_name for o, rates in search.grids.items() for r in rates}
        wanted |= {(start.name, OWN, 1.0) for start in starts if start.routine is not None}
        while wanted:
            screened |= {s: score(s, tuning[: search.screening]) for s in sorted(wanted)}
            wanted = {
                setting
                for limit in search.limits
                for n in by_name
                for o, rates in search.grids.items()
                for setting in _beyond(
                    {s[2]: best_within(v, limit) for s, v in screened.items() if s[:2] == (n, o)},
                    (n, o),
                    len(rates) + search.max_extensions,
                )
            } - set(screened)
        for limit in search.limits:
            rank = sorted(screened, key=lambda s: -best_within(screened[s], limit))
            finalists |= set(rank[: search.finalists])
    scores = {s: score(s, tuning) for s in sorted(finalists)}
    found = {}
    for limit in search.limits:
        best = max(scores, key=lambda s: best_within(scores[s], limit))
        inside = np.where(steps <= limit, scores[best], -np.inf)
        found[limit] = {
            "start": best[0],
            "optimizer": best[1],
            "rate": best[2],
            "steps": int(steps[inside.argmax()]),
            "validation": round(float(inside.max()), 4),
            "settings": len(screened) or len(scores),
            "finalists": [list(s) for s in sorted(finalists)],
        }
    return found


def _beyond(scores: Mapping[float, float], kind: tuple[str, str], most: int) -> set[Setting]:
    """Return the setting next to the best one where that lies on an edge of what was tried."""
    best = max(scores, key=lambda rate: scores[rate])
    # On a plateau an edge is no better than what lies inside, and nothing is cut off.
    inside = [v for rate, v in scores.items() if min(scores) < rate < max(scores)]
    if len(scores) >= most or scores[best] <= max(inside, default=-1.0):
        return set()
    if best == min(scores):
        return {(*kind, best / GRID_RATIO)}
    return {(*kind, best * GRID_RATIO)} if best == max(scores) else set()
