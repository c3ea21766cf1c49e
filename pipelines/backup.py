"""Back-up of names out of a registry, and restoring them into another one.

A back-up is a folder that needs neither MLflow nor a database to be read::

    NAME/name.json                 aliases, history, versions; written last, so it says that all is there
    NAME/versions/N/manifest.json  tags, and SHA-256 and size of each file; written after the files
    NAME/versions/N/files/...      the artifact folder as it is in the registry

Both directions can be interrupted and go on where they were, and neither overwrites anything: a version
that is there with other content is refused, an alias that is there stays.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metainit.checkpoint import write_atomically
from metainit.errors import CheckpointError, RegistryError
from metainit.references import NAME
from metainit.transfer import file_sha256
from pipelines.flavour import CHECKPOINT
from pipelines.history import Event
from pipelines.registry import Registry
from pipelines.tags import TAG
from pipelines.version import Version

BACKUP_SCHEMA = 1
NAME_FILE, MANIFEST, FILES = "name.json", "manifest.json", "files"
_TOLD = 5
Note = Callable[[str], None]
Model = TypeVar("Model", bound=BaseModel)


class BackedFile(BaseModel):
    """One artifact: its SHA-256 and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int = Field(ge=0)


class BackedVersion(BaseModel):
    """One version: its number, its tags, when and by which run it was made, and its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = BACKUP_SCHEMA
    version: int = Field(ge=1)
    tags: dict[str, str]
    created: float
    run: str | None
    store: str
    files: dict[str, BackedFile]


class BackedName(BaseModel):
    """One name: what its aliases mean, its versions, and its history, oldest move first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = BACKUP_SCHEMA
    name: str
    aliases: dict[str, int]
    versions: list[int]
    history: list[Event]


@dataclass(frozen=True)
class BackedUp:
    """What a back-up did for one name: versions that were copied, and those that were there already."""

    name: str
    copied: tuple[int, ...]
    present: tuple[int, ...]
    left_out: tuple[str, ...]


def back_up(
    registry: Registry, names: Sequence[str], folder: Path, note: Note | None = None
) -> list[BackedUp]:
    """Copy names with all their versions into a folder; called again, only what is new.

    Raises:
        RegistryError: a name is not registered, a version cannot be fetched, the disk is full, or the folder
            holds the back-up of another registry's version.
    """
    say = note or (lambda text: None)
    return [_back_up(registry, name, folder / name, say) for name in names]


def _back_up(registry: Registry, name: str, folder: Path, say: Note) -> BackedUp:
    versions, damaged = registry.survey(name)
    copied, present = [], []
    for version in reversed(versions):
        place = folder / "versions" / str(version.version)
        if (place / MANIFEST).is_file():
            known = _read(place / MANIFEST, BackedVersion)
            if known.tags.get(TAG + "sha256") != version.sha256:
                raise RegistryError(
                    f"{place} holds another version {version.reference} than {registry.shown} does; nothing "
                    "was overwritten: choose another folder"
                )
            present.append(version.version)
            if known.tags != version.tags:  # the gate has decided since
                _write(place / MANIFEST, known.model_copy(update={"tags": version.tags}))
            continue
        say(f"copying {version.reference}")
        _copy(registry, version, place)
        copied.append(version.version)
    numbers = sorted(v.version for v in versions)
    aliases = {alias: at for alias, at in registry.aliases(name).items() if at in numbers}
    moves = registry.moves(name)[::-1]
    _write(folder / NAME_FILE, BackedName(name=name, aliases=aliases, versions=numbers, history=moves))
    left_out = tuple(f"{one.reference}: {one.reason}" for one in damaged)
    return BackedUp(name, tuple(copied), tuple(present), left_out)


def _copy(registry: Registry, version: Version, place: Path) -> None:
    """Fetch one version, verified, beside its place and move it there."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".part-") as temporary:
            files = Path(temporary) / FILES
            registry.download(version, files)
            kept = {
                path.relative_to(files).as_posix(): BackedFile(
                    sha256=file_sha256(path), size=path.stat().st_size
                )
                for path in sorted(files.rglob("*"))
                if path.is_file()
            }
            shutil.rmtree(place, ignore_errors=True)  # one without a manifest was never finished
            place.mkdir()
            files.rename(place / FILES)
    except OSError as error:
        raise RegistryError(
            f"cannot back up {version.reference} to {place}: {error.strerror or error}; free some space and "
            "call it again: it goes on where it was"
        ) from error
    backed = BackedVersion(
        version=version.version,
        tags=version.tags,
        created=version.created,
        run=version.run_id,
        store=registry.shown,
        files=kept,
    )
    _write(place / MANIFEST, backed)


def read_backup(folder: Path) -> list[tuple[BackedName, list[BackedVersion]]]:
    """Read and verify a back-up: exactly the files of the manifests, each with the digest that it has there.

    Raises:
        RegistryError: it is no back-up, is unfinished, a file is missing, damaged or in no manifest, or a
            folder is not that of the name or number that its record says.
    """
    found = sorted(folder.glob(f"*/{NAME_FILE}"))
    if not found:
        raise RegistryError(f"{folder} holds no finished back-up; make one: metainit backup NAME -o {folder}")
    read = []
    for file in found:
        name = _read(file, BackedName)
        if name.name != file.parent.name or not re.fullmatch(NAME, name.name):
            raise RegistryError(
                f"{file} is the record of {name.name!r}, expected {file.parent.name!r} as its folder; "
                "nothing was restored: take another copy of the back-up"
            )
        places = [file.parent / "versions" / str(number) for number in name.versions]
        versions = [_read(place / MANIFEST, BackedVersion) for place in places]
        for place, number, version in zip(places, name.versions, versions, strict=True):
            if version.version != number:
                raise RegistryError(
                    f"{place / MANIFEST} is of version {version.version}, expected {number}; nothing was "
                    "restored: take another copy of the back-up"
                )
            _verify(name.name, place / FILES, version)
        read.append((name, versions))
    return read


def _verify(name: str, files: Path, version: BackedVersion) -> None:
    for relative, kept in version.files.items():
        path = (files / relative).resolve()
        if not path.is_relative_to(files.resolve()):
            raise RegistryError(
                f"the back-up of {name}/{version.version} names {relative!r}, outside its folder"
            )
        if not path.is_file() or file_sha256(path) != kept.sha256:
            raise RegistryError(
                f"{path} is missing or damaged: expected SHA-256 {kept.sha256[:16]}; nothing was restored: "
                "take another copy of the back-up"
            )
    present = {p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_symlink() or not p.is_dir()}
    if present != version.files.keys():
        odd = ", ".join(sorted(present ^ version.files.keys())[:_TOLD])
        raise RegistryError(
            f"{files} holds other files than its {MANIFEST} names: {odd}; nothing was restored: take another "
            "copy of the back-up"
        )
    linked = sorted(p.relative_to(files).as_posix() for p in files.rglob("*") if p.is_symlink())
    if linked:
        raise RegistryError(
            f"{files} holds links: {', '.join(linked[:_TOLD])}; nothing was restored: put the files there"
        )
    expected = version.tags.get(TAG + "sha256")
    if CHECKPOINT not in version.files or version.files[CHECKPOINT].sha256 != expected:
        raise RegistryError(
            f"the back-up of {name}/{version.version} does not hold the checkpoint that its tags name; "
            "nothing was restored: take another copy"
        )


def _write(path: Path, value: BaseModel) -> None:
    try:
        write_atomically(path, value.model_dump_json(indent=1).encode() + b"\n")
    except CheckpointError as error:
        raise RegistryError(str(error)) from error


def _read(path: Path, model: type[Model]) -> Model:
    try:
        value = model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise RegistryError(f"{path} cannot be read ({error}); take another copy of the back-up") from error
    schema = getattr(value, "schema_version", None)
    if schema != BACKUP_SCHEMA:
        raise RegistryError(
            f"{path} is of version {schema}, this metainit reads version {BACKUP_SCHEMA}: upgrade metainit"
        )
    return value
