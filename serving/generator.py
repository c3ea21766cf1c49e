"""What generates: generators that are open, and orders of which those for one are drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from hypernets.generator.description import What
from serving.work import BATCH, FAILURES, OPEN_AT_ONCE, Aside, Opened, Outcome, delivered, failed

if TYPE_CHECKING:
    from torch import Tensor

    from hypernets.generator.start import Generated


@dataclass(frozen=True)
class Seen:
    """An observation: its shape, and its numbers as float32 bytes."""

    shape: tuple[int, ...]
    content: bytes

    @property
    def tensor(self) -> Tensor:
        """The observation, as a generator takes it."""
        import torch

        return torch.frombuffer(bytearray(self.content), dtype=torch.float32).reshape(self.shape)


@dataclass(frozen=True)
class Draw:
    """One network that is wanted: of which generator (SHA-256, and where its file may lie), and for what."""

    reference: str
    sha256: str
    file: str
    what: What
    seed: int
    condition: int | str | None = None
    observation: Seen | None = None
    folder: str = field(default="", compare=False)
    """Where a large answer may be put."""


class Drawer(Protocol):
    """Answers draws."""

    async def generate(self, draw: Draw) -> Outcome:
        """Answer one draw.

        Raises:
            Busy: too many wait already.
            NotReady: nothing can generate right now.
        """
        ...


class Generators:
    """The generators that were used last, ready to draw."""

    def __init__(self, most: int = OPEN_AT_ONCE) -> None:
        """Open none yet."""
        self._opened: Opened[Generated] = Opened(most)

    def answer(self, orders: Sequence[Draw]) -> list[Outcome]:
        """Answer some draws; equal ones are computed once, and those of one generator together."""
        groups: dict[tuple[str, str], dict[Draw, None]] = {}
        for order in orders:
            groups.setdefault((order.sha256, order.what), {})[order] = None
        answers: dict[Draw, Outcome] = {}
        for group in groups.values():
            answers |= self._together(list(group))
        return [answers[order] for order in orders]

    def _together(self, orders: list[Draw]) -> dict[Draw, Outcome]:
        """Answer draws of one generator; where one of them fails, each alone: it is not the others' fault."""
        try:
            return dict(zip(orders, self._drawn(orders), strict=True))
        except FAILURES as error:
            if len(orders) == 1:
                return {orders[0]: failed(error, orders[0].reference)}
        return {order: self._together([order])[order] for order in orders}

    def _drawn(self, orders: list[Draw]) -> list[Outcome]:
        from hypernets.generator.start import Wanted
        from metainit import checkpoint

        start = self._opened.get(orders[0], _opened)
        seen = {o.observation: o.observation.tensor for o in orders if o.observation is not None}
        wanted = [
            Wanted(o.seed, o.condition, None if o.observation is None else seen[o.observation])
            for o in orders
        ]
        drawn = start.draw(wanted, what=orders[0].what)
        return [
            delivered(checkpoint.to_bytes(one.tensors, one.card), order.folder)
            for order, one in zip(orders, drawn, strict=True)
        ]


class LocalDrawer:
    """Generates in this process, on a thread of its own."""

    def __init__(self, threads: int = 1, batch: int = BATCH) -> None:
        """Start nothing yet: `threads` for one operation of torch, `batch` orders at once."""
        self._aside: Aside[Draw] = Aside(Generators(), threads, batch)

    async def generate(self, draw: Draw) -> Outcome:
        """Answer one draw."""
        return await self._aside.answer_one(draw)


def _opened(file: Path) -> Generated:
    from hypernets.generator.start import Generated
    from metainit import checkpoint

    return Generated(checkpoint.load(file))
