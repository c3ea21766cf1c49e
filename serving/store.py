"""The store: follows the registry in the background and serves verified files from the local cache.

A version becomes visible under an alias only once its files are verified and on disk. When the
registry cannot be reached, what is at hand keeps being served, also after a restart.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from metainit.checkpoint import write_atomically
from metainit.errors import (
    CheckpointError,
    DigestError,
    EndpointError,
    MetainitError,
    RegistryError,
)
from metainit.references import NAME, Reference
from serving.cache import Cache, Entry
from serving.catalog import Catalog, Facts, Init, Missing, Registry
from serving.predictions import Predictions

LOGGER = logging.getLogger("metainit.serving")
GET_PATIENCE = 2.0
"""Seconds that a request for an unknown name waits for a look at the registry that is under way."""
_T = TypeVar("_T")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class NotReady(EndpointError):
    """The store has not seen the registry yet, or cannot bring a version right now."""


@dataclass(frozen=True)
class Status:
    """What is known about the way to the registry.

    `refreshed` counts monotonic seconds; None says that the registry was never reached.
    """

    refreshed: float | None = None
    error: str | None = None

    @property
    def stale(self) -> bool:
        """Whether the last look at the registry failed."""
        return self.error is not None


@dataclass
class Counts:
    """What the store has done so far, for the metrics."""

    pulled: int = 0
    refused: int = 0
    refreshes: int = 0
    failures: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)


class Store:
    """Everything the endpoint serves.

    Args:
        registry: where versions come from.
        folder: where verified copies are kept.
        poll: seconds between looks at the registry.
        retry: seconds until a version that could not be brought is tried again.
    """

    def __init__(self, registry: Registry, folder: Path, poll: float = 2.0, retry: float = 60.0) -> None:
        """Open what an earlier process left in `folder`; `start` looks at the registry."""
        self._registry = registry
        self._cache = Cache(folder)
        self._index = folder / "catalog.json"
        self._poll, self._retry = poll, retry
        self._catalog = self._remembered()
        self._status = Status()
        self._entries = self._at_hand_from(self._catalog)
        self._refused: dict[str, tuple[float, MetainitError]] = {}
        self._refreshing, self._pulling = threading.Lock(), threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.counts = Counts()
        self.predictions = Predictions(folder / "predictions")

    @property
    def catalog(self) -> Catalog:
        """What is offered now."""
        return self._catalog

    @property
    def status(self) -> Status:
        """How the last look at the registry went."""
        return self._status

    @property
    def ready(self) -> bool:
        """Whether there is something to answer: the registry was seen, now or before a restart."""
        return self._status.refreshed is not None or bool(self._catalog.inits)

    def start(self) -> None:
        """Look at the registry once, then keep following it in a thread."""
        self.refresh()
        self._stopping.clear()
        self._thread = threading.Thread(target=self._follow, name="metainit-store", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following; waits for a look that is under way, at most 10 seconds."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
            self._thread = None

    def at_hand(self, reference: Reference) -> Entry | None:
        """Return the version a reference means if its files are open already; never blocks.

        Raises:
            Missing: there is no such version.
        """
        return self._entries.get(self._catalog.find(reference).reference)

    def get(self, reference: Reference) -> Entry:
        """Return the version a reference means, bringing it from the registry if need be.

        Raises:
            Missing: there is no such name, alias or version.
            NotReady: the registry cannot give it now.
            CheckpointError: what the registry gives is damaged.
        """
        try:
            facts = self._catalog.find(reference)
        except Missing:
            self.refresh(younger_than=1.0, patience=GET_PATIENCE)  # it may have been registered a moment ago
            facts = self._catalog.find(reference)
        return self._bring(facts)

    def blob_at_hand(self, sha256: str) -> Path | None:
        """Return the file of a blob if it was verified already; reads and brings nothing."""
        return self._cache.verified(sha256)

    def blob(self, sha256: str) -> Path:
        """Return the file of a blob.

        Raises:
            Missing: no version or prediction that was served from here has this checksum.
        """
        path = self._cache.blob(sha256) or self.predictions.blob(sha256)
        if path is not None:
            return path
        for init in self._catalog.inits.values():
            for facts in init.versions:
                if facts.sha256 == sha256:
                    return self._bring(facts).blob
        raise Missing(f"no blob has the SHA-256 {sha256}")

    def refresh(self, younger_than: float = 0.0, patience: float = -1.0) -> None:
        """Look at the registry and move to what it says; a failure is kept in `status`.

        Args:
            younger_than: nothing is done where the last look is not older, in seconds.
            patience: seconds to wait for a look that is under way, which may bring large files; negative
                waits for its end.
        """
        if not self._refreshing.acquire(timeout=patience):
            return
        try:
            seen = self._status.refreshed
            if seen is not None and time.monotonic() - seen < younger_than:
                return
            try:
                newer = self._look()
            except MetainitError as error:
                self.counts.failures += 1
                if not self._status.stale:
                    LOGGER.error("the registry cannot be reached, serving what is at hand: %s", error)
                self._status = Status(seen, str(error))
                return
            for init in newer.inits.values():
                for version in init.wanted():
                    self._prepare(init, version)
            settled = self._catalog.moved(newer, set(self._entries))
            if settled != self._catalog:
                self._remember(settled)
            self._catalog = settled
            self.counts.refreshes += 1
            self._status = Status(time.monotonic())
        finally:
            self._refreshing.release()

    def _follow(self) -> None:
        while not self._stopping.wait(self._poll):
            try:
                self.refresh()
            except Exception:  # the thread must outlive a surprise; it is logged in full
                LOGGER.exception("a look at the registry failed")

    def _look(self) -> Catalog:
        inits = {}
        for name in _asked(self._registry.names, "list names"):
            if not re.fullmatch(NAME, name):
                continue
            versions = _asked(partial(self._registry.versions, name), f"list {name}")
            if versions:
                inits[name] = Init.of(name, versions)
        return Catalog(inits)

    def _prepare(self, init: Init, version: int) -> None:
        facts = init.find(version)
        if facts is None:
            return
        try:
            self._bring(facts)
        except MetainitError:
            pass  # logged and counted in _bring; the alias stays where it was

    def _bring(self, facts: Facts) -> Entry:
        key = facts.reference
        entry = self._entries.get(key)
        if entry is not None and entry.facts.sha256 == facts.sha256:
            return entry
        with self._pulling:
            entry = self._entries.get(key)
            if entry is None or entry.facts.sha256 != facts.sha256:
                entry = self._cache.open(facts) or self._pull(facts)
            self._entries[key] = entry
            return entry

    def _pull(self, facts: Facts) -> Entry:
        key = f"{facts.reference}:{facts.sha256}"
        refused = self._refused.get(key)
        if refused is not None and time.monotonic() - refused[0] < self._retry:
            raise type(refused[1])(str(refused[1]))
        try:
            entry = self._cache.add(facts, lambda folder: self._download(facts, folder))
        except MetainitError as error:
            self.counts.refused += 1
            if isinstance(error, CheckpointError):
                self._refused[key] = (time.monotonic(), error)
                self.counts.quarantined[facts.reference] = str(error)
            LOGGER.error("cannot bring %s: %s", facts.reference, error)
            raise
        self._refused.pop(key, None)
        self.counts.quarantined.pop(facts.reference, None)
        self.counts.pulled += 1
        return entry

    def _download(self, facts: Facts, folder: Path) -> Path:
        def download() -> Path:
            version = self._registry.resolve(facts.reference)
            artifact: Path = self._registry.download(version, folder)
            return artifact

        try:
            return _asked(download, f"download {facts.reference}")
        except RegistryError as error:
            if any(folder.glob("*.quarantine")):  # the registry found it damaged itself
                raise DigestError(str(error)) from error
            raise NotReady(f"{facts.reference} is not at hand: {error}") from error

    def _at_hand_from(self, catalog: Catalog) -> dict[str, Entry]:
        """Open what an earlier process left in the cache, so that it counts as at hand."""
        wanted = (init.find(v) for init in catalog.inits.values() for v in init.wanted())
        opened = (self._cache.open(facts) for facts in wanted if facts is not None)
        return {entry.facts.reference: entry for entry in opened if entry is not None}

    def _remembered(self) -> Catalog:
        try:
            return Catalog.from_json(json.loads(self._index.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Catalog()
        except (OSError, ValueError) as error:
            LOGGER.error("cannot read %s, starting without it: %s", self._index, error)
            return Catalog()

    def _remember(self, catalog: Catalog) -> None:
        try:
            write_atomically(self._index, json.dumps(catalog.to_json()).encode())
        except CheckpointError as error:
            LOGGER.error("a restart without the registry would not know what to serve: %s", error)


def _asked(question: Callable[[], _T], what: str) -> _T:
    """Ask the registry; a foreign error becomes a RegistryError, a full disk of ours does not."""
    try:
        return question()
    except MetainitError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise RegistryError(f"the registry failed to {what}: {type(error).__name__}: {error}") from error
