"""What a step of the inner loop sees of a task's support: all of it, a minibatch, an augmented version."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metainit.domains.base import Augmenting, Domain, Tensors
from metainit.domains.seeding import generator_of
from metainit.errors import MismatchError


@dataclass(frozen=True)
class Variation:
    """How the support differs from step to step; a pure function of the seed and the step.

    `augmentation`: the probability that an example is augmented. `minibatch`: how many examples a step sees,
    None for all of them.
    """

    augmentation: float = 0.0
    minibatch: int | None = None
    seed: int = 0

    @property
    def active(self) -> bool:
        """Whether steps differ at all."""
        return self.augmentation > 0 or self.minibatch is not None


def seen_in(step: int, domain: Domain, support: Tensors, variation: Variation) -> Tensors:
    """Return what one step sees of the support of some tasks (with a leading task axis).

    Every task is varied alike, so that a task is adapted in the same way however it is batched.

    Raises:
        MismatchError: the domain's support is not made of examples.
    """
    if not variation.active:
        return support
    if not isinstance(domain, Augmenting):
        raise MismatchError(
            f"{type(domain).__name__} has no labelled examples to draw minibatches of or to augment: set "
            "augmentation to 0 and leave minibatch out"
        )
    if variation.minibatch is not None:
        examples = next(iter(support.values())).shape[1]
        chosen = minibatch(examples, variation.minibatch, step, variation.seed)
        support = {k: v[:, chosen.to(v.device)] for k, v in support.items()}
    if variation.augmentation == 0:
        return support
    tasks = len(next(iter(support.values())))
    changed = [
        domain.augmented(
            {k: v[i] for k, v in support.items()},
            generator_of("augmentation", variation.seed, step),
            variation.augmentation,
        )
        for i in range(tasks)
    ]
    return {k: torch.stack([c[k] for c in changed]) for k in support}


def minibatch(examples: int, size: int, step: int, seed: int) -> Tensor:
    """Return which examples a step sees: each pass over all of them is shuffled, batches span passes.

    Source: the sampling of Hendryx et al. 2019 in the authors' code (github.com/ml4ai/mliis).

    Example:
        >>> sorted(torch.cat([minibatch(6, 2, step, seed=0) for step in range(3)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    first = step * size
    passes = range(first // examples, (first + size - 1) // examples + 1)
    order = [torch.randperm(examples, generator=generator_of("minibatch", seed, p)) for p in passes]
    begin = first - passes.start * examples
    return torch.cat(order)[begin : begin + size]


def split_tail(support: Tensors, domain: Domain, tail: int) -> tuple[Tensors, Tensors]:
    """Return the support of some tasks (with a leading task axis) without its last examples, and those.

    Raises:
        MismatchError: the domain's support is not made of examples, or none would be left.
    """
    if not isinstance(domain, Augmenting):
        raise MismatchError(
            f"{type(domain).__name__} has no labelled examples to hold back: choose another rule"
        )
    examples = next(iter(support.values())).shape[1]
    if not 0 < tail < examples:
        raise MismatchError(
            f"a tail of {tail} examples cannot be held back of {examples}: give the domain more shots in "
            "training, or lower algorithm.tail"
        )
    return {k: v[:, :-tail] for k, v in support.items()}, {k: v[:, -tail:] for k, v in support.items()}
