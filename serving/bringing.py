"""Versions at hand, and bringing the others: verified, once, and not again at once where it failed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from metainit.errors import CheckpointError, DigestError, MetainitError, RegistryError
from serving.cache import Cache, Entry, NotReady
from serving.catalog import Catalog, Facts, Registry
from serving.eviction import evict
from serving.looking import asked

LOGGER = logging.getLogger("metainit.serving")


@dataclass
class Counts:
    """What the store has done so far, for the metrics."""

    pulled: int = 0
    refused: int = 0
    refreshes: int = 0
    failures: int = 0
    quarantined: dict[str, str] = field(default_factory=dict)


class Bringer:
    """The versions whose files are verified and on disk.

    Args:
        registry: where versions come from.
        cache: where verified copies are kept.
        counts: what is done is counted there.
        retry: seconds until a damaged version is tried again.
        spared: gives the SHA-256 of what has to stay where the disk is full.
    """

    def __init__(
        self,
        registry: Registry,
        cache: Cache,
        counts: Counts,
        retry: float,
        spared: Callable[[], Collection[str]],
    ) -> None:
        """Have nothing at hand yet."""
        self._registry, self._cache, self._counts, self._retry = registry, cache, counts, retry
        self._spared, self._evicting = spared, threading.Lock()
        self.least_free_bytes = 0
        self._entries: dict[str, Entry] = {}
        self._refused: dict[str, tuple[float, MetainitError]] = {}

    @property
    def at_hand(self) -> set[str]:
        """The references of the versions at hand."""
        return set(self._entries)

    def entry(self, reference: str) -> Entry | None:
        """Return a version at hand; one whose file was changed or taken away is forgotten."""
        entry = self._entries.get(reference)
        if entry is not None and self._cache.verified(entry.facts.sha256) is None:
            self._entries.pop(reference, None)
            return None
        return entry

    def open(self, catalog: Catalog) -> None:
        """Take what an earlier process left in the cache of what a catalog wants."""
        for facts in wanted(catalog):
            entry = self._cache.open(facts)
            if entry is not None:
                self._entries[facts.reference] = entry

    def missing(self, catalog: Catalog) -> list[Facts]:
        """Return the versions that a catalog wants and that are not at hand."""
        return [facts for facts in wanted(catalog) if self.have(facts) is None]

    def bring(self, facts: Facts) -> Entry:
        """Return a version, from the cache or else from the registry.

        Raises:
            NotReady: the registry cannot give it now, or there is no room for it.
            CheckpointError: what the registry gives is damaged.
        """
        entry = self.have(facts) or self._cache.open(facts)
        if entry is None:
            with self._cache.locked(facts):
                entry = self.have(facts) or self._cache.open(facts) or self._pull(facts)
        self._entries[facts.reference] = entry
        return entry

    def have(self, facts: Facts) -> Entry | None:
        """Return a version at hand, if its files are still those that the registry means."""
        entry = self.entry(facts.reference)
        return entry if entry is not None and entry.facts.sha256 == facts.sha256 else None

    def _pull(self, facts: Facts) -> Entry:
        key = f"{facts.reference}:{facts.sha256}"
        refused = self._refused.get(key)
        if refused is not None and time.monotonic() - refused[0] < self._retry:
            raise type(refused[1])(str(refused[1]))
        try:
            self._require_room(facts)
            entry = self._cache.add(facts, partial(self._download, facts))
        except MetainitError as error:
            self._counts.refused += 1
            if isinstance(error, CheckpointError):
                self._refused[key] = (time.monotonic(), error)
                self._counts.quarantined[facts.reference] = str(error)
            LOGGER.error("cannot bring %s: %s", facts.reference, error)
            raise
        self._refused.pop(key, None)
        self._counts.quarantined.pop(facts.reference, None)
        self._counts.pulled += 1
        return entry

    def _require_room(self, facts: Facts) -> None:
        """Make a version leave as much of the disk free as has to stay: a full one stops all writes.

        Raises:
            NotReady: it does not, whatever goes that no alias means.
        """
        free = self._cache.free_bytes()
        if free is not None and (short := self.least_free_bytes + facts.size - free) > 0:
            with self._evicting:
                evict(self._cache.folder, {*self._spared(), facts.sha256}, short)
            free = self._cache.free_bytes()
        if free is not None and free - facts.size < self.least_free_bytes:
            raise NotReady(
                f"cannot bring {facts.reference} into {self._cache.folder}: it has {facts.size} bytes, and "
                f"of the {free} that are free {self.least_free_bytes} have to stay so (least_free_bytes); "
                "free some space or choose another cache folder"
            )

    def _download(self, facts: Facts, folder: Path) -> Path:
        def download() -> Path:
            version = self._registry.resolve(facts.reference)
            artifact: Path = self._registry.download(version, folder)
            return artifact

        try:
            return asked(download, f"download {facts.reference}")
        except RegistryError as error:
            if any(folder.glob("*.quarantine")):  # the registry found it damaged itself
                raise DigestError(str(error)) from error
            raise NotReady(f"{facts.reference} is not at hand: {error}") from error


def wanted(catalog: Catalog) -> Iterable[Facts]:
    """Yield the versions to hold at hand: those that a bare name or an alias means."""
    for init in catalog.inits.values():
        for number in sorted(init.wanted(), reverse=True):
            facts = init.find(number)
            if facts is not None:
                yield facts
