"""The registry: versions of initializations under a name, in MLflow.

One registered model a name. A version is an artifact folder (checkpoint, evidence, recipe,
pictures, and an MLmodel that `mlflow.pyfunc` can load) with what a list needs to know in its tags,
so that listing downloads nothing. The aliases `champion`, `challenger` and `previous` move under
the lock of the name.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metainit.errors import RegistryError, SourceError, suggestion
from metainit.places import cache_folder
from metainit.transfer import file_sha256
from pipelines.artifacts import evidence_of, fetch, run_for, upload
from pipelines.connection import Connection, connect
from pipelines.discarding import discard
from pipelines.flavour import CHECKPOINT, mlmodel
from pipelines.history import KEPT_EVENTS, Event, decisions, moved, read_events
from pipelines.history import PREFIX as EVENT
from pipelines.lock import Lease, locked
from pipelines.tags import KIND, TAG
from pipelines.version import Damaged, Version, describe, from_entity, read_evidence, readable

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "PREVIOUS",
    "Registry",
    "Version",
    "cached",
    "crown",
    "load_source",
]

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
FORMAT_TAG, FORMAT = TAG + "format", "1"
SCHEME = "models:/"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
_REFERENCE = re.compile(r"^(?P<name>[^@/:]+)(?:@(?P<alias>[^@/:]+)|/(?P<version>\d+))?$")
_RESERVED = "metainit.lock"
_PAGE = 200
_TOLD = 20
"""Versions that an error names at most."""
_log = logging.getLogger(__name__)


class Registry:
    """Names, versions and aliases in one MLflow store.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
        ...     Registry(f'sqlite:///{folder}/mlflow.db').names()
        []
    """

    def __init__(self, uri: str | None = None) -> None:
        """Open the store at `uri`, else at `MLFLOW_TRACKING_URI`, else the embedded one.

        Raises:
            RegistryError: the store cannot be reached or created.
        """
        self.connection: Connection = connect(uri)

    @property
    def uri(self) -> str:
        """The address of the store, which may hold a password; see `shown`."""
        return self.connection.uri

    @property
    def shown(self) -> str:
        """The address of the store as texts show it: without user and password."""
        return self.connection.shown

    def names(self) -> list[str]:
        """Return every registered name, sorted; models that metainit did not register are left out.

        Raises:
            RegistryError: the store cannot be reached.
        """
        found: list[str] = []
        token: str | None = None
        with self.connection.calls("list the registry") as client:
            while True:
                page = client.search_registered_models(
                    f"tags.`{FORMAT_TAG}` = '{FORMAT}'", max_results=_PAGE, page_token=token
                )
                found += [model.name for model in page if not model.name.startswith(_RESERVED)]
                token = page.token
                if not token:
                    return sorted(found)

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a name, newest first; one whose tags are damaged is logged and left out.

        Raises:
            RegistryError: the name is not registered, or the store cannot be reached.
        """
        versions, damaged = self.survey(name)
        for one in damaged:
            _log.warning("%s is left out: %s", one.reference, one.reason)
        return versions

    def survey(self, name: str) -> tuple[list[Version], list[Damaged]]:
        """Return the versions of a name, and those whose tags are damaged, each newest first.

        Raises:
            RegistryError: the name is not registered, or the store cannot be reached.
        """
        aliases = self.aliases(name)
        found: list[ModelVersion] = []
        token: str | None = None
        with self.connection.calls(f"list the versions of {name!r}") as client:
            while True:
                page = client.search_model_versions(f"name = '{name}'", max_results=_PAGE, page_token=token)
                found += page
                token = page.token
                if not token:
                    return readable(found, aliases)

    def aliases(self, name: str) -> dict[str, int]:
        """Return the aliases of a name and the version that each points to.

        Raises:
            RegistryError: the name is not registered, or the store cannot be reached.
        """
        return {alias: int(version) for alias, version in self._model(name).aliases.items()}

    def history(self, name: str) -> list[Event]:
        """Return who moved an alias when and why, and what the gate refused, newest first.

        Raises:
            RegistryError: the name is not registered, or the store cannot be reached.
        """
        moves = self.moves(name)
        events = [*moves, *decisions(self.versions(name), moves)]
        return sorted(events, key=lambda event: event.at, reverse=True)

    def moves(self, name: str) -> list[Event]:
        """Return the moves of aliases that the history of a name keeps, newest first.

        Raises:
            RegistryError: the name is not registered, or the store cannot be reached.
        """
        return read_events(name, self._model(name).tags)

    def record(self, name: str, event: Event) -> None:
        """Keep a move of an alias in the history of its name; the oldest beyond `KEPT_EVENTS` go.

        Raises:
            RegistryError: the store cannot be reached.
        """
        from mlflow.exceptions import MlflowException

        with self.connection.calls(f"record a move of {name!r}") as client:
            client.set_registered_model_tag(name, *event.tag())
            keys = sorted(key for key in client.get_registered_model(name).tags if key.startswith(EVENT))
            for key in keys[:-KEPT_EVENTS]:
                with suppress(MlflowException):
                    client.delete_registered_model_tag(name, key)

    def _model(self, name: str) -> RegisteredModel:
        """Return MLflow's record of a name."""
        from mlflow.exceptions import MlflowException

        with self.connection.calls(f"look up {name!r}") as client:
            try:
                if _NAME.match(name) and not name.startswith(_RESERVED):
                    return client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        known = self.names()
        way_out = suggestion(name, known) if known else "nothing is registered there yet"
        raise RegistryError(f"{name!r} is not registered at {self.shown}; {way_out}")

    def resolve(self, reference: str) -> Version:
        """Return what ``name`` (champion, else newest), ``name@alias`` or ``name/version`` means.

        Raises:
            RegistryError: the reference is malformed, or the name, alias or version does not exist.
        """
        match = _REFERENCE.match(reference.removeprefix(SCHEME))
        if match is None:
            raise RegistryError(f"{reference!r} is not a reference; write name, name@alias or name/version")
        name, alias, number = match["name"], match["alias"], match["version"]
        aliases = self.aliases(name)
        wanted = int(number) if number is not None else aliases.get(alias or CHAMPION)
        if wanted is not None:
            found = self._one(name, wanted, aliases)
            if found is not None:
                return found
        versions = self.versions(name)
        if not versions:
            raise RegistryError(f"{name!r} has no version yet; register one, or train its recipe")
        if number is None and alias is None:
            return versions[0]
        if number is not None:
            more = ", ..." if len(versions) > _TOLD else ""
            have = f"its versions are: {', '.join(str(v.version) for v in versions[:_TOLD])}{more}"
        else:
            known = sorted(a for v in versions for a in v.aliases)
            have = f"its aliases are: {', '.join(known)}" if known else "it has no alias yet"
        raise RegistryError(f"{reference!r} does not exist in {self.shown}; {have}")

    def find(self, name: str, number: int) -> Version | None:
        """Return the version of a number, or None where there is none.

        Raises:
            RegistryError: the name is not registered, the tags are damaged, or the store cannot be reached.
        """
        return self._one(name, number, self.aliases(name))

    def _one(self, name: str, number: int, aliases: dict[str, int]) -> Version | None:
        """Return one version, or None where there is none of that number."""
        from mlflow.exceptions import MlflowException

        with self.connection.calls(f"look up {name}/{number}") as client:
            try:
                entity = client.get_model_version(name, str(number))
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        ours = any(key.startswith(TAG) for key in entity.tags)
        return from_entity(entity, aliases) if ours else None

    def register(self, folder: Path, name: str, run_id: str | None = None) -> Version:
        """Make a new version of `name` from a folder with at least ``checkpoint.safetensors``.

        The folder is uploaded to the run `run_id`, or to a run of its own. The same checkpoint of
        the same run is registered once, so that a resumed run does not make a second version. No
        alias moves: that is the gate's decision (`pipelines.gate.admit`).

        Raises:
            CheckpointError: the checkpoint is missing or damaged.
            RegistryError: the name or the kind is not allowed, or the store cannot be reached or is full.
        """
        from metainit import checkpoint

        if not _NAME.match(name) or name.startswith(_RESERVED):
            raise RegistryError(
                f"{name!r} cannot be a registered name; use letters, digits, '.', '_' and '-', "
                f"at most 200 of them, not beginning with {_RESERVED!r}"
            )
        file = folder / CHECKPOINT
        card = checkpoint.load(file).card
        if not re.fullmatch(KIND, card.kind):
            raise RegistryError(
                f"{file} is of the kind {card.kind!r}; expected lower-case letters, digits, '.', '_' and '-'"
            )
        tags = describe(file, card, read_evidence(folder))
        self.ensure(name)
        if run_id is not None:
            for version in self.versions(name):
                if version.run_id == run_id and version.sha256 == tags[TAG + "sha256"]:
                    return version
        where = f"initializations/{name}/{tags[TAG + 'sha256'][:16]}"
        with run_for(self.connection, name, run_id) as run:
            source = upload(self.connection, run, folder, where, mlmodel(card))
            with self.connection.calls(f"register {name!r}") as client:
                made = client.create_model_version(name, source, run_id=run, tags=tags)
        return from_entity(made, {})

    def download(self, version: Version, folder: Path) -> Path:
        """Fetch a version's whole artifact folder into `folder`, verified, and return `folder`.

        Files appear in `folder` only when all of them are there and the checkpoint has the digest
        that was registered. One that has not is kept beside as
        ``checkpoint.safetensors.quarantine``.

        Raises:
            RegistryError: the store cannot be reached, the disk is full, or the digest is wrong.
        """
        return fetch(self.connection, version, folder)

    def evidence(self, version: Version) -> dict[str, Any] | None:
        """Return a version's evidence, or None where it was registered without.

        Raises:
            RegistryError: the store cannot be reached, or the evidence cannot be read.
        """
        return evidence_of(self.connection, version)

    def set_alias(self, version: Version, alias: str) -> None:
        """Point an alias at a version, without the lock and without book-keeping; see `promote`.

        Raises:
            RegistryError: the alias is not allowed, or the store cannot be reached.
        """
        self.point(version.name, alias, version.version)

    def point(self, name: str, alias: str, number: int) -> None:
        """Point an alias at the version of a number, as `set_alias` does.

        Raises:
            RegistryError: there is no such version, or the store cannot be reached.
        """
        with self.connection.calls(f"set {alias!r} to {name}/{number}") as client:
            client.set_registered_model_alias(name, alias, str(number))
        self.touch(name)

    def touch(self, name: str) -> None:
        """Move the time of the last change of a name, which MLflow leaves alone when an alias moves.

        Whoever follows the registry then finds the name among the newest (`pipelines.following`).

        Raises:
            RegistryError: the store cannot be reached.
        """
        with self.connection.calls(f"mark {name!r} as changed") as client:
            client.update_registered_model(name, client.get_registered_model(name).description)

    def tag(self, version: Version, key: str, value: str) -> None:
        """Set a tag ``metainit.<key>`` of a version.

        Raises:
            RegistryError: the store cannot be reached.
        """
        with self.connection.calls(f"tag {version.reference}") as client:
            client.set_model_version_tag(version.name, str(version.version), TAG + key, value)

    def promote(self, reference: str, alias: str = CHAMPION, reason: str = "by hand") -> Version:
        """Point `alias` at a version, whatever the gate says; an old champion becomes `previous`.

        The history of the name keeps who did it, when, and the `reason`.

        Raises:
            RegistryError: reference or alias is not one that there can be, or the lock is held.
        """
        version = self.resolve(reference)
        with locked(self.connection, version.name) as lease:
            aliases = self.aliases(version.name)
            event = moved(version, "promote", alias, aliases.get(alias))
            event = event.model_copy(update={"reason": reason})
            if alias == CHAMPION:
                crown(self, version, aliases, lease, event)
            elif aliases.get(alias) != version.version:
                lease.check()
                self.record(version.name, event)
                self.set_alias(version, alias)
        return self.resolve(version.reference)

    def rollback(self, name: str) -> Version:
        """Make `previous` the champion again and the champion `previous`; twice undoes it.

        Raises:
            RegistryError: there is no previous champion, or the lock is held.
        """
        with locked(self.connection, name) as lease:
            aliases = self.aliases(name)
            if aliases.get(PREVIOUS) in (None, aliases.get(CHAMPION)):
                raise RegistryError(
                    f"{name!r} has no previous champion to roll back to; promote one: "
                    f"metainit promote {name} VERSION {CHAMPION}"
                )
            back = self.resolve(f"{name}/{aliases[PREVIOUS]}")
            crown(self, back, aliases, lease, moved(back, "rollback", CHAMPION, aliases.get(CHAMPION)))
        return self.resolve(back.reference)

    def delete(self, reference: str) -> Version:
        """Delete one version and its artifacts, unless an alias names it.

        Raises:
            RegistryError: an alias names it, or the store refuses.
        """
        version = self.resolve(reference)
        with locked(self.connection, version.name):
            version = self.resolve(version.reference)
            if version.aliases:
                raise RegistryError(
                    f"{version.reference} is {', '.join(version.aliases)}; give that alias to "
                    "another version first"
                )
            discard(self.connection, version)
        return version

    def ensure(self, name: str) -> None:
        """Make a name where there is none; a registered model of that name becomes metainit's.

        Raises:
            RegistryError: the store cannot be reached, or refuses.
        """
        from mlflow.exceptions import MlflowException

        with self.connection.calls(f"register {name!r}") as client:
            try:
                client.create_registered_model(name, tags={FORMAT_TAG: FORMAT})
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                client.set_registered_model_tag(name, FORMAT_TAG, FORMAT)


def crown(registry: Registry, version: Version, aliases: dict[str, int], lease: Lease, event: Event) -> None:
    """Make `version` the champion and the champion among `aliases` the previous one, under a lease.

    The `event` is kept in the history first.

    Raises:
        RegistryError: the lease ran out, or the store cannot be reached.
    """
    old = aliases.get(CHAMPION)
    if old == version.version:
        return
    lease.check()
    registry.record(version.name, event)
    if old is not None:
        lease.check()
        registry.point(version.name, PREVIOUS, old)
    lease.check()
    registry.set_alias(version, CHAMPION)
    if aliases.get(CHALLENGER) == version.version:
        with registry.connection.calls(f"clear {CHALLENGER!r} of {version.name!r}") as client:
            client.delete_registered_model_alias(version.name, CHALLENGER)


def load_source(source: str) -> Path:
    """Return a verified local checkpoint for ``models:/name[@alias|/version]``.

    What was fetched once is kept under its digest in the cache; the rest of the version's
    artifacts lie beside it.

    Raises:
        SourceError: `source` does not begin with ``models:/``.
        RegistryError: the reference does not exist, or the registry cannot be reached.
    """
    if not source.startswith(SCHEME):
        raise SourceError(f"{source!r} is not of the registry; write {SCHEME}name@alias")
    registry = Registry()
    return cached(registry, registry.resolve(source))


def cached(registry: Registry, version: Version) -> Path:
    """Return the checkpoint file of a version in the local cache, fetched and verified.

    Raises:
        RegistryError: the registry cannot be reached, the disk is full, or the digest is wrong.
    """
    folder = cache_folder("registry") / version.sha256
    file = folder / CHECKPOINT
    if not (file.is_file() and file_sha256(file) == version.sha256):
        registry.download(version, folder)
    return file
