"""One version of a registered name, and the tags that describe it without its artifacts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metainit.bounded import MAX_EVIDENCE_BYTES
from metainit.errors import RegistryError
from metainit.transfer import file_sha256
from pipelines.tags import TAG, TAG_SCHEMA, read_tags

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from metainit.card import Card

EVIDENCE = "evidence.json"
PLACEHOLDER = TAG + "placeholder"
"""Marks a version that stands for a deleted one while a back-up is restored."""


@dataclass(frozen=True)
class Version:
    """One version of a name: what a list shows, without its artifacts.

    `sha256` and `size` are those of the checkpoint file; `headline` is the evidence in one line;
    `created` is in seconds since 1970, by the store's clock.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    sha256: str
    size: int
    kind: str
    method: str
    network: str | None
    headline: dict[str, Any] | None
    run_id: str | None
    tags: dict[str, str] = field(default_factory=dict)
    created: float = 0.0

    @property
    def reference(self) -> str:
        """The reference that names this version for ever: ``name/version``."""
        return f"{self.name}/{self.version}"


def read_evidence(folder: Path) -> dict[str, Any] | None:
    """Return the evidence that lies in a version's folder, or None where there is none.

    Raises:
        RegistryError: the file is too large, or not a JSON object.
    """
    file = folder / EVIDENCE
    if not file.is_file():
        return None
    if file.stat().st_size > MAX_EVIDENCE_BYTES:
        raise RegistryError(f"{file} has more than {MAX_EVIDENCE_BYTES} bytes; measure fewer tasks")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{file} is not valid JSON ({error}); measure again") from error
    if not isinstance(value, dict):
        raise RegistryError(f"{file} holds a JSON {type(value).__name__}, expected an object")
    return value


def describe(file: Path, card: Card, evidence: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the tags of a version: what a list shows, and what the gate compares."""
    fingerprint = (evidence or {}).get("data_fingerprint") or card.provenance.data.fingerprint
    headline = (evidence or {}).get("headline")
    tags = {
        "tag_schema": str(TAG_SCHEMA),
        "sha256": file_sha256(file),
        "size": str(file.stat().st_size),
        "kind": card.kind,
        "method": card.method.name,
        "network": card.network.name if card.network else "",
        "headline": json.dumps(headline, sort_keys=True) if headline else "",
        "data_fingerprint": str(fingerprint),
        "card": card.digest,
    }
    return {TAG + key: value for key, value in tags.items() if value}


@dataclass(frozen=True)
class Damaged:
    """A version whose tags cannot be read, and why."""

    name: str
    version: int
    reason: str

    @property
    def reference(self) -> str:
        """The reference that names this version: ``name/version``."""
        return f"{self.name}/{self.version}"


def from_entity(entity: ModelVersion, aliases: Mapping[str, int]) -> Version:
    """Read a version back from MLflow; `aliases` are those of its name.

    Raises:
        RegistryError: the tags are not ones that `describe` writes.
    """
    tags = {str(key): str(value) for key, value in entity.tags.items()}
    number = int(entity.version)
    said = read_tags(f"{entity.name}/{number}", tags)
    return Version(
        name=entity.name,
        version=number,
        aliases=tuple(sorted(alias for alias, at in aliases.items() if at == number)),
        sha256=said.sha256,
        size=said.size,
        kind=said.kind,
        method=said.method,
        network=said.network,
        headline=said.headline,
        run_id=entity.run_id or None,
        tags=tags,
        created=(entity.creation_timestamp or 0) / 1000,
    )


def readable(
    entities: Iterable[ModelVersion], aliases: Mapping[str, int]
) -> tuple[list[Version], list[Damaged]]:
    """Divide what MLflow holds into versions, newest first, and those whose tags are damaged.

    A version without any tag of metainit's is somebody else's and in neither list.
    """
    versions: list[Version] = []
    damaged: list[Damaged] = []
    for entity in entities:
        if not any(key.startswith(TAG) for key in entity.tags) or PLACEHOLDER in entity.tags:
            continue
        try:
            versions.append(from_entity(entity, aliases))
        except RegistryError as error:
            damaged.append(Damaged(entity.name, int(entity.version), str(error)))
    return sorted(versions, key=lambda v: -v.version), sorted(damaged, key=lambda d: -d.version)
