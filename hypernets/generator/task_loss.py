r"""The network's own loss as a loss of generated deltas: at the start, and after steps of its routine.

.. math:: \ell(\delta) = \frac{1}{|K|} \sum_{k \in K} \log \frac{L_\text{query}(U^k(\theta_0 + \delta))}{b_k}

where U is a step of the base's routine on the support, and :math:`b_k` the mean loss of the base itself after
k of its steps: 0 is what the base does. The logarithm makes every halving of a loss worth the same, as the
PSNR does; of the loss itself the worst tasks would be nearly all.

Source: the loss after adaptation is that of Finn et al. 2017, arXiv:1703.03400, equation 1, for a start that
depends on the task, as in Li et al. 2018, "Deep Meta-Learning: Learning to Learn in the Concept Space".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad, vmap

from hypernets.generator.flat import FlatLayout
from hypernets.generator.mean import TaskLoss
from metainit.adaptation import learned_step_sizes
from metainit.card import AdaptationRoutine
from metainit.domains.base import Domain, Predict, TaskBatch
from metainit.errors import RecipeError
from metainit.meta.state import Parameters

FLOOR = 1e-6
"""The least loss that counts, as a part of the base's: below it nothing is left to gain."""
CHUNK = 256
"""Tasks of which the base's own losses are computed at once."""


@dataclass(frozen=True)
class Ground:
    """What generated deltas are added to, and what the network is judged by.

    `function`: parameters -> the function that the network is; `base`: all of its parameters; `layout`: those
    that deltas move; `routine` and `step_sizes`: of the base.
    """

    domain: Domain
    function: Callable[[Mapping[str, Tensor]], Predict]
    base: Parameters
    layout: FlatLayout
    routine: AdaptationRoutine | None = None
    step_sizes: Parameters | None = None

    def moved(self, deltas: Tensor) -> Parameters:
        """Return base plus deltas ``(..., D)``: all parameters, those that move with the leading axes."""
        own = self.layout.unflatten(deltas)
        return {
            name: value + own[name] if name in own else value.expand(*deltas.shape[:-1], *value.shape)
            for name, value in self.base.items()
        }


def task_loss_of(ground: Ground, tasks: TaskBatch, after: Sequence[int] = (0,)) -> TaskLoss:
    """Return the loss of deltas on tasks, each on that of its index.

    Args:
        ground: network, base, loss.
        tasks: the members', in their order.
        after: numbers of steps of the base's routine after which the loss is taken; only SGD can be unrolled.

    Raises:
        RecipeError: steps are asked for, and the base has no routine of SGD steps, or not as many, or one
            whose steps are drawn.
    """
    _require_routine(ground.routine, after)
    losses = _losses(ground, after)

    def of(deltas: Tensor, indices: Tensor) -> Tensor:
        own = {k: v[indices] for k, v in tasks.support.items()}
        query = {k: v[indices] for k, v in tasks.query.items()}
        found: Tensor = vmap(losses, in_dims=(0, 0, 0, None))(ground.moved(deltas), own, query, tasks.shared)
        return found

    with torch.no_grad():
        still = torch.zeros(ground.layout.size, device=next(iter(ground.base.values())).device)
        rows = torch.split(torch.arange(len(tasks), device=still.device), CHUNK)
        typical = torch.cat([of(still.expand(len(part), -1), part) for part in rows]).mean(0)
    return lambda deltas, indices: (of(deltas, indices) / typical).clamp_min(FLOOR).log().mean(-1)


def _require_routine(routine: AdaptationRoutine | None, after: Sequence[int]) -> None:
    if not after or min(after) < 0:
        raise RecipeError(f"the task loss is taken after {tuple(after)} steps; expected numbers from 0 on")
    if max(after) == 0:
        return
    if routine is None or routine.optimizer != "sgd" or routine.steps < max(after):
        has = "no routine" if routine is None else f"{routine.steps} steps of {routine.optimizer}"
        raise RecipeError(
            f"the task loss is taken after {max(after)} steps, but the base has {has}: use 0, or as many as "
            "the base's routine of SGD has"
        )
    if routine.minibatch is not None or routine.augmentation > 0:
        raise RecipeError(
            "the task loss is taken after steps of the base's routine, which draws parts of the support, or "
            "changes them: use 0 alone"
        )


def _losses(
    ground: Ground, after: Sequence[int]
) -> Callable[[Parameters, Parameters, Parameters, Parameters], Tensor]:
    """Return the losses ``(len(after))`` of one task's parameters."""
    domain, function, routine = ground.domain, ground.function, ground.routine
    sizes = learned_step_sizes(routine, ground.step_sizes or {}) if routine is not None else {}
    decay = routine.weight_decay if routine is not None else 0.0

    def size(name: str, step: int) -> Tensor | float:
        if name not in sizes:
            return routine.step_size if routine is not None else 0.0
        return sizes[name][min(step, len(sizes[name]) - 1)]

    def of_one_task(
        parameters: Parameters, support: Parameters, query: Parameters, shared: Parameters
    ) -> Tensor:
        found = []
        for step in range(max(after) + 1):
            if step in after:
                found.append(domain.query_loss(function(parameters), query, shared))
            if step < max(after):
                slope = grad(lambda p: domain.support_loss(function(p), support, shared))(parameters)
                adapts = routine.adapts if routine is not None and routine.adapts else tuple(parameters)
                parameters = parameters | {
                    k: parameters[k] - size(k, step) * (slope[k] + decay * parameters[k]) for k in adapts
                }
        return torch.stack(found)

    return of_one_task
