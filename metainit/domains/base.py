"""What a domain is: a task distribution with its observation model, loss and metric.

A task is one thing to fit: the *support* is what adaptation sees, the *query* what it is judged on.
A batch of tasks has a leading task axis on every tensor of `support` and `query`; `shared` holds what all
tasks of the batch have in common (coordinates, projection angles) and has no task axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from metainit.errors import DataError

Tensors = dict[str, Tensor]
Predict = Callable[[Tensor], Tensor]
"""A network with its weights filled in, as a function of its inputs.

Signals: coordinates ``(..., d_in)`` -> values ``(..., d_out)``. Segmentation: images ``(n, channels, height,
width)`` in [0, 1] -> logits ``(n, classes, height, width)``.
"""

Split = Literal["train", "validation", "test"]
"""Learn from `train`, choose on `validation`, report on `test`; the three are disjoint."""


@dataclass(frozen=True)
class TaskBatch:
    """Tasks with a leading task axis; `ids` name them for a reader.

    `groups`: what each task comes from, such as a photograph or a patient; tasks of one group are alike, and
    intervals count groups before they count tasks. Each task is its own group unless they are given.

    `conditions`: what is known of each task beside its support, by kind, with a leading task axis: ``class``
    ``(T,)`` int64 is the number of the class that it belongs to.

    Raises:
        DataError: the number of groups, or of a kind of conditions, is not that of the tasks.
    """

    support: Tensors
    query: Tensors
    shared: Tensors
    ids: tuple[str, ...]
    groups: tuple[str, ...] = ()
    conditions: Tensors = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make each task its own group where no groups are given."""
        if not self.groups:
            object.__setattr__(self, "groups", self.ids)
        if len(self.groups) != len(self.ids):
            raise DataError(f"expected a group for each of the {len(self.ids)} tasks, got {len(self.groups)}")
        for kind, values in self.conditions.items():
            if values.dim() == 0 or len(values) != len(self.ids):
                raise DataError(
                    f"expected a condition {kind!r} for each of the {len(self.ids)} tasks, got the shape "
                    f"{tuple(values.shape)}"
                )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[TaskBatch]:
        """Iterate over the tasks, each a batch of one."""
        return (self[i : i + 1] for i in range(len(self)))

    def __getitem__(self, part: slice) -> TaskBatch:
        """Return some of the tasks, as a batch."""
        support, query, conditions = (
            {k: v[part] for k, v in p.items()} for p in (self.support, self.query, self.conditions)
        )
        return TaskBatch(support, query, self.shared, self.ids[part], self.groups[part], conditions)

    def to(self, device: torch.device, dtype: torch.dtype) -> TaskBatch:
        """Return the batch on a device; what is not whole numbers (labels, say) also in another type."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))

    def map(self, change: Callable[[Tensor], Tensor]) -> TaskBatch:
        """Apply `change` to every tensor."""
        support, query, shared, conditions = (
            {k: change(v) for k, v in p.items()}
            for p in (self.support, self.query, self.shared, self.conditions)
        )
        return TaskBatch(support, query, shared, self.ids, self.groups, conditions)


class Domain(Protocol):
    """A task distribution, its observation model, loss and metric.

    The losses and `render` see **one** task (tensors without the task axis) and must be made of
    differentiable torch operations that `torch.func.vmap` can batch.
    """

    @property
    def metric(self) -> str:
        """The name of the headline metric; the higher, the better."""
        ...

    @property
    def network_arguments(self) -> Mapping[str, int]:
        """What the data fix of a network's spec, such as its numbers of inputs and outputs."""
        ...

    @property
    def controls(self) -> tuple[str, ...]:
        """Names of the controls that evidence measures beside a start."""
        ...

    def example_inputs(self) -> Tensor:
        """Return inputs that a data-driven initializer may run the network on."""
        ...

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

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return all that the network says of one task's query, in [0, 1].

        The signal ``(height, width, channels)``, or probabilities ``(q, classes, height, width)``. A signal
        does not need its query, which is empty where the truth is not known.
        """
        ...

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        """Return what `render` gave as a picture to look at, ``(height, width, 1 or 3)`` in [0, 1]."""
        ...

    def target(self, query: Tensors) -> Tensor:
        """Return the truth as such a picture."""
        ...

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        """Return metrics by name of what `render` gave: all of them, the headline metric first, or some."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the data and of the rules that turn them into tasks."""
        ...


@runtime_checkable
class Augmenting(Protocol):
    """A domain whose support is made of examples, which can be augmented while a network is adapted to them.

    Examples lie along the first axis of each of a task's support tensors, in random order.
    """

    def augmented(self, support: Tensors, generator: torch.Generator, probability: float) -> Tensors:
        """Return one task's support with each example changed with some probability."""
        ...


@runtime_checkable
class Observing(Protocol):
    """A domain whose support shows something of a fixed shape, from which weights can be generated."""

    def observed(self, support: Tensors, shared: Tensors) -> Tensor:
        """Return what the support shows of each task, as one float tensor ``(T, ...)``.

        An image, channels first, with zeros where pixels are not known, a sinogram, or examples in the order
        of their labels.
        """
        ...


@runtime_checkable
class Standardizing(Protocol):
    """A domain whose tasks hold standardized images: pixels in [0, 1] less a mean, by a deviation."""

    @property
    def standardization(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of each channel, ``(channels)`` each."""
        ...


@runtime_checkable
class Enumerable(Protocol):
    """A domain whose tasks can be gone through in a fixed order, those for training too."""

    def size(self, split: Split) -> int | None:
        """Return the number of different tasks in a split, or None if there is no end of them."""
        ...

    def enumerated(self, split: Split, start: int, count: int) -> TaskBatch:
        """Return tasks number `start` to ``start + count - 1``, or fewer where the split ends.

        Where a split has a size, each of its tasks comes once on the way through it, as it is.
        """
        ...
