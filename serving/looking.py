"""Looks at the registry: each gives everything that there is, and what has not changed as the same object."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from metainit.errors import MetainitError, RegistryError
from metainit.references import NAME
from serving.catalog import Facts, Init, Registry

if TYPE_CHECKING:
    from pipelines.following import Seen
    from pipelines.registry import Registry as MlflowRegistry

LOGGER = logging.getLogger("metainit.serving")
T = TypeVar("T")
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class DamagedVersion(Protocol):
    """A version whose tags in the registry cannot be read."""

    @property
    def version(self) -> int:
        """Its number."""

    @property
    def reference(self) -> str:
        """``name/version``."""

    @property
    def reason(self) -> str:
        """What is wrong."""


class Named(Protocol):
    """One name as a look found it."""

    @property
    def aliases(self) -> Mapping[str, int]:
        """What each alias means."""

    @property
    def versions(self) -> Sequence[Any]:
        """Its versions, newest first."""

    @property
    def damaged(self) -> Sequence[DamagedVersion]:
        """Its versions whose tags cannot be read."""


Look = Callable[[], Mapping[str, Named]]


@dataclass(frozen=True)
class Listed:
    """One name, read in full."""

    aliases: Mapping[str, int]
    versions: tuple[Any, ...]
    damaged: tuple[DamagedVersion, ...] = ()


def listing(registry: Registry) -> Look:
    """Return looks that list every name and version: for any registry that is small."""

    def look() -> dict[str, Named]:
        found: dict[str, Named] = {}
        for name in registry.names():
            versions = tuple(registry.versions(name))
            found[name] = Listed({a: v.version for v in versions for a in v.aliases}, versions)
        return found

    return look


def following(opened: Callable[[], MlflowRegistry]) -> Look:
    """Return looks that read what has changed in a registry, which the first of them opens."""
    registry: MlflowRegistry | None = None
    seen: Seen | None = None

    def look() -> Mapping[str, Named]:
        from pipelines import following

        nonlocal registry, seen
        registry = registry or opened()
        seen = following.look(registry, seen)
        return seen.names

    return look


class Gathering:
    """Turns looks into what the endpoint offers; a name that has not changed is not gathered again."""

    def __init__(self, look: Look) -> None:
        """Have seen nothing yet."""
        self._look = look
        self._named: Mapping[str, Named] | None = None
        self._seen: dict[str, tuple[Named, Init]] = {}
        self._inits: dict[str, Init] = {}
        self.damaged: dict[str, str] = {}

    def gather(self, before: Mapping[str, Init]) -> dict[str, Init]:
        """Look once, and return every name that has a version.

        A version whose tags were damaged since it was read stays as `before` has it: versions do not change.

        Raises:
            MetainitError: the registry cannot be reached.
        """
        named = asked(self._look, "list what it holds")
        if named is self._named:
            return self._inits
        seen: dict[str, tuple[Named, Init]] = {}
        damaged: dict[str, str] = {}
        for name, found in named.items():
            if not re.fullmatch(NAME, name):
                continue
            damaged |= {one.reference: one.reason for one in found.damaged}
            old = self._seen.get(name)
            if old is not None and old[0] is found:
                seen[name] = old
                continue
            init = _init(name, found, before.get(name))
            if init is not None:
                seen[name] = (found, init)
        for reference in damaged.keys() - self.damaged.keys():
            LOGGER.error("%s is left out: %s", reference, damaged[reference])
        self._named, self._seen, self.damaged = named, seen, damaged
        self._inits = {name: init for name, (_, init) in seen.items()}
        return self._inits


def _init(name: str, found: Named, before: Init | None) -> Init | None:
    """Gather one name, or None where it has no version to serve."""
    remembered = (before.find(one.version) for one in found.damaged) if before else ()
    versions = [*map(Facts.of, found.versions), *(facts for facts in remembered if facts is not None)]
    return Init.gathered(name, versions, found.aliases) if versions else None


def asked(question: Callable[[], T], what: str) -> T:
    """Ask the registry; a foreign error becomes a RegistryError, a full disk of ours does not.

    Raises:
        RegistryError: the registry failed.
        OSError: the disk is full, or cannot be written.
    """
    try:
        return question()
    except MetainitError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK:
            raise
        raise RegistryError(f"the registry failed to {what}: {type(error).__name__}: {error}") from error
