"""What predicts: hypernetworks that are open; orders for one graph are answered together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from serving.work import BATCH, FAILURES, OPEN_AT_ONCE, Aside, Opened, Outcome, delivered, failed

if TYPE_CHECKING:
    from hypernets.ghn.model import Ghn
    from metainit.card import Card


@dataclass(frozen=True)
class Order:
    """A prediction that is wanted: of which version (SHA-256, and where its file may lie), for what graph."""

    reference: str
    sha256: str
    file: str
    graph: str
    seed: int
    exact: bool
    folder: str = field(default="", compare=False)
    """Where a large answer may be put."""

    @property
    def drawn(self) -> int | None:
        """The seed of the residual, None where there is none."""
        return None if self.exact else self.seed


class Predictor(Protocol):
    """Answers orders."""

    async def predict(self, order: Order) -> Outcome:
        """Answer one order.

        Raises:
            Busy: too many wait already.
            NotReady: nothing can predict right now.
        """
        ...


class Hypernetworks:
    """The hypernetworks that were used last, ready to predict."""

    def __init__(self, most: int = OPEN_AT_ONCE) -> None:
        """Open none yet."""
        self._opened: Opened[tuple[Ghn, Card]] = Opened(most)

    def answer(self, orders: Sequence[Order]) -> list[Outcome]:
        """Answer some orders; equal ones are computed once.

        Orders for one graph share what the hypernetwork says of it, and differ in their residuals. Other
        graphs are predicted one after the other: in one batch of the hypernetwork their last bits would
        depend on their neighbours, and on a CPU it would take as long.
        """
        groups: dict[tuple[str, str], dict[Order, None]] = {}
        for order in orders:
            groups.setdefault((order.sha256, order.graph), {})[order] = None
        answers: dict[Order, Outcome] = {}
        for group in groups.values():
            answers |= self._together(list(group))
        return [answers[order] for order in orders]

    def _together(self, orders: list[Order]) -> dict[Order, Outcome]:
        """Answer orders of one version and graph; what fails, fails for all that have no answer yet."""
        answers: dict[Order, Outcome] = {}
        try:
            for order, content in zip(orders, self._predicted(orders), strict=True):
                answers[order] = delivered(content, order.folder)
        except FAILURES as error:
            outcome = failed(error, orders[0].reference)
            return {order: outcome for order in orders} | answers
        return answers

    def _predicted(self, orders: list[Order]) -> Iterator[bytes]:
        from hypernets.architecture.serialize import from_json
        from hypernets.ghn.predicted import predicted_checkpoints
        from metainit import checkpoint

        hypernetwork, card = self._opened.get(orders[0], _opened)
        graph = from_json(orders[0].graph)
        for tensors, own in predicted_checkpoints(hypernetwork, card, graph, [o.drawn for o in orders]):
            yield checkpoint.to_bytes(tensors, own)


class LocalPredictor:
    """Predicts in this process, on a thread of its own."""

    def __init__(self, threads: int = 1, batch: int = BATCH) -> None:
        """Start nothing yet: `threads` for one operation of torch, `batch` orders at once."""
        self._aside: Aside[Order] = Aside(Hypernetworks(), threads, batch)

    async def predict(self, order: Order) -> Outcome:
        """Answer one order."""
        return await self._aside.answer_one(order)


def _opened(file: Path) -> tuple[Ghn, Card]:
    from hypernets.ghn.initialization import hypernetwork_of
    from metainit import checkpoint

    stored = checkpoint.load(file)
    return hypernetwork_of(stored), stored.card
