"""MAML and its first-order variants."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metainit.meta.inner import gradients, truncated, unrolled
from metainit.meta.state import (
    InnerSteps,
    MetaGradient,
    MetaParameters,
    Parameters,
    TaskLosses,
    zeros_like,
)


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
    return _at_the_end(losses, losses.query, meta, inner)


def fomaml_tail(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
    r"""Return the first-order meta-gradient of examples that were held back from the inner loop (FOMAML*).

    With the support split into S, which the inner loop sees, and its last `inner.tail` examples T,

    .. math:: g = \nabla_{\theta_K} L_T(\theta_K), \qquad \theta_K = \theta_K(\theta; S)

    so that all labelled examples of a task are used, and no query is needed. As in the authors' code the tail
    is neither augmented nor cut into minibatches. There it is the last of the inner iterations; here
    `inner.steps` does not count it. Nothing is shuffled: tasks come with their examples in random order.

    Raises:
        MismatchError: the domain has no examples, or no more than the tail.

    Source: Hendryx et al. 2019, "Meta-Learning Initializations for Image Segmentation", section 3 (FOMAML*);
    the tail of Nichol et al. 2018, section 6.3 ("separate-tail").
    """
    head, tail = losses.split(inner.tail)
    return _at_the_end(head, tail.support, meta, inner)


def _at_the_end(
    losses: TaskLosses,
    outer: Callable[[Parameters], Tensor],
    meta: MetaParameters,
    inner: InnerSteps,
) -> MetaGradient:
    adapted = truncated(losses, meta, inner).adapted
    leaves = {k: v.requires_grad_() for k, v in adapted.items()}
    reached = outer(leaves)
    slope = gradients(reached, leaves, create_graph=False)
    gathered = {k: losses.gather(v) for k, v in slope.items()}
    return MetaGradient(gathered, zeros_like(meta.step_sizes), reached.detach(), losses.tasks)
