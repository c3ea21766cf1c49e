"""Versions and blobs for requests: at once where they are at hand, else in threads that no other needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import anyio

from metainit.references import Reference
from serving.cache import Entry
from serving.catalog import Facts
from serving.store import Store

T = TypeVar("T")
THREADS = 8
"""Calls of one kind that run at a time; the others wait, and the threads of all else stay free."""


class Turns(Generic[T]):
    """Blocking calls from an event loop: equal ones once, and a few at a time."""

    def __init__(self, most: int = THREADS) -> None:
        """Run at most so many at a time."""
        self._limiter = anyio.CapacityLimiter(most)
        self._running: dict[str, asyncio.Task[T]] = {}

    async def once(self, key: str, call: Callable[[], T]) -> T:
        """Return what a call gives, or an equal one that is under way; whoever leaves ends none."""
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._run(call))
            task.add_done_callback(partial(self._forget, key))
        return await asyncio.shield(task)

    async def _run(self, call: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)

    def _forget(self, key: str, done: asyncio.Task[T]) -> None:
        del self._running[key]
        if not done.cancelled():
            done.exception()  # read, for the case that all who asked have left


class Fetching:
    """What a store has, for the routes; one a process, in its event loop."""

    def __init__(self, store: Store) -> None:
        """Fetch from a store."""
        self._store = store
        self._looks: Turns[Facts] = Turns()
        self._entries: Turns[Entry] = Turns()
        self._blobs: Turns[Path] = Turns()

    async def entry(self, reference: Reference) -> Entry:
        """Return a version; only one that is not at hand takes a thread and waits for the registry.

        Raises:
            Missing: there is no such name, alias or version.
            NotReady: the registry cannot give it now.
            CheckpointError: what the registry gives is damaged.
        """
        store = self._store
        entry = store.at_hand(reference)
        if entry is not None:
            return entry
        facts = store.catalog.seek(reference)
        if facts is None:
            facts = await self._looks.once(str(reference), partial(store.facts, reference))
        return await self._entries.once(f"{facts.reference}:{facts.sha256}", partial(store.bring_one, facts))

    async def blob(self, sha256: str) -> Path:
        """Return the file of a blob; what is on disk waits for nothing that has to be brought.

        Raises:
            Missing: no version or prediction that was served from here has this checksum.
        """
        path = self._store.blob_at_hand(sha256)
        if path is None:
            path = await anyio.to_thread.run_sync(self._store.blob_on_disk, sha256)
        if path is None:
            path = await self._blobs.once(sha256, partial(self._store.blob, sha256))
        return path
