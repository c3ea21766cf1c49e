"""Which fits of a zoo are left out: what went wrong, and what is there twice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from metainit.errors import DataError

MAD_TO_DEVIATION = 1.4826
"""A normal distribution's standard deviation in units of its median absolute deviation."""
LEAST_FACTOR = 2.0
"""How many times the median loss is never an outlier, however alike the others are."""
SOLVED = 1e-3
"""A fit whose loss is below this part of the base's has worked, however much better others are."""
SAME = 1e-5
"""Deltas whose distance is a smaller share of their length are the same fit."""


def loss_limit(losses: Tensor, deviations: float, start: float = 0.0) -> float:
    r"""Return the loss above which a fit counts as failed.

    :math:`\exp(m + \max(k s, \log 2))` with m the median of the log losses and s their robust standard
    deviation, 1.4826 times the median absolute deviation; at least `SOLVED` times the loss of the base.

    Args:
        losses: final losses ``(n,)``, at least one.
        deviations: k.
        start: the median loss of the base.

    Raises:
        DataError: there is no loss.

    Example:
        >>> loss_limit(torch.tensor([1.0, 1.0, 1.0, 9.0]), deviations=5.0)
        2.0
    """
    if len(losses) == 0:
        raise DataError("expected at least one fit, got none: the limit of their losses is not known")
    logs = losses.double().clamp(min=1e-300).log()
    median = logs.median()
    spread = MAD_TO_DEVIATION * float((logs - median).abs().median())
    limit = math.exp(float(median) + max(deviations * spread, math.log(LEAST_FACTOR)))
    return float(f"{max(limit, SOLVED * start):.12g}")


def repeated_ids(ids: Sequence[str]) -> list[bool]:
    """Return for each task whether one of the same id stands before it.

    Example:
        >>> repeated_ids(['a', 'b', 'a'])
        [False, False, True]
    """
    first: dict[str, int] = {}
    return [first.setdefault(name, place) != place for place, name in enumerate(ids)]


def repeated_weights(deltas: Tensor, share: float = SAME) -> Tensor:
    """Return for each row whether it is a copy of one before it, up to a share of its length.

    Vectors that are close have lengths that are: sorted by length, only neighbours are compared.

    Args:
        deltas: ``(n, size)``.
        share: how far two of them may be apart.

    Example:
        >>> repeated_weights(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])).tolist()
        [False, False, True]
    """
    repeated = torch.zeros(len(deltas), dtype=torch.bool)
    lengths = torch.linalg.vector_norm(deltas.double(), dim=1)
    order = torch.argsort(lengths, stable=True)
    offset = 1
    while offset < len(order):
        first, second = order[:-offset], order[offset:]
        near = lengths[second] - lengths[first] <= share * lengths[second]
        if not bool(near.any()):
            break
        first, second = first[near], second[near]
        apart = torch.linalg.vector_norm((deltas[first] - deltas[second]).double(), dim=1)
        same = apart <= share * lengths[second]
        repeated[torch.maximum(first, second)[same]] = True
        kept = order[~repeated[order]]
        # Without the copies, neighbours are others: they are compared from the beginning.
        offset = offset + 1 if len(kept) == len(order) else 1
        order = kept
    return repeated
