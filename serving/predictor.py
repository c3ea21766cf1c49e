"""What predicts: hypernetworks that are open, and orders that are answered one by one within few threads."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from metainit.errors import CheckpointError, MetainitError, RegistryError
from metainit.references import Reference

if TYPE_CHECKING:
    from hypernets.ghn.model import Ghn
    from metainit.card import Card

LOGGER = logging.getLogger("metainit.serving")
Fault = Literal["question", "hypernetwork", "predictor"]
OPEN_AT_ONCE = 2
"""Hypernetworks that a predictor keeps open."""


@dataclass(frozen=True)
class Order:
    """A prediction that is wanted: of which version (SHA-256, and where its file may lie), for what graph."""

    reference: str
    sha256: str
    file: str
    graph: str
    seed: int
    exact: bool


@dataclass(frozen=True)
class Outcome:
    """The bytes of a checkpoint, or whose fault it is that there is none, and the reason.

    Errors travel as values: what a transport raises has its own text around them.
    """

    content: bytes = b""
    fault: Fault | None = None
    reason: str = ""


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
        self._most = most
        self._open: OrderedDict[str, tuple[Ghn, Card]] = OrderedDict()

    def answer(self, orders: Sequence[Order]) -> list[Outcome]:
        """Answer some orders; equal ones are computed once.

        Each is predicted alone: in one batch, its last bits would depend on its neighbours.
        """
        answers: dict[Order, Outcome] = {}
        for order in orders:
            if order not in answers:
                answers[order] = self._answer(order)
        return [answers[order] for order in orders]

    def _answer(self, order: Order) -> Outcome:
        try:
            return Outcome(self._predicted(order))
        except (CheckpointError, RegistryError) as error:
            return Outcome(fault="hypernetwork", reason=str(error))
        except MetainitError as error:
            return Outcome(fault="question", reason=str(error))
        except ImportError as error:
            text = f"the endpoint lacks {error.name}: pip install 'metainit[graph]' there"
            return Outcome(fault="predictor", reason=text)
        except (RuntimeError, MemoryError) as error:  # torch reports all its failures so
            LOGGER.exception("cannot predict with %s", order.reference)
            return Outcome(fault="predictor", reason=f"predicting failed: {type(error).__name__}")

    def _predicted(self, order: Order) -> bytes:
        from hypernets.architecture.serialize import from_json
        from hypernets.ghn.predicted import predicted_checkpoint
        from metainit import checkpoint

        hypernetwork, card = self._hypernetwork(order)
        graph = from_json(order.graph)
        tensors, own = predicted_checkpoint(hypernetwork, card, graph, seed=order.seed, exact=order.exact)
        return checkpoint.to_bytes(tensors, own)

    def _hypernetwork(self, order: Order) -> tuple[Ghn, Card]:
        if order.sha256 in self._open:
            self._open.move_to_end(order.sha256)
        else:
            from hypernets.ghn.initialization import hypernetwork_of
            from metainit import checkpoint

            stored = checkpoint.load(_file(order))
            self._open[order.sha256] = (hypernetwork_of(stored), stored.card)
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return self._open[order.sha256]


class LocalPredictor:
    """Predicts in this process, one order at a time on a thread of its own."""

    def __init__(self, threads: int = 1) -> None:
        """Start nothing yet; `threads` bounds what torch takes for one prediction."""
        self._hypernetworks = Hypernetworks()
        self._thread = ThreadPoolExecutor(1, "predictor", initializer=limit_threads, initargs=(threads,))

    async def predict(self, order: Order) -> Outcome:
        """Answer one order."""
        loop = asyncio.get_running_loop()
        (outcome,) = await loop.run_in_executor(self._thread, self._hypernetworks.answer, [order])
        return outcome


def limit_threads(count: int) -> None:
    """Let torch's operations take `count` threads when they are called from this thread."""
    import torch

    torch.set_num_threads(count)


def _file(order: Order) -> Path:
    """Return the hypernetwork's file: the endpoint's, or where that is on another machine the registry's."""
    path = Path(order.file)
    if path.is_file():
        return path
    from pipelines.registry import load_source

    return load_source(f"models:/{Reference.parse(order.reference)}")
