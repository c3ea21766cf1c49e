"""Drawing many networks at once such that each has the bytes that it would have alone.

Rounding follows from the number of rows in a batch, and from where in it a row stands: a kernel treats the
rest of a vector that does not fill a register in another way. Both are fixed here: all batches have the same
number of rows, and the place of a network follows from its own seed and condition. What its neighbours are
has no way into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from hypernets.generator.conditions import Conditions, joined
from hypernets.generator.description import What
from hypernets.generator.model import Drawn, Generator
from hypernets.generator.sampling import Sampler

ROWS: Mapping[str, int] = MappingProxyType({"mlp": 8, "transformer": 1})
"""Denoiser -> rows of every batch; a batch of transformers takes nearly as long as one after the other."""


@dataclass(frozen=True)
class Row:
    """One network to draw: what is known of its task (B = 1), and its seed."""

    conditions: Conditions
    seed: int

    @property
    def place(self) -> int:
        """What says where it stands in a batch: neighbouring seeds of one task are neighbours."""
        total = hashlib.sha256()
        for kind in sorted(self.conditions.values):
            value = self.conditions.values[kind].contiguous()
            total.update(bytes([bool(self.conditions.present[kind])]))
            total.update(value.reshape(-1).view(torch.uint8).numpy().data)
        return int.from_bytes(total.digest()[:4], "big") + self.seed


def draw(
    generator: Generator,
    rows: Sequence[Row],
    what: What,
    *,
    steps: int = 20,
    guidance: float = 1.0,
    sampler: Sampler | None = None,
) -> Drawn:
    """Return what `Generator.sample` does; the bytes of a row do not depend on the other rows.

    Raises:
        CopyError: one of them is a copy of a member, however often it is drawn.
        DivergenceError: one of them is not finite.
        RecipeError: the generator has no such part, or steps, guidance and sampler do not go with it.
    """
    size = ROWS[generator.config.denoiser]
    deltas: dict[int, Tensor] = {}
    refused: dict[int, Tensor] = {}
    for batch in batches([row.place for row in rows], size):
        drawn = generator.sample(
            joined([rows[i].conditions for i in batch]),
            [rows[i].seed for i in batch],
            what,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
            constant_shape=True,
        )
        for at, i in enumerate(batch):
            if rows[i].place % size == at:  # not one that fills an empty place
                deltas[i], refused[i] = drawn.deltas[at], drawn.refused[at]
    every = range(len(rows))
    return Drawn(torch.stack([deltas[i] for i in every]), torch.stack([refused[i] for i in every]))


def batches(places: Sequence[int], size: int) -> list[list[int]]:
    """Return the numbers of rows in batches of one size: each stands at its place modulo the size.

    Places that nobody has are filled with the first row of the batch.

    Example:
        >>> batches([0, 1, 5], 4)
        [[0, 1, 0, 0], [2, 2, 2, 2]]
    """
    found: list[dict[int, int]] = []
    taken = [0] * size
    for i, place in enumerate(places):
        at = place % size
        if taken[at] == len(found):
            found.append({})
        found[taken[at]][at] = i
        taken[at] += 1
    return [[batch.get(at, next(iter(batch.values()))) for at in range(size)] for batch in found]
