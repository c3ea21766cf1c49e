"""Garbage collection: which versions nobody needs, and taking them away.

A version stays if an alias names it, if it is among the newest of its name, if it is young (its run may
still wait for the gate), if the run that made it goes on, or if a run in progress has its name among its
parameters. All of that is looked at again, under the lock of the name, right before each deletion.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metainit.errors import EndpointError
from metainit.references import Reference
from pipelines.connection import EXPERIMENT, Connection
from pipelines.discarding import discard, finish
from pipelines.lock import locked
from pipelines.registry import SCHEME, Registry
from pipelines.version import Version

GRACE_SECONDS = 86400.0
"""How young a version has to be to stay for that alone."""
RUNNING_SECONDS = 7 * 86400.0
"""A run that began longer ago counts as dead, though MLflow says that it is running."""
_PAGE = 500


@dataclass(frozen=True)
class Collected:
    """What a collection deleted (or would delete), and the old versions that stayed, with the reason."""

    goes: tuple[Version, ...]
    stays: tuple[tuple[Version, str], ...]


@dataclass(frozen=True)
class InProgress:
    """The runs that go on: their ids, and every word of their parameters that may be a reference."""

    runs: frozenset[str]
    references: frozenset[Reference]

    def names(self, name: str) -> list[str]:
        """Return the references to a name, as a user writes them."""
        return sorted(str(r) for r in self.references if r.name == name)


def collect(
    registry: Registry,
    *,
    delete: bool = False,
    keep: int = 1,
    older_than: float = GRACE_SECONDS,
    names: Sequence[str] | None = None,
) -> Collected:
    """Find what nobody needs, and delete it where `delete` is true.

    Args:
        registry: where to look.
        delete: without it nothing is changed.
        keep: the newest versions of each name that stay in any case.
        older_than: seconds since its registration that a version has to be old.
        names: where to look; all names unless given.

    Raises:
        RegistryError: the store cannot be reached, a name is not registered, or a lock is held.
    """
    goes: list[Version] = []
    stays: list[tuple[Version, str]] = []
    for name in registry.names() if names is None else names:
        if not delete:
            running = in_progress(registry.connection)
            judged = [(v, why(v, running, older_than)) for v in registry.versions(name)[keep:]]
            goes += [version for version, reason in judged if not reason]
            stays += [(version, reason) for version, reason in judged if reason]
            continue
        with locked(registry.connection, name):
            finish(registry.connection, name)
            candidates = registry.versions(name)[keep:]
        for candidate in candidates:
            with locked(registry.connection, name) as lease:
                version = registry.find(name, candidate.version)
                if version is None:
                    continue  # another collection has taken it away
                reason = why(version, in_progress(registry.connection), older_than)
                if reason:
                    stays.append((version, reason))
                    continue
                lease.check()
                discard(registry.connection, version)
                goes.append(version)
    return Collected(tuple(goes), tuple(stays))


def why(version: Version, running: InProgress, older_than: float) -> str:
    """Return why a version stays, or an empty string where nobody needs it."""
    if version.aliases:
        return f"it is {', '.join(version.aliases)}"
    if time.time() - version.created < older_than:
        return f"it is younger than {older_than / 3600:g} hours"
    if version.run_id in running.runs:
        return f"its run {version.run_id} is in progress"
    named = running.names(version.name)
    if named:
        return f"a run in progress names {named[0]}"
    return ""


def in_progress(connection: Connection) -> InProgress:
    """Return which of metainit's runs go on, and what they name in their parameters.

    Raises:
        RegistryError: the store cannot be reached.
    """
    runs: set[str] = set()
    named: set[Reference] = set()
    token: str | None = None
    oldest = (time.time() - RUNNING_SECONDS) * 1000
    with connection.calls("look for runs in progress") as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        while experiment is not None:
            page = client.search_runs(
                [experiment.experiment_id],
                f"attributes.status = 'RUNNING' AND attributes.start_time > {int(oldest)}",
                max_results=_PAGE,
                page_token=token,
            )
            for run in page:
                runs.add(str(run.info.run_id))
                named |= _references(run.data.params)
            token = page.token
            if not token:
                break
    return InProgress(frozenset(runs), frozenset(named))


def _references(params: Mapping[str, Any]) -> set[Reference]:
    """Return every reference of the registry that stands in a run's parameters."""
    found = set()
    for value in params.values():
        for text in re.split(r"[\s,'\"\[\]]+", str(value).replace(SCHEME, " ")):
            try:
                found.add(Reference.parse(text))
            except EndpointError:
                continue  # most parameters are no reference
    return found
