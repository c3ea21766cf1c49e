"""Making what is asked for: equal orders once, not too many at a time, and answers that are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple

import anyio

from metainit.errors import CheckpointError, EndpointError, MetainitError
from serving.predictions import Kept, Predictions
from serving.store import NotReady
from serving.work import Fault, OrderT, Outcome


class TooLarge(EndpointError):
    """A request, or what it asks for, is larger than the limit."""


class Busy(EndpointError):
    """Too many orders wait already."""


class Made(NamedTuple):
    """What was made for an order, and whether it had been made before."""

    kept: Kept
    before: bool


@dataclass(frozen=True)
class Terms:
    """How many orders may be under way, how long one may take, and what its product is called.

    `faults`: what computing failed by -> the error that says so.
    """

    waiting: int
    seconds: float
    product: str
    faults: Mapping[Fault, type[MetainitError]]


class Making(Generic[OrderT]):
    """Answers orders with what computes them, from what is kept where it can."""

    def __init__(
        self, compute: Callable[[OrderT], Awaitable[Outcome]], kept: Predictions, terms: Terms
    ) -> None:
        """Keep answers in `kept`."""
        self._compute, self._kept, self._terms = compute, kept, terms
        self._running: dict[str, asyncio.Task[Kept]] = {}

    @property
    def under_way(self) -> int:
        """How many orders are being computed."""
        return len(self._running)

    async def made(self, orders: Mapping[str, OrderT]) -> dict[str, Made]:
        """Make what some orders are for, all or none of them.

        Args:
            orders: by key: what the bytes of the product follow from.

        Raises:
            Busy: there is no room for all of those that are not at hand.
            NotReady: nothing can compute, it took too long, or the disk is full.
            MetainitError: what the terms say of the fault of one of them.
        """
        found = await anyio.to_thread.run_sync(self._find, list(orders))
        new = [key for key in orders if key not in found and key not in self._running]
        if new and len(self._running) + len(new) > self._terms.waiting:
            raise Busy(
                f"{len(self._running)} {self._terms.product}s are under way, and there is room for "
                f"{self._terms.waiting}: ask again in a moment, for fewer at once"
            )
        tasks = {key: self._once(key, order) for key, order in orders.items() if key not in found}
        # Whoever leaves ends nothing: others may wait for the same, and it is kept for whoever asks again.
        done = await asyncio.gather(*map(asyncio.shield, tasks.values()), return_exceptions=True)
        for one in done:
            if isinstance(one, BaseException):
                raise one
        made = {key: task.result() for key, task in tasks.items()}
        return {key: Made(found.get(key) or made[key], key in found) for key in orders}

    def _find(self, keys: Sequence[str]) -> dict[str, Kept]:
        looked = {key: self._kept.find(key) for key in keys}
        return {key: kept for key, kept in looked.items() if kept is not None}

    def _once(self, key: str, order: OrderT) -> asyncio.Task[Kept]:
        """Return the computation of an order, or that of an equal one which is under way."""
        if key not in self._running:
            task = asyncio.create_task(self._run(key, order))
            self._running[key] = task
            task.add_done_callback(lambda done: self._forget(key, done))
        return self._running[key]

    def _forget(self, key: str, done: asyncio.Task[Kept]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # read, for the case that all who asked have left

    async def _run(self, key: str, order: OrderT) -> Kept:
        product, seconds = self._terms.product, self._terms.seconds
        try:
            async with asyncio.timeout(seconds):
                outcome = await self._compute(order)
        except TimeoutError as error:
            raise NotReady(f"there was no {product} within {seconds:g} s; ask again") from error
        if outcome.fault is not None:
            raise self._terms.faults[outcome.fault](outcome.reason)
        keep = partial(self._kept.adopt, key, Path(outcome.file)) if outcome.file else None
        try:
            return await anyio.to_thread.run_sync(keep or partial(self._kept.keep, key, outcome.content))
        except CheckpointError as error:
            raise NotReady(f"the {product} cannot be kept: {error}") from error
