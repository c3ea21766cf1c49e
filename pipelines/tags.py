"""The tags of a registered version: a versioned schema, checked whenever a version is read.

Anybody with access to MLflow can change a tag, so what is read is validated. A version whose tags are
damaged is named with the reason and left out; the others of its name are not its concern.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from metainit.errors import RegistryError

TAG = "metainit."
TAG_SCHEMA = 1
"""Rises when a tag changes its meaning; a new optional tag does not raise it."""
KIND = "^[a-z0-9][a-z0-9_.-]{0,99}$"
"""What a kind may be: it goes into headers and file names."""


class VersionTags(BaseModel):
    """What the tags ``metainit.*`` of one version say.

    Example:
        >>> sorted(VersionTags.model_fields)[:3]
        ['card', 'data_fingerprint', 'gate']
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    tag_schema: int = Field(1, ge=1, description="version of this table; absent means 1")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the checkpoint file")
    size: int = Field(ge=0, description="size of the checkpoint file in bytes")
    kind: str = Field(pattern=KIND, description="kind of initialization, as on the card")
    method: str = Field(min_length=1, description="name of the method, as on the card")
    network: str | None = Field(None, description="name of the network; absent for any network")
    headline: dict[str, Any] | None = Field(None, description="the evidence in a few numbers, JSON")
    data_fingerprint: str = Field("", description="fingerprint of the data that the evidence is of")
    card: str = Field("", pattern="^([0-9a-f]{64})?$", description="digest of card and tensors")
    gate: dict[str, Any] | None = Field(
        None,
        description="the gate's decision: alias, reason, gain, low, high, against, by, at, evidence; JSON",
    )
    restored: dict[str, Any] | None = Field(
        None, description="of a restored version: its run, its time and the store it was backed up from; JSON"
    )

    @field_validator("headline", "gate", "restored", mode="before")
    @classmethod
    def _parsed(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("tag_schema")
    @classmethod
    def _known(cls, value: int) -> int:
        if value > TAG_SCHEMA:
            raise ValueError(
                f"tags of version {value} are newer than this metainit, which reads {TAG_SCHEMA}"
            )
        return value


NAME_TAGS: Mapping[str, str] = {
    "format": "marks a name of metainit's; names without it are left alone",
    "event.<time>.<token>": "one promotion: who, when, from and to which version, why, what evidence; JSON",
    "removed": "when a version was last deleted, in seconds since 1970",
    "discarding.<version>": "uri and sha256 of the artifacts of a version whose deletion is under way; JSON",
}
"""Tags of a name, below ``metainit.``, and what they mean."""


def read_tags(reference: str, tags: Mapping[str, str]) -> VersionTags:
    """Validate the tags of a version.

    Raises:
        RegistryError: a tag is missing, malformed or of a newer schema; the text names version and tag.

    Example:
        >>> read_tags('faces/3', {'metainit.size': 'large'})
        Traceback (most recent call last):
        ...
        metainit.errors.RegistryError: the tags of faces/3 are damaged: metainit.sha256: Field required; \
metainit.size: Input should be a valid integer, unable to parse string as an integer; metainit.kind: Field \
required; metainit.method: Field required; put them back in MLflow, or delete that version
    """
    ours = {key.removeprefix(TAG): value for key, value in tags.items() if key.startswith(TAG)}
    try:
        return VersionTags.model_validate(ours)
    except ValidationError as error:
        wrong = "; ".join(f"{TAG}{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise RegistryError(
            f"the tags of {reference} are damaged: {wrong}; put them back in MLflow, or delete that version"
        ) from error
