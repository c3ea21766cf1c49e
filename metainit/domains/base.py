"""What a domain is: a task distribution with its observation model, loss and metric.

A task is one thing to fit: the *support* is what adaptation sees, the *query* what it is judged on.
A batch of tasks has a leading task axis on every tensor of `support` and `query`; `shared` holds what all
tasks of the batch have in common (coordinates, projection angles) and has no task axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Tensors = dict[str, Tensor]
Predict = Callable[[Tensor], Tensor]
"""A network with its weights filled in: coordinates ``(..., d_in)`` -> values ``(..., d_out)``."""

Split = Literal["train", "validation", "test"]
"""Learn from `train`, choose on `validation`, report on `test`; the three are disjoint."""


@dataclass(frozen=True)
class TaskBatch:
    """Tasks with a leading task axis; `ids` name them for a reader."""

    support: Tensors
    query: Tensors
    shared: Tensors
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[TaskBatch]:
        """Iterate over the tasks, each a batch of one."""
        return (self[i : i + 1] for i in range(len(self)))

    def __getitem__(self, part: slice) -> TaskBatch:
        """Return some of the tasks, as a batch."""
        cut = {k: v[part] for k, v in self.support.items()}
        return TaskBatch(cut, {k: v[part] for k, v in self.query.items()}, self.shared, self.ids[part])

    def map(self, change: Callable[[Tensor], Tensor]) -> TaskBatch:
        """Apply `change` (a move to another device or dtype, say) to every tensor."""
        parts = [{k: change(v) for k, v in p.items()} for p in (self.support, self.query, self.shared)]
        return TaskBatch(parts[0], parts[1], parts[2], self.ids)


class Domain(Protocol):
    """A task distribution, its observation model, loss and metric.

    The losses and `render` see **one** task (tensors without the task axis) and must be made of
    differentiable torch operations that `torch.func.vmap` can batch.
    """

    input_features: int
    output_features: int

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        """Return `count` tasks; a pure function of its arguments, on any number of workers."""
        ...

    def size(self, split: Split) -> int | None:
        """Return the number of different tasks in a split, or None if there is no end of them."""
        ...

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        """Return the scalar that adaptation lowers."""
        ...

    def query_loss(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the scalar that the outer rule lowers."""
        ...

    def render(self, predict: Predict, shared: Tensors) -> Tensor:
        """Return the signal that the network stands for, ``(height, width, channels)`` in [0, 1]."""
        ...

    def target(self, query: Tensors) -> Tensor:
        """Return the true signal of one task, ``(height, width, channels)`` in [0, 1]."""
        ...

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        """Return metrics by name (``psnr`` in dB, ``ssim``) of one rendered signal: all of them, or some."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the data and of the rules that turn them into tasks."""
        ...
