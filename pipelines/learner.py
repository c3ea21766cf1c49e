"""What the training loop moves, whatever the family: a learner, and one worker's part of a step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from metainit.card import Card, Provenance
from pipelines.world import World


@dataclass(frozen=True)
class Gradient:
    """Gradients and losses, summed over `count` tasks; `loss` has no dimension."""

    tensors: list[Tensor]
    loss: Tensor
    count: int


class Learner(Protocol):
    """One worker's copy of what is learned. All copies take the same steps and hold the same bytes."""

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        ...

    @property
    def steps(self) -> int:
        """How many steps there are."""
        ...

    def working(self) -> AbstractContextManager[object]:
        """Return what has to be open (threads, say) while steps are taken."""
        ...

    def gradient(self) -> Gradient:
        """Return this worker's part of the next step, which may be none.

        Raises:
            MetainitError: the step cannot be taken.
        """
        ...

    def apply(self, gradient: Gradient) -> float:
        """Take the next step with the sum of all workers' parts, and return the mean loss.

        Raises:
            DivergenceError: loss or gradient are not finite; the state is left as it was.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Return metrics of validation tasks as ``validation_<name>``; nothing where there are no tasks.

        Raises:
            DivergenceError: a loss is not finite.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to go on, as named tensors."""
        ...

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go on from a state that `state` returned, whose tensors may lie on another device.

        Raises:
            CheckpointError: the state belongs to another recipe; nothing is changed.
        """
        ...

    def result(self, provenance: Provenance) -> tuple[dict[str, Tensor], Card]:
        """Return the checkpoint's tensors and its card; no clock time, so same run, same bytes."""
        ...


def added_up(mine: Gradient, world: World, failed: bool = False) -> tuple[Gradient, bool]:
    """Return the sum of all workers' parts, and whether any of them has failed: one flat vector travels."""
    if world.size == 1:
        return mine, failed
    parts = [*mine.tensors, mine.loss]
    counts = parts[0].new_tensor([mine.count, failed])
    flat = world.add_up(torch.cat([*(part.reshape(-1) for part in parts), counts]))
    *tensors, loss = (
        piece.view_as(part)
        for piece, part in zip(torch.split(flat[:-2], [p.numel() for p in parts]), parts, strict=True)
    )
    return Gradient(tensors, loss, round(float(flat[-2]))), float(flat[-1]) > 0
