"""Members of a zoo in memory: what a generator learns from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from metainit.errors import DataError


@dataclass(frozen=True)
class Members:
    """Fits that began from one base.

    `deltas`: fits minus the base ``(n, size)`` float32, in the order of a `FlatLayout`. `conditions`: what is
    known of each fit's task, by kind: ``class`` ``(n,)`` int64, and ``observation`` ``(n, ...)`` float32.
    `texts`: a description of each, or none. `losses`: each fit's support loss in the end ``(n,)``. `ids`: the
    tasks.

    Raises:
        DataError: the numbers differ.

    Example:
        >>> members = Members(torch.zeros(2, 5), {'class': torch.tensor([0, 1])}, torch.zeros(2), ('a', 'b'))
        >>> len(members), members[1:].ids
        (2, ('b',))
    """

    deltas: Tensor
    conditions: Mapping[str, Tensor]
    losses: Tensor
    ids: tuple[str, ...]
    texts: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that everything is of as many fits."""
        counts = {"ids": len(self.ids), "losses": len(self.losses)}
        counts |= {name: len(value) for name, value in self.conditions.items()}
        if self.texts:
            counts["texts"] = len(self.texts)
        if wrong := {name: count for name, count in counts.items() if count != len(self.deltas)}:
            raise DataError(f"expected {len(self.deltas)} members, one a row of the deltas, got {wrong}")

    def __len__(self) -> int:
        return len(self.deltas)

    def __getitem__(self, which: slice | Tensor) -> Members:
        """Return some of the members: a slice, or a tensor of indices."""
        indices = torch.arange(len(self))[which]
        numbers = indices.tolist()
        return Members(
            self.deltas[indices],
            {name: value[indices] for name, value in self.conditions.items()},
            self.losses[indices],
            tuple(self.ids[i] for i in numbers),
            tuple(self.texts[i] for i in numbers) if self.texts else (),
        )
