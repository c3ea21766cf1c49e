"""The settings of a control that do best: a grid that grows while the best of it lies on its edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

Setting = tuple[float, ...]
"""One value of each dimension."""
EXTENSIONS = 4
"""How many values a dimension grows by at most."""


@dataclass(frozen=True)
class Found:
    """The setting with the highest score, and the scores of all that were tried."""

    best: Setting
    scores: Mapping[Setting, float]


def search(
    grid: Sequence[Sequence[float]], score: Callable[[Setting], float], extensions: int = EXTENSIONS
) -> Found:
    """Return the setting with the highest score of a product grid, and of what lies around the best.

    While the best lies on the edge of a dimension, that one grows by its own ratio there. A new value is
    tried with the other coordinates of the best alone; so are, where such a setting wins, its neighbours. In
    the end no neighbour of the best is untried, unless a dimension has grown as far as it may.

    Args:
        grid: positive values of each dimension, ascending. A dimension of one value stays as it is; without
            dimensions there is the one setting ``()``.
        score: the higher the better; asked once for each setting. What is not a number is the lowest.
        extensions: by how many values a dimension may grow.

    Raises:
        ValueError: a dimension has no values, or they are not positive and ascending.

    Example:
        >>> search([(0.1, 1.0)], lambda setting: -abs(setting[0] - 100)).best
        (100.0,)
    """
    axes = [list(axis) for axis in grid]
    for axis in axes:
        if not axis or axis[0] <= 0 or any(b <= a for a, b in zip(axis, axis[1:], strict=False)):
            raise ValueError(f"expected positive ascending values in each dimension, got {axis}")
    left = [extensions if len(axis) > 1 else 0 for axis in axes]
    scores: dict[Setting, float] = {}

    def judge(settings: Sequence[Setting]) -> None:
        for setting in settings:
            value = score(setting)
            scores[setting] = -math.inf if math.isnan(value) else value

    judge(list(product(*axes)))
    while True:
        best = max(scores, key=lambda setting: scores[setting])
        for number, axis in enumerate(axes):
            if left[number] and best[number] in (axis[0], axis[-1]):
                _grow(axis, upward=best[number] == axis[-1])
                left[number] -= 1
        untried = [s for s in _neighbours(best, axes) if s not in scores]
        if not untried:
            return Found(best, scores)
        judge(untried)


def _grow(axis: list[float], *, upward: bool) -> None:
    if upward:
        axis.append(axis[-1] * axis[-1] / axis[-2])
    else:
        axis.insert(0, axis[0] * axis[0] / axis[1])


def _neighbours(setting: Setting, axes: Sequence[Sequence[float]]) -> list[Setting]:
    """Return the settings that are one value away in one dimension."""
    found = []
    for number, axis in enumerate(axes):
        at = axis.index(setting[number])
        found += [
            (*setting[:number], axis[other], *setting[number + 1 :])
            for other in (at - 1, at + 1)
            if 0 <= other < len(axis)
        ]
    return found
