"""Adapt a start to tasks with its routine: the learned steps first, then the optimizer that takes over."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from metainit.card import AdaptationRoutine
from metainit.domains.base import Domain, TaskBatch
from metainit.errors import DivergenceError, MismatchError
from metainit.meta.inner import gradients
from metainit.meta.state import Parameters, TaskLosses
from metainit.meta.variation import Variation

Progress = Callable[[int, int, float], None]
"""Called after each step with the step, the number of steps and the support loss before it."""

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Task:
    """One thing to fit: a domain, which knows the loss, and a batch of one task (or of several)."""

    domain: Domain
    batch: TaskBatch


def trajectory(
    losses: TaskLosses,
    weights: Parameters,
    routine: AdaptationRoutine,
    step_sizes: Mapping[str, Tensor],
    steps: int,
    progress: Progress | None = None,
    seed: int = 0,
) -> Iterator[Parameters]:
    r"""Yield the weights before the first step and after each of `steps` steps.

    SGD: :math:`\theta \leftarrow \theta - \alpha_k \odot g`; past the routine's own steps its continuation
    takes over, where there is one, else the last step size goes on. The gradient g is that of what the
    routine shows of the support in this step, plus the weight decay. Tensors that the routine does not adapt
    stay as they are.

    Args:
        losses: the tasks; with a task axis where `losses.batched`.
        weights: the start, without a task axis.
        routine: optimizer, step sizes and steps.
        step_sizes: learned per-parameter step sizes ``(steps, *shape)`` by name, of any type; may be empty.
        steps: how many steps to take.
        progress: told about each step.
        seed: of augmentation and minibatches, which follow from it and from the step.

    Raises:
        DivergenceError: the support loss is not finite.
        MismatchError: the routine promises learned step sizes that are not there, adapts tensors that the
            network does not have, or asks a domain for augmentation or minibatches that has no examples.

    Source: Finn et al. 2017, equation 1; Li et al. 2017, equation 3; Kingma & Ba 2015, algorithm 1.
    """
    values = {k: v.detach() for k, v in losses.spread(weights).items()}
    yield values
    optimizer, base = routine.optimizer, routine.step_size
    # A step of another type would turn the weights into it: a prior trained in float64 has such steps.
    step_sizes = {k: v.to(weights[k].dtype) if k in weights else v for k, v in step_sizes.items()}
    sizes = learned_step_sizes(routine, step_sizes)
    adapts = _adapted(routine, weights)
    _require_promised(routine, step_sizes, {k: weights[k] for k in adapts})
    losses = replace(losses, variation=Variation(routine.augmentation, routine.minibatch, seed))
    first: Parameters = {}
    second: Parameters = {}
    count = 0
    for step in range(steps):
        if step == routine.steps and routine.continuation is not None:
            optimizer, base = routine.continuation.optimizer, routine.continuation.step_size
            sizes = {}
        leaves = {k: values[k].requires_grad_() for k in adapts}
        loss = losses.support(values | leaves, step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"adaptation step {step}: the loss is {value}; lower the step size (now {base:g})"
            )
        slope = gradients(loss, leaves, create_graph=False)
        with torch.no_grad():
            if routine.weight_decay > 0:
                slope = {k: g + routine.weight_decay * leaves[k] for k, g in slope.items()}
            if optimizer == "adam":
                count += 1
                moved = _adam_step(leaves, slope, first, second, count, base)
            else:
                moved = {k: v - _at(sizes, k, step, base) * slope[k] for k, v in leaves.items()}
        values = values | moved
        if progress is not None:
            progress(step + 1, steps, value / losses.tasks)
        yield values


def learned_step_sizes(
    routine: AdaptationRoutine, step_sizes: Mapping[str, Tensor]
) -> dict[str, Tensor | list[float]]:
    """Return learned step sizes by name, with a leading axis of steps; empty where none are learned."""
    if routine.per_parameter:
        return dict(step_sizes)
    return dict(routine.per_tensor)


def _adapted(routine: AdaptationRoutine, weights: Parameters) -> list[str]:
    """Return the names of the tensors that a routine moves."""
    unknown = sorted(set(routine.adapts) - set(weights))
    if unknown:
        raise MismatchError(
            f"the routine adapts tensors that the network does not have: {', '.join(unknown)}. Use the "
            "start's own network, or give another routine"
        )
    return [name for name in weights if not routine.adapts or name in routine.adapts]


def _require_promised(
    routine: AdaptationRoutine, step_sizes: Mapping[str, Tensor], weights: Parameters
) -> None:
    """Raise unless there is a learned step size of the right shape for every parameter, where promised."""
    if not routine.per_parameter:
        return
    missing = sorted(set(weights) - set(step_sizes))
    wrong = [
        f"{name} {tuple(size.shape)}"
        for name, size in step_sizes.items()
        if name not in weights or size.shape[1:] != weights[name].shape
    ]
    if missing or wrong:
        raise MismatchError(
            f"the routine promises learned step sizes; missing: {', '.join(missing) or 'none'}; of another "
            f"shape: {', '.join(wrong) or 'none'}. Use the start's own network, or give another routine"
        )


def require_finite(weights: Parameters, routine: AdaptationRoutine, steps: int) -> None:
    """Raise unless adapted weights are finite: the loss is only looked at before each step.

    Raises:
        DivergenceError: a weight is not finite.
    """
    if not all(bool(torch.isfinite(v).all()) for v in weights.values()):
        raise DivergenceError(
            f"adaptation step {steps}: the weights are not finite; lower the step size "
            f"(now {routine.step_size:g})"
        )


def _at(sizes: Mapping[str, Tensor | list[float]], name: str, step: int, base: float) -> Tensor | float:
    if name not in sizes:
        return base
    return sizes[name][min(step, len(sizes[name]) - 1)]


def _adam_step(
    leaves: Parameters,
    slope: Parameters,
    first: Parameters,
    second: Parameters,
    count: int,
    step_size: float,
) -> Parameters:
    beta1, beta2 = ADAM_BETAS
    moved: Parameters = {}
    for name, value in leaves.items():
        gradient = slope[name]
        first[name] = gradient.lerp(first.get(name, torch.zeros_like(gradient)), beta1)
        second[name] = gradient.square().lerp(second.get(name, torch.zeros_like(gradient)), beta2)
        mean = first[name] / (1 - beta1**count)
        scale = (second[name] / (1 - beta2**count)).sqrt() + ADAM_EPSILON
        moved[name] = value - step_size * mean / scale
    return moved
