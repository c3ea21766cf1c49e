"""Reptile: move the start towards each task's adapted weights."""

from __future__ import annotations

import torch

from metainit.meta.inner import truncated
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, TaskLosses, zeros_like


def reptile(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
    r"""Return the Reptile direction, the start minus the adapted weights.

    .. math:: g = \theta - \theta_K

    The outer optimizer treats it as a gradient, as the paper's section 3 does with Adam. It is not divided
    by the step size: Adam's update does not depend on the scale.

    Source: Nichol et al. 2018, "On First-Order Meta-Learning Algorithms", algorithm 2.
    """
    adapted, reached, _ = truncated(losses, meta, inner)
    with torch.no_grad():
        start = losses.spread(meta.weights)
        moved = {k: losses.gather(start[k] - v) for k, v in adapted.items()}
    # No query: its pass would cost a seventh of two inner steps, for a number that nothing depends on.
    return MetaGradient(moved, zeros_like(meta.step_sizes), reached[-1], losses.tasks)
