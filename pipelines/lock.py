"""A lock a name, held in the store itself, so that it holds between machines.

The one atomic step that MLflow offers on every store is the unique name of a registered model.
Holding the lock means owning the registered model ``metainit.lock.<name>``. A holder that died is
found by watching: a lease that does not change for as long as its holder asked for is stale (no two
clocks are compared). It is taken away by renaming it after its own token. That name is unique too,
so of two waiters only one succeeds, and neither can take a lease that is not the stale one. A lease
that ends in good order is renamed in the same way, so that whoever comes late with either step
finds the name taken. Tombstones are swept after `SWEEP_SECONDS`.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from metainit.errors import RegistryError
from pipelines.connection import Connection

PREFIX = "metainit.lock."
TOMBSTONE = "metainit.lock-was."
LEASE_SECONDS = 30.0
TIMEOUT_SECONDS = 90.0
SWEEP_SECONDS = 600.0
_PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Lease:
    """The right to move the aliases of one name until `deadline` on this process's own clock."""

    name: str
    token: str
    deadline: float

    def check(self) -> None:
        """Make sure that the lease has not run out.

        Raises:
            RegistryError: it has; someone else may hold the lock by now.
        """
        if time.monotonic() >= self.deadline:
            raise RegistryError(
                f"the lock on {self.name!r} ran out before the work was done; nothing more was "
                "changed: try again"
            )


@contextmanager
def locked(
    connection: Connection,
    name: str,
    lease: float = LEASE_SECONDS,
    timeout: float = TIMEOUT_SECONDS,
) -> Iterator[Lease]:
    """Hold the lock on `name` while the block runs.

    Raises:
        RegistryError: another holder kept the lock for `timeout` seconds, or the store refuses.
    """
    held = _acquire(connection, name, lease, timeout)
    try:
        yield held
    finally:
        _bury(connection, name, held.token)
        _sweep(connection)


def _acquire(connection: Connection, name: str, lease: float, timeout: float) -> Lease:
    from mlflow.exceptions import MlflowException

    token = uuid.uuid4().hex
    owner = f"{socket.gethostname()}:{os.getpid()}"
    claim = json.dumps({"token": token, "owner": owner, "lease": lease})
    give_up = time.monotonic() + timeout
    watched: tuple[str, float] = ("", 0.0)
    while True:
        deadline = time.monotonic() + lease
        with connection.calls(f"lock {name!r}") as client:
            try:
                client.create_registered_model(PREFIX + name, description=claim)
                return Lease(name, token, deadline)
            except MlflowException as error:
                if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "TEMPORARILY_UNAVAILABLE"):
                    raise
        other = _holder(connection, name)
        now = time.monotonic()
        if other is not None:
            if other["token"] != watched[0]:
                watched = (other["token"], now)
            elif now - watched[1] > float(other["lease"]):
                _bury(connection, name, other["token"])
                continue
        if now > give_up:
            who = other["owner"] if other else "another process"
            raise RegistryError(
                f"the lock on {name!r} is held by {who} for more than {timeout:g} s; wait for it "
                "and try again"
            )
        time.sleep(_PAUSE_SECONDS)


def _holder(connection: Connection, name: str) -> dict[str, str] | None:
    """Return the claim of whoever holds the lock, or None where it has just been released."""
    from mlflow.exceptions import MlflowException

    with connection.calls(f"look at the lock on {name!r}") as client:
        try:
            text = client.get_registered_model(PREFIX + name).description or ""
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE"):
                return None
            raise
    try:
        claim = json.loads(text)
        return {key: str(claim[key]) for key in ("token", "owner", "lease")}
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"the lock {PREFIX + name!r} was not written by metainit; delete that registered model in MLflow"
        ) from error


def _bury(connection: Connection, name: str, token: str) -> bool:
    """Rename a stale lease after its token; False where someone else has done so already."""
    from mlflow.exceptions import MlflowException

    gone = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "TEMPORARILY_UNAVAILABLE")
    with connection.calls(f"take over the lock on {name!r}") as client:
        try:
            client.rename_registered_model(PREFIX + name, TOMBSTONE + token)
        except MlflowException as error:
            if error.error_code in gone:
                return False
            # A database that finds the row changed under it has its own words for that (SQLAlchemy's
            # StaleDataError comes as BAD_REQUEST): what counts is whether the lease still stands.
            still = _holder(connection, name)
            if still is not None and still["token"] == token:
                raise
            return False
    return True


def _sweep(connection: Connection) -> None:
    """Delete the tombstones that nobody can be waiting for any more."""
    from mlflow.exceptions import MlflowException

    now = time.time()
    with connection.calls("sweep old locks") as client:
        for tomb in client.search_registered_models(f"name LIKE '{TOMBSTONE}%'"):
            if now - tomb.last_updated_timestamp / 1000 > SWEEP_SECONDS:
                with suppress(MlflowException):  # another sweeper was faster
                    client.delete_registered_model(tomb.name)
