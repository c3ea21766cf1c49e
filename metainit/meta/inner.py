"""The inner loop that every rule shares: a few gradient steps on the support loss."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metainit.meta.state import InnerSteps, MetaParameters, Parameters, TaskLosses


def gradients(loss: Tensor, parameters: Parameters, create_graph: bool) -> Parameters:
    """Return the gradient of `loss` with respect to each parameter, by name."""
    values = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=create_graph, materialize_grads=True
    )
    return dict(zip(parameters, values, strict=True))


def unrolled(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> Parameters:
    r"""Return adapted weights that remember how they depend on the start (second order).

    .. math:: \theta_{k+1} = \theta_k - \alpha_k \odot \nabla_{\theta_k} L_\text{support}(\theta_k)

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning", equation 1.
    """
    adapted = losses.spread(meta.weights)
    for step in range(inner.steps):
        leaves = inner.moved(adapted)
        slope = gradients(losses.support(adapted, step), leaves, create_graph=True)
        adapted = adapted | {k: v - inner.at(meta, k, step) * slope[k] for k, v in leaves.items()}
    return adapted


class Truncated(NamedTuple):
    """Adapted weights cut off from the start, and the support loss and gradient before each step."""

    adapted: Parameters
    losses: list[Tensor]
    slopes: list[Parameters]


def truncated(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> Truncated:
    """Take the inner steps without remembering how they depend on the start (first order)."""
    adapted = {k: v.detach() for k, v in losses.spread(meta.weights).items()}
    reached: list[Tensor] = []
    slopes: list[Parameters] = []
    for step in range(inner.steps):
        leaves = {k: v.requires_grad_() for k, v in inner.moved(adapted).items()}
        loss = losses.support(adapted | leaves, step)
        slope = gradients(loss, leaves, create_graph=False)
        with torch.no_grad():
            adapted = adapted | {k: v - inner.at(meta, k, step) * slope[k] for k, v in leaves.items()}
        reached.append(loss.detach())
        slopes.append(slope)
    return Truncated(adapted, reached, slopes)
