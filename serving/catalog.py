"""What the endpoint offers at one moment: names, versions and what each alias means. Pure values.

A catalog never changes; the store replaces it as a whole, so a request sees one consistent state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from metainit.errors import EndpointError, suggestion
from metainit.references import Reference

CHAMPION = "champion"


class RegistryVersion(Protocol):
    """What the store reads of a registered version."""

    @property
    def name(self) -> str:
        """The registered name."""

    @property
    def version(self) -> int:
        """Its number, counted from 1."""

    @property
    def aliases(self) -> tuple[str, ...]:
        """Aliases that point at it."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the checkpoint file in hex."""

    @property
    def size(self) -> int:
        """Size of the checkpoint file in bytes."""

    @property
    def kind(self) -> str:
        """Kind of initialization."""

    @property
    def method(self) -> str:
        """Name of the method."""

    @property
    def network(self) -> str | None:
        """Name of the network."""

    @property
    def headline(self) -> dict[str, Any] | None:
        """The evidence in a few numbers."""

    @property
    def run_id(self) -> str | None:
        """The run that made it."""

    @property
    def tags(self) -> dict[str, str]:
        """Free text by key."""


class Registry(Protocol):
    """What the store asks of a registry."""

    def names(self) -> list[str]:
        """Return every registered name."""

    def versions(self, name: str) -> list[Any]:
        """Return the versions of a name, newest first."""

    def resolve(self, reference: str) -> Any:
        """Return the version that a reference means."""

    def download(self, version: Any, folder: Path) -> Path:
        """Bring a version's artifact folder under `folder` and return where it is."""


@dataclass(frozen=True)
class Facts:
    """What is known of one version without its files."""

    name: str
    version: int
    sha256: str
    size: int
    kind: str
    method: str
    network: str | None = None
    headline: dict[str, Any] | None = None
    run_id: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, version: RegistryVersion) -> Facts:
        """Copy the facts of a registered version."""
        return cls(
            name=version.name,
            version=version.version,
            sha256=version.sha256,
            size=version.size,
            kind=version.kind,
            method=version.method,
            network=version.network,
            headline=version.headline,
            run_id=version.run_id,
            tags=dict(version.tags),
        )

    @property
    def reference(self) -> str:
        """The reference that pins this version."""
        return f"{self.name}/{self.version}"


@dataclass(frozen=True)
class Init:
    """One name: its versions, newest first, what its aliases mean, and what the bare name means."""

    name: str
    versions: tuple[Facts, ...]
    aliases: Mapping[str, int]
    default: int

    @classmethod
    def gathered(cls, name: str, versions: Iterable[Facts], aliases: Mapping[str, int]) -> Init:
        """Gather a name from its versions, at least one, and what its aliases mean."""
        known = tuple(sorted(versions, key=lambda f: -f.version))
        return cls(name, known, dict(aliases), aliases.get(CHAMPION, known[0].version))

    @cached_property
    def _by_number(self) -> dict[int, Facts]:
        return {facts.version: facts for facts in self.versions}

    def find(self, version: int) -> Facts | None:
        """Return the facts of a version, or None."""
        return self._by_number.get(version)

    def aliases_of(self, version: int) -> list[str]:
        """Return the aliases that mean a version, sorted."""
        return sorted(alias for alias, meant in self.aliases.items() if meant == version)

    def wanted(self) -> set[int]:
        """Return the versions to hold at hand: those that the bare name or an alias means."""
        return {self.default, *self.aliases.values()}


class Missing(EndpointError):
    """A name, alias, version, picture or blob does not exist."""


@dataclass(frozen=True)
class Catalog:
    """All names at one moment."""

    inits: Mapping[str, Init] = field(default_factory=dict)

    def init(self, name: str) -> Init:
        """Return a name.

        Raises:
            Missing: there is none; the text names the nearest one.
        """
        init = self.inits.get(name)
        if init is None:
            hint = suggestion(name, self.inits) if self.inits else "nothing is registered yet"
            raise Missing(f"no initialization is named {name!r}; {hint}")
        return init

    def seek(self, reference: Reference) -> Facts | None:
        """Return the version that a reference means, or None: `find` without the text, which takes long."""
        init = self.inits.get(reference.name)
        if init is None:
            return None
        if reference.alias is not None:
            meant = init.aliases.get(reference.alias)
        else:
            meant = init.default if reference.version is None else reference.version
        return None if meant is None else init.find(meant)

    def find(self, reference: Reference) -> Facts:
        """Return the version that a reference means.

        Raises:
            Missing: there is no such name, alias or version; the text names the nearest ones.
        """
        facts = self.seek(reference)
        if facts is not None:
            return facts
        init = self.init(reference.name)
        version = init.default if reference.version is None else reference.version
        if reference.alias is not None:
            if reference.alias not in init.aliases:
                hint = suggestion(reference.alias, init.aliases) if init.aliases else "it has no alias"
                raise Missing(f"{reference.name!r} has no alias {reference.alias!r}; {hint}")
            version = init.aliases[reference.alias]
        newest = init.versions[0].version
        raise Missing(f"{reference.name!r} has no version {version}; the newest is {newest}")

    def moved(self, newer: Catalog, resident: set[str]) -> Catalog:
        """Return the newer catalog; an alias of a version that is not at hand stays where it was.

        `resident` holds the references of versions whose files are verified and on disk.
        """
        return Catalog({name: self._settle(init, resident) for name, init in newer.inits.items()})

    def _settle(self, newer: Init, resident: set[str]) -> Init:
        older = self.inits.get(newer.name)

        def settle(wanted: int, before: int | None) -> int:
            at_hand = f"{newer.name}/{wanted}" in resident
            kept = before is not None and f"{newer.name}/{before}" in resident
            return before if before is not None and kept and not at_hand else wanted

        aliases = {
            alias: settle(wanted, older.aliases.get(alias) if older else None)
            for alias, wanted in newer.aliases.items()
        }
        default = settle(newer.default, older.default if older else None)
        if (aliases, default) == (dict(newer.aliases), newer.default):
            return newer
        return Init(newer.name, newer.versions, aliases, default)

    def to_json(self) -> dict[str, Any]:
        """Return the catalog as a JSON value."""
        return {"schema_version": 1, "inits": [_init_json(init) for init in self.inits.values()]}

    @classmethod
    def from_json(cls, value: Any) -> Catalog:
        """Read what `to_json` gave.

        Raises:
            ValueError: the value is of another form or version.
        """
        try:
            if value["schema_version"] != 1:
                raise ValueError(f"catalog version {value['schema_version']!r}, expected 1")
            inits = [
                Init(
                    item["name"],
                    tuple(Facts(**facts) for facts in item["versions"]),
                    item["aliases"],
                    item["default"],
                )
                for item in value["inits"]
            ]
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a catalog: {error}") from error
        return cls({init.name: init for init in inits})


def _init_json(init: Init) -> dict[str, Any]:
    """Return a name as a JSON value; `dataclasses.asdict` copies, which takes seconds for many."""
    return {
        "name": init.name,
        "versions": [vars(facts) for facts in init.versions],
        "aliases": dict(init.aliases),
        "default": init.default,
    }
