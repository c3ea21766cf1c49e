"""MAML and its first-order variant."""

from __future__ import annotations

import torch

from metainit.meta.inner import gradients, truncated, unrolled
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, TaskLosses, zeros_like


def maml(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
    r"""Return the exact meta-gradient, through the inner steps (second order).

    .. math:: g = \nabla_\theta L_\text{query}(\theta_K(\theta))

    Learned step sizes, where there are any, get their gradient from the same backward pass.

    Source: Finn et al. 2017, "Model-Agnostic Meta-Learning", algorithm 1; with learned step sizes it is
    Li et al. 2017, "Meta-SGD", algorithm 1.
    """
    weights = {k: v.detach().requires_grad_() for k, v in meta.weights.items()}
    step_sizes = {k: v.detach().requires_grad_() for k, v in meta.step_sizes.items()}
    leaves = MetaParameters(weights, step_sizes)
    reached = losses.query(unrolled(losses, leaves, inner))
    values = torch.autograd.grad(reached, [*weights.values(), *step_sizes.values()], materialize_grads=True)
    return MetaGradient(
        dict(zip(weights, values[: len(weights)], strict=True)),
        dict(zip(step_sizes, values[len(weights) :], strict=True)),
        reached.detach(),
        losses.tasks,
    )


def fomaml(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
    r"""Return the first-order meta-gradient, the query gradient at the adapted weights.

    .. math:: g = \nabla_{\theta_K} L_\text{query}(\theta_K)

    Source: Finn et al. 2017, section 5.2 (first-order approximation).
    """
    adapted = truncated(losses, meta, inner).adapted
    leaves = {k: v.requires_grad_() for k, v in adapted.items()}
    reached = losses.query(leaves)
    slope = gradients(reached, leaves, create_graph=False)
    gathered = {k: losses.gather(v) for k, v in slope.items()}
    return MetaGradient(gathered, zeros_like(meta.step_sizes), reached.detach(), losses.tasks)
