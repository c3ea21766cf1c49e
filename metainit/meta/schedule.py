"""The step size over a run: warm-up, then a cosine."""

from __future__ import annotations

import math

LEAST = 0.01
"""What the cosine ends at, as a part of the step size."""


def warm_up_and_cosine(step: int, steps: int, warm_up: int) -> float:
    r"""Return the factor on the step size: linear warm-up, then a half cosine to 1 %.

    .. math:: \frac{1 + \cos \pi t}{2} (1 - 0.01) + 0.01

    with t from 0 at the end of the warm-up to 1 at the last of `steps`.

    Source: Loshchilov & Hutter 2017, "SGDR", arXiv:1608.03983, equation 5, without restarts.

    Example:
        >>> warm_up_and_cosine(0, 100, 10), warm_up_and_cosine(10, 100, 10)
        (0.1, 1.0)
    """
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return LEAST + (1 - LEAST) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
