"""Intervals: a paired hierarchical bootstrap over seeds, groups of tasks, and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from metainit.errors import DataError

Values = npt.NDArray[np.float64]
RESAMPLES = 4000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A mean and the limits of its interval."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: Values, seed: int = 0, confidence: float = CONFIDENCE, groups: Sequence[str] | None = None
) -> Interval:
    """Return the mean of ``(seeds, tasks)`` values with an interval over both, and over `groups` of tasks.

    Example:
        >>> bootstrap(np.ones((3, 8))).mean
        1.0
    """
    return paired_bootstrap(values, np.zeros((1, values.shape[1])), seed, confidence, groups=groups)


def paired_bootstrap(
    a: Values,
    b: Values,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    paired_seeds: bool = False,
    groups: Sequence[str] | None = None,
) -> Interval:
    r"""Return the mean of a - b on the same tasks, with an interval over seeds, groups and tasks.

    Each resample draws tasks once for both sides, and seeds for each side on its own (once for both where
    `paired_seeds` says that they are the same ones):

    .. math:: \bar a_{S_a, T} - \bar b_{S_b, T}

    Where tasks have groups, groups are drawn first, and then as many tasks within each drawn group as it has:
    crops of one photograph, or slices of one patient, are alike and are no independent draws. Of few groups
    such an interval is still too narrow, and of a single one it tells nothing about others.

    Args:
        a: ``(seeds, tasks)``.
        b: ``(other seeds, tasks)``, the same tasks in the same order.
        seed: random state of the resampling.
        confidence: of the percentile interval.
        paired_seeds: the two sides have the same seeds, in the same order.
        groups: the group of each task; each task is its own unless they are given.

    Raises:
        DataError: the two sides have different tasks, or none, or the number of groups is not that of tasks.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", sections 8.3 and 13.3; the two stages
    of groups and tasks: Davison & Hinkley 1997, "Bootstrap Methods and their Application", section 3.8.

    Example:
        >>> gain = paired_bootstrap(np.full((1, 4), 3.0), np.full((3, 4), 1.0))
        >>> gain.mean, round(gain.low, 6)
        (2.0, 2.0)
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        raise DataError(
            f"a paired comparison needs (seeds, tasks) with the same tasks, got {a.shape} and {b.shape}"
        )
    if groups is not None and len(groups) != a.shape[1]:
        raise DataError(f"expected a group for each of the {a.shape[1]} tasks, got {len(groups)}")
    rng = np.random.default_rng(seed)
    tasks = _weights(rng, a.shape[1]) if groups is None else _grouped_weights(rng, groups)
    side_a = _weights(rng, a.shape[0])
    side_b = side_a if paired_seeds else _weights(rng, b.shape[0])
    means = np.einsum("rs,st,rt->r", side_a, a, tasks) - np.einsum("rs,st,rt->r", side_b, b, tasks)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(a.mean() - b.mean()), float(low), float(high))


def _weights(rng: np.random.Generator, count: int) -> Values:
    """Return how often each of `count` items is drawn in each resample, as shares."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _grouped_weights(rng: np.random.Generator, groups: Sequence[str]) -> Values:
    """Return how often each task is drawn in each resample, as shares: groups first, then tasks in them."""
    _, group_of, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if len(sizes) == len(groups):
        return _weights(rng, len(groups))
    drawn = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=RESAMPLES)
    counts = np.zeros((RESAMPLES, len(groups)))
    for group, size in enumerate(sizes):
        # The draws from a group that was drawn k times are k * size of its tasks.
        counts[:, group_of == group] = rng.multinomial(drawn[:, group] * size, np.full(size, 1 / size))
    shares: Values = counts / counts.sum(1, keepdims=True)
    return shares
