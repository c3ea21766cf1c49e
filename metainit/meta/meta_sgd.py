"""Meta-SGD to first order: learned step sizes without second derivatives."""

from __future__ import annotations

import torch

from metainit.meta.inner import gradients, truncated
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, Parameters, TaskLosses


def first_order_meta_sgd(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
    r"""Return the meta-gradient of start and step sizes with the inner gradients held constant.

    With :math:`q = \nabla_{\theta_K} L_\text{query}` and inner gradients :math:`g_k` as constants,

    .. math:: \nabla_\theta = q, \qquad \nabla_{\alpha_k} = -q \odot g_k

    summed over a tensor where its step size is one number. `maml` on learned step sizes is the exact form.

    Source: Li et al. 2017, "Meta-SGD", equation 4, with the first-order approximation of Finn et al. 2017.
    """
    adapted, _, slopes = truncated(losses, meta, inner)
    leaves = {k: v.requires_grad_() for k, v in adapted.items()}
    reached = losses.query(leaves)
    query_slope = gradients(reached, leaves, create_graph=False)
    step_sizes: Parameters = {}
    with torch.no_grad():
        for name, learned in meta.step_sizes.items():
            total = torch.zeros_like(learned)
            for step, slope in enumerate(slopes):
                product = losses.gather(query_slope[name] * slope[name])
                per_step = product if learned.dim() > 1 else product.sum()
                total[min(step, learned.shape[0] - 1)] -= per_step
            step_sizes[name] = total
    weights = {k: losses.gather(v) for k, v in query_slope.items()}
    return MetaGradient(weights, step_sizes, reached.detach(), losses.tasks)
