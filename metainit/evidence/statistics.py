"""Intervals: a paired hierarchical bootstrap over seeds and tasks."""

from __future__ import annotations

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


def bootstrap(values: Values, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Return the mean of ``(seeds, tasks)`` values with an interval over both.

    Example:
        >>> bootstrap(np.ones((3, 8))).mean
        1.0
    """
    return paired_bootstrap(values, np.zeros((1, values.shape[1])), seed, confidence)


def paired_bootstrap(
    a: Values, b: Values, seed: int = 0, confidence: float = CONFIDENCE, paired_seeds: bool = False
) -> Interval:
    r"""Return the mean of a - b on the same tasks, with an interval over seeds and tasks.

    Each resample draws tasks once for both sides, and seeds for each side on its own (once for both where
    `paired_seeds` says that they are the same ones):

    .. math:: \bar a_{S_a, T} - \bar b_{S_b, T}

    Args:
        a: ``(seeds, tasks)``.
        b: ``(other seeds, tasks)``, the same tasks in the same order.
        seed: random state of the resampling.
        confidence: of the percentile interval.
        paired_seeds: the two sides have the same seeds, in the same order.

    Raises:
        DataError: the two sides have different tasks, or none.

    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", sections 8.3 and 13.3.

    Example:
        >>> gain = paired_bootstrap(np.full((1, 4), 3.0), np.full((3, 4), 1.0))
        >>> gain.mean, round(gain.low, 6)
        (2.0, 2.0)
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or 0 in a.shape or 0 in b.shape:
        raise DataError(
            f"a paired comparison needs (seeds, tasks) with the same tasks, got {a.shape} and {b.shape}"
        )
    rng = np.random.default_rng(seed)
    tasks = _weights(rng, a.shape[1])
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
