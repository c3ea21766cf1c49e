"""The store: follows the registry in the background and serves verified files from the local cache.

A version becomes visible under an alias only once its files are verified and on disk. When the
registry cannot be reached, what is at hand keeps being served, also after a restart. One thread looks at
the registry and another brings what its aliases mean, so that a large file holds no look up.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from metainit.checkpoint import write_atomically
from metainit.errors import CheckpointError, MetainitError
from metainit.references import Reference
from serving.bringing import Bringer, Counts, wanted
from serving.cache import Cache, Entry, NotReady
from serving.catalog import Catalog, Facts, Missing, Registry
from serving.looking import Gathering, Look, listing
from serving.predictions import Predictions

__all__ = ["Counts", "NotReady", "Status", "Store"]

LOGGER = logging.getLogger("metainit.serving")
GET_PATIENCE = 2.0
"""Seconds that a request for an unknown name waits for a look at the registry that is under way."""
START_PATIENCE = 2.0
"""Seconds that a start waits for the versions that aliases mean; the rest comes while it serves."""
LONGEST_PAUSE = 15.0
"""Seconds between attempts to bring what cannot be brought, at most."""
SETTLE_SECONDS = 0.5
"""Time between moves to what has been brought so far, while more is being brought."""
LATE_SECONDS = 30.0
"""How much longer than three looks a look may take before what is served counts as stale."""


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


class Store:
    """Everything the endpoint serves.

    Args:
        registry: where versions come from.
        folder: where verified copies are kept; several processes may share it.
        poll: seconds between looks at the registry.
        retry: seconds until a damaged version is tried again.
        look: how to look at the registry; all of it each time unless given.
    """

    def __init__(
        self,
        registry: Registry,
        folder: Path,
        poll: float = 2.0,
        retry: float = 60.0,
        look: Look | None = None,
    ) -> None:
        """Open what an earlier process left in `folder`; `start` looks at the registry."""
        self.folder = folder
        self._cache = Cache(folder)
        self._index = folder / "catalog.json"
        self._made = time.monotonic()
        self._poll = poll
        self._gathering = Gathering(look or listing(registry))
        self._catalog = self._newest = self._remembered()
        self._status = Status()
        self.counts = Counts()
        self._bringer = Bringer(registry, self._cache, self.counts, retry, self._spared)
        self._bringer.open(self._catalog)
        self._refreshing, self._settling = threading.Lock(), threading.Lock()
        self._stopping, self._changed, self._tried = threading.Event(), threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self.predictions = Predictions(folder / "predictions")

    @property
    def catalog(self) -> Catalog:
        """What is offered now."""
        return self._catalog

    @property
    def status(self) -> Status:
        """How the last look at the registry went."""
        return self._status

    def stale_for(self) -> float | None:
        """Return the seconds since the registry was last in reach, or None while it is.

        A look that fails makes what is served stale, and so does one that does not end. Before the first
        look that succeeds, the seconds count from the start of this store.
        """
        status = self._status
        passed = time.monotonic() - (self._made if status.refreshed is None else status.refreshed)
        late = passed > 3 * self._poll + LATE_SECONDS
        return passed if status.stale or late else None

    def free_bytes(self) -> int | None:
        """Return how much disk is left for further versions, or None where that cannot be told."""
        return self._cache.free_bytes()

    def keep_free(self, least_bytes: int) -> None:
        """Bring from now on only what leaves so much of the disk free."""
        self._bringer.least_free_bytes = least_bytes

    @property
    def ready(self) -> bool:
        """Whether there is something to answer: the registry was seen, now or before a restart."""
        return self._status.refreshed is not None or bool(self._catalog.inits)

    @property
    def quarantined(self) -> dict[str, str]:
        """Damaged versions and why: their files, or their tags in the registry."""
        return {**self.counts.quarantined, **self._gathering.damaged}

    def start(self) -> None:
        """Look at the registry, then keep following it in threads.

        What an earlier process left is served at once; else this waits for the first look.
        """
        self._cache.sweep()
        if not self.ready:
            self.look()
        for event in (self._stopping, self._tried):
            event.clear()
        self._changed.set()
        self._threads = [
            threading.Thread(target=target, name=f"metainit-store-{target.__name__}", daemon=True)
            for target in (self._follow, self._fetch)
        ]
        for thread in self._threads:
            thread.start()
        self._tried.wait(START_PATIENCE)

    def stop(self) -> None:
        """Stop following; waits for what is under way, at most 10 seconds."""
        self._stopping.set()
        self._changed.set()
        deadline = time.monotonic() + 10
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        self._threads = []

    def at_hand(self, reference: Reference) -> Entry | None:
        """Return the version a reference means if its files are open already; never blocks."""
        facts = self._catalog.seek(reference)
        return None if facts is None else self._bringer.have(facts)

    def get(self, reference: Reference) -> Entry:
        """Return the version a reference means, bringing it from the registry if need be.

        Raises:
            Missing: there is no such name, alias or version.
            NotReady: the registry cannot give it now.
            CheckpointError: what the registry gives is damaged.
        """
        return self.bring_one(self.facts(reference))

    def bring_one(self, facts: Facts) -> Entry:
        """Return a version that `facts` gave, as `get` does."""
        return self._bringer.bring(facts)

    def facts(self, reference: Reference) -> Facts:
        """Return the version a reference means, after a look at the registry if it is not known.

        Raises:
            Missing: there is no such name, alias or version.
        """
        facts = self._catalog.seek(reference)
        if facts is None:
            self.look(younger_than=1.0, patience=GET_PATIENCE)  # it may have been registered a moment ago
            facts = self._catalog.find(reference)
        return facts

    def blob_at_hand(self, sha256: str) -> Path | None:
        """Return the file of a blob if it was verified already; reads and brings nothing."""
        return self._cache.verified(sha256)

    def blob_on_disk(self, sha256: str) -> Path | None:
        """Return the file of a blob, verified now if it has to be; brings nothing."""
        return self._cache.blob(sha256) or self.predictions.blob(sha256)

    def blob(self, sha256: str) -> Path:
        """Return the file of a blob.

        Raises:
            Missing: no version or prediction that was served from here has this checksum.
        """
        path = self.blob_on_disk(sha256)
        if path is not None:
            return path
        for init in self._catalog.inits.values():
            for facts in init.versions:
                if facts.sha256 == sha256:
                    return self._bringer.bring(facts).blob
        raise Missing(f"no blob has the SHA-256 {sha256}")

    def refresh(self) -> None:
        """Look at the registry, bring what its aliases mean, and move to what it says."""
        self.look()
        self.bring()

    def look(self, younger_than: float = 0.0, patience: float = -1.0) -> None:
        """Look at the registry; a failure is kept in `status`. Aliases move as far as files are at hand.

        Args:
            younger_than: nothing is done where the last look is not older, in seconds.
            patience: seconds to wait for a look that is under way; negative waits for its end.
        """
        if not self._refreshing.acquire(timeout=patience):
            return
        try:
            seen = self._status.refreshed
            if seen is not None and time.monotonic() - seen < younger_than:
                return
            try:
                inits = self._gathering.gather(self._newest.inits)
            except MetainitError as error:
                self.counts.failures += 1
                if not self._status.stale:
                    LOGGER.error("the registry cannot be reached, serving what is at hand: %s", error)
                self._status = Status(seen, str(error))
                return
            if inits is not self._newest.inits:
                self._settle(Catalog(inits))
                self._changed.set()
            self.counts.refreshes += 1
            self._status = Status(time.monotonic())
        finally:
            self._refreshing.release()

    def bring(self) -> bool:
        """Bring what aliases mean and is not at hand; return whether all of it is there now."""
        complete, settled = True, time.monotonic()
        for facts in self._bringer.missing(self._newest):
            if self._stopping.is_set():
                return False
            try:
                self._bringer.bring(facts)
            except MetainitError:
                complete = False  # logged and counted; the alias stays where it was
            if time.monotonic() - settled > SETTLE_SECONDS:
                self._settle()
                settled = time.monotonic()
        self._settle()
        return complete

    def _settle(self, newest: Catalog | None = None) -> None:
        """Move to what the registry says, or said last, as far as the files are at hand."""
        with self._settling:
            self._newest = newest or self._newest
            settled = self._catalog.moved(self._newest, self._bringer.at_hand)
            if settled != self._catalog:
                self._remember(settled)
            self._catalog = settled

    def _spared(self) -> set[str]:
        """Return the SHA-256 of all that is served by name, now or once it is at hand."""
        catalogs = (self._catalog, self._newest)
        return {facts.sha256 for catalog in catalogs for facts in wanted(catalog)}

    def _follow(self) -> None:
        while not self._stopping.is_set():
            try:
                self.look(younger_than=self._poll / 2)
            except Exception:  # the thread must outlive a surprise; it is logged in full
                LOGGER.exception("a look at the registry failed")
            self._stopping.wait(self._poll)

    def _fetch(self) -> None:
        pause: float | None = None  # until something changes
        while True:
            self._changed.wait(pause)
            self._changed.clear()
            if self._stopping.is_set():
                return
            try:
                complete = self.bring()
            except Exception:  # as above
                LOGGER.exception("bringing versions failed")
                complete = False
            self._tried.set()
            pause = None if complete else min(LONGEST_PAUSE, 2 * (pause or self._poll / 2))

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
