"""Restoring a back-up into a registry: the same bytes under the same numbers, aliases and history.

References such as ``faces/3`` are written into cards and scripts, so a version comes back under its own
number. MLflow counts; where a number of the back-up's registry had been deleted, a version is made and
deleted in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metainit.card import Card
from metainit.checkpoint import load
from metainit.errors import RegistryError
from pipelines.artifacts import run_for, upload
from pipelines.backup import FILES, BackedName, BackedVersion, Note, read_backup
from pipelines.connection import shown
from pipelines.flavour import CHECKPOINT, MLMODEL, mlmodel
from pipelines.lock import locked
from pipelines.registry import Registry
from pipelines.tags import TAG
from pipelines.version import PLACEHOLDER, Version


@dataclass(frozen=True)
class Restored:
    """What a restore did for one name.

    `kept` are aliases that meant another version than in the back-up and were left as they are.
    """

    name: str
    restored: tuple[int, ...]
    present: tuple[int, ...]
    aliases: Mapping[str, int]
    kept: Mapping[str, int]


def restore(
    registry: Registry, folder: Path, names: Sequence[str] | None = None, note: Note | None = None
) -> list[Restored]:
    """Bring the names of a back-up (all, or some) into a registry; called again, only what is missing.

    The whole back-up is verified, and everything that would be overwritten is looked for, before anything
    is changed.

    Raises:
        RegistryError: the back-up is damaged, the registry holds other versions under these numbers, it
            cannot be reached, or a lock is held.
    """
    say = note or (lambda text: None)
    backed = [(name, versions) for name, versions in read_backup(folder) if not names or name.name in names]
    missing = sorted(set(names or ()) - {name.name for name, _ in backed})
    if missing:
        raise RegistryError(f"{folder} holds no back-up of {', '.join(missing)}")
    for name, versions in backed:
        _check(registry, name.name, versions)
    return [_restore(registry, folder / name.name, name, versions, say) for name, versions in backed]


def _present(registry: Registry, name: str) -> dict[int, Version]:
    if name not in registry.names():
        return {}
    return {version.version: version for version in registry.versions(name)}


def _check(registry: Registry, name: str, versions: Sequence[BackedVersion]) -> dict[int, Version]:
    """Return what is there already of a name, which has to be what the back-up holds."""
    present = _present(registry, name)
    for backed in versions:
        here = present.get(backed.version)
        if here is not None and here.sha256 != backed.tags[TAG + "sha256"]:
            raise RegistryError(
                f"{registry.shown} holds another version {name}/{backed.version} than the back-up; nothing "
                "was changed: restore into another registry"
            )
    numbers = [backed.version for backed in versions if backed.version not in present]
    if numbers and present and min(numbers) < max(present):
        raise RegistryError(
            f"{name}/{min(numbers)} cannot be restored under its number, since {registry.shown} already "
            f"holds {name}/{max(present)}; nothing was changed: restore into another registry"
        )
    return present


def _restore(
    registry: Registry, folder: Path, name: BackedName, versions: Sequence[BackedVersion], say: Note
) -> Restored:
    registry.ensure(name.name)
    _sweep(registry, name.name, {backed.version for backed in versions})
    restored = []
    for backed in sorted(versions, key=lambda one: one.version):
        present = _check(registry, name.name, versions)
        if backed.version in present:
            continue
        say(f"restoring {name.name}/{backed.version}")
        _put(registry, folder / "versions" / str(backed.version) / FILES, name.name, backed)
        restored.append(backed.version)
    with locked(registry.connection, name.name) as lease:
        _history(registry, name)
        here = registry.aliases(name.name)
        kept = {alias: here[alias] for alias, at in name.aliases.items() if here.get(alias, at) != at}
        for alias, at in name.aliases.items():
            if alias not in here:
                lease.check()
                registry.point(name.name, alias, at)
    present_before = tuple(v.version for v in versions if v.version not in restored)
    return Restored(name.name, tuple(restored), present_before, registry.aliases(name.name), kept)


def _put(registry: Registry, files: Path, name: str, backed: BackedVersion) -> None:
    """Upload one version and register it under its number.

    Until its number is known to be right and its tags are complete it is a placeholder, which nobody serves;
    one that an interrupted restore left is completed.
    """
    if not _is_placeholder(registry, name, backed.version):
        card = load(files / CHECKPOINT).card
        where = f"initializations/{name}/{backed.tags[TAG + 'sha256'][:16]}"
        with run_for(registry.connection, name, None) as run:
            source = upload(registry.connection, run, files, where, _mlmodel(files, card))
            _count_to(registry, name, backed.version, source, run)
    origin = {"run": backed.run, "created": backed.created, "store": shown(backed.store)}
    tags = {**backed.tags, TAG + "restored": json.dumps(origin, sort_keys=True)}
    with registry.connection.calls(f"restore {name}/{backed.version}") as client:
        for key, value in tags.items():
            client.set_model_version_tag(name, str(backed.version), key, value)
        client.delete_model_version_tag(name, str(backed.version), PLACEHOLDER)


def _count_to(registry: Registry, name: str, wanted: int, source: str, run: str) -> None:
    """Make versions of a name, and delete them again, until one has the number that is wanted."""
    number = 0
    while number < wanted:
        with registry.connection.calls(f"restore {name}/{wanted}") as client:
            made = client.create_model_version(name, source, run_id=run, tags={PLACEHOLDER: "1"})
            number = int(made.version)
            if number != wanted:
                client.delete_model_version(name, str(number))
    if number > wanted:
        raise RegistryError(
            f"{registry.shown} counts {name} from {number} on, so {name}/{wanted} cannot be restored under "
            "its number: versions were registered or deleted there; restore into another registry"
        )


def _is_placeholder(registry: Registry, name: str, number: int) -> bool:
    where = f"name = '{name}'"
    with registry.connection.calls(f"look up {name}/{number}") as client:
        found = client.search_model_versions(f"{where} AND tags.`{PLACEHOLDER}` = '1'", max_results=1000)
    return any(int(entity.version) == number for entity in found)


def _sweep(registry: Registry, name: str, wanted: set[int]) -> None:
    """Delete the placeholders of an interrupted restore that stand for versions that were deleted."""
    with registry.connection.calls(f"look for placeholders of {name!r}") as client:
        where = f"name = '{name}' AND tags.`{PLACEHOLDER}` = '1'"
        for entity in client.search_model_versions(where, max_results=1000):
            if int(entity.version) not in wanted:
                client.delete_model_version(name, entity.version)


def _mlmodel(files: Path, card: Card) -> str:
    file = files / MLMODEL
    return file.read_text(encoding="utf-8") if file.is_file() else mlmodel(card)


def _history(registry: Registry, name: BackedName) -> None:
    """Add the moves that the registry does not know."""
    known = {(event.at, event.version, event.alias) for event in registry.moves(name.name)}
    for event in name.history:
        if (event.at, event.version, event.alias) not in known:
            registry.record(name.name, event)
