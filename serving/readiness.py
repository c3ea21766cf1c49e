"""Whether the endpoint can answer, and what is wrong behind it: the truth, as far as it may be told."""

from __future__ import annotations

from serving.answers import Readiness
from serving.store import NotReady, Store


def readiness(store: Store, least_free_bytes: int, told: bool) -> Readiness:
    """Say whether requests can be answered, and how well.

    A registry out of reach, a full disk and damaged versions leave it ready: what is at hand is right and
    is served. They are told, so that somebody is woken.

    Args:
        store: what is served.
        least_free_bytes: of disk; with less it counts as full.
        told: whether the caller may know details.

    Raises:
        NotReady: the registry was never reached, so there is nothing to answer with.
    """
    if not store.ready:
        why = store.status.error or "still looking"
        raise NotReady(f"the registry was never reached: {why if told else 'the log says why'}")
    if not told:
        return Readiness(ready=True)
    stale, free = store.stale_for(), store.free_bytes()
    return Readiness(
        ready=True,
        stale=stale is not None,
        stale_seconds=None if stale is None else round(stale, 1),
        inits=len(store.catalog.inits),
        registry_error=store.status.error,
        quarantined=store.quarantined,
        disk_full=free is None or free < least_free_bytes,
        disk_free_bytes=free,
    )
