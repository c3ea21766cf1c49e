"""What computes for the endpoint: orders, outcomes, models that are open, and one thread for all of it."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Protocol, TypeVar

from metainit.errors import CheckpointError, ConditionError, CopyError, MetainitError, RegistryError
from metainit.references import Reference

LOGGER = logging.getLogger("metainit.serving")
Fault = Literal["question", "condition", "copies", "source", "worker"]
BATCH = 16
"""Orders that a worker answers together, at most."""
LARGE = 1 << 20
"""Bytes of an outcome from which on it travels as a file, if it can."""
OPEN_AT_ONCE = 2
"""Models that a worker keeps open."""
OrderT = TypeVar("OrderT")
OrderT_contra = TypeVar("OrderT_contra", contravariant=True)
T = TypeVar("T")


class Sourced(Protocol):
    """An order that is for a version: its reference, its SHA-256, and where its file may lie."""

    @property
    def reference(self) -> str:
        """The pinned version."""
        ...

    @property
    def sha256(self) -> str:
        """Of its checkpoint file."""
        ...

    @property
    def file(self) -> str:
        """Where that lies on the endpoint's machine."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The bytes of a checkpoint, or whose fault it is that there is none, and the reason.

    Errors travel as values: what a transport raises has its own text around them. Where worker and endpoint
    share a folder the bytes may lie in a file, `file`, instead: a transport would copy them several times.
    """

    content: bytes = b""
    file: str = ""
    fault: Fault | None = None
    reason: str = ""


def delivered(content: bytes, folder: str) -> Outcome:
    """Return the outcome for some bytes, by way of a folder where that is here and they are many.

    The folder's name is random: one that is here is the endpoint's own.
    """
    where = Path(folder)
    if not folder or len(content) < LARGE or not where.is_dir():
        return Outcome(content)
    try:
        handle, name = tempfile.mkstemp(dir=where)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
    except OSError as error:
        return Outcome(fault="worker", reason=f"cannot write to {where}: {error.strerror or error}")
    return Outcome(file=name)


class Answers(Protocol[OrderT_contra]):
    """Answers orders that came together, in their order."""

    def answer(self, orders: Sequence[OrderT_contra]) -> list[Outcome]:
        """Answer some orders."""
        ...


class Opened(Generic[T]):
    """The models that were used last, by the SHA-256 of their checkpoint."""

    def __init__(self, most: int = OPEN_AT_ONCE) -> None:
        """Open none yet."""
        self._most = most
        self._open: OrderedDict[str, T] = OrderedDict()

    def get(self, order: Sourced, made: Callable[[Path], T]) -> T:
        """Return the model of an order's version, which `made` opens where it is not open.

        Raises:
            CheckpointError: it is damaged.
            RegistryError: it cannot be had.
        """
        if order.sha256 not in self._open:
            self._open[order.sha256] = made(_file(order))
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        self._open.move_to_end(order.sha256)
        return self._open[order.sha256]


class Aside(Generic[OrderT]):
    """Answers orders on a thread of its own, one batch at a time."""

    def __init__(self, answers: Answers[OrderT], threads: int = 1, batch: int = 1) -> None:
        """Start nothing yet.

        Args:
            answers: what computes.
            threads: what torch may take for one operation.
            batch: how many of the orders that come one by one are answered together, at most.
        """
        self._answers, self._batch = answers, batch
        self._thread = ThreadPoolExecutor(1, "worker", initializer=_limit_threads, initargs=(threads,))
        self._waiting: list[tuple[OrderT, asyncio.Future[Outcome]]] = []
        self._working: asyncio.Task[None] | None = None

    async def answer(self, orders: Sequence[OrderT]) -> list[Outcome]:
        """Answer some orders together."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._answers.answer, orders)

    async def answer_one(self, order: OrderT) -> Outcome:
        """Answer one order, together with those that come while others are being answered."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append((order, future))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await future

    async def _work(self) -> None:
        """Answer whatever waits, until nothing does."""
        while self._waiting:
            taken, self._waiting = self._waiting[: self._batch], self._waiting[self._batch :]
            try:
                outcomes = await self.answer([order for order, _ in taken])
            except Exception as error:  # it belongs to those who asked, not to this task
                for _, future in taken:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(taken, outcomes, strict=True):
                if not future.done():  # whoever asked may have left
                    future.set_result(outcome)


def failed(error: Exception, reference: str) -> Outcome:
    """Return what an error of computing says of whose fault it is.

    Example:
        >>> failed(CopyError('they are copies'), 'digits/1').fault
        'copies'
    """
    if isinstance(error, (CheckpointError, RegistryError)):
        return Outcome(fault="source", reason=str(error))
    if isinstance(error, ConditionError):
        return Outcome(fault="condition", reason=str(error))
    if isinstance(error, CopyError):
        return Outcome(fault="copies", reason=str(error))
    if isinstance(error, MetainitError):
        return Outcome(fault="question", reason=str(error))
    if isinstance(error, ImportError):
        text = f"the endpoint lacks {error.name}: pip install 'metainit[graph]' there"
        return Outcome(fault="worker", reason=text)
    LOGGER.error("cannot compute with %s", reference, exc_info=error)
    return Outcome(fault="worker", reason=f"computing failed: {type(error).__name__}")


FAILURES = (MetainitError, ImportError, RuntimeError, MemoryError)
"""What computing may raise; torch reports all its failures as RuntimeError."""


def _limit_threads(count: int) -> None:
    """Let torch's operations take `count` threads when they are called from this thread."""
    import torch

    torch.set_num_threads(count)


def _file(order: Sourced) -> Path:
    """Return the version's file: the endpoint's, or where that is on another machine the registry's."""
    path = Path(order.file)
    if path.is_file():
        return path
    from pipelines.registry import load_source

    return load_source(f"models:/{Reference.parse(order.reference)}")
