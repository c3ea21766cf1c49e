"""A shard of a zoo: the weights of some fits in one safetensors file that verifies itself.

Tensors: ``deltas`` ``(n, size)`` float32, the fits minus the base; ``losses`` and ``start_losses`` ``(n,)``,
each fit's support loss in the end and that of the base; ``metric`` ``(n,)``; ``condition.<kind>``
``(n, ...)``. The header has one metadata key, whose canonical JSON says what the shard belongs to and names
the fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from hypernets.generator.flat import FlatLayout
from hypernets.generator.members import Members
from metainit.card import Record, canonical_json
from metainit.checkpoint import write_atomically
from metainit.domains.base import Split
from metainit.errors import CheckpointError, DataError, DigestError

FOLDER = "shards"
METADATA_KEY = "metainit.zoo"
CONDITION = "condition."
MAX_SHARD_BYTES = 8 << 30
MAX_FITS = 1_000_000
MAX_HEADER_CHARACTERS = 64 << 20


class Belonging(Record):
    """What the shards of one zoo have in common.

    `key`: the digest of what the fits follow from (recipe, data). `base`: the digest of the base's card.
    `tensors`: names and shapes of what the fits moved, in the order of the deltas.
    """

    key: str
    base: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...] = Field(max_length=100_000)

    @property
    def layout(self) -> FlatLayout:
        """How the deltas lie."""
        return FlatLayout(tuple(name for name, _ in self.tensors), tuple(shape for _, shape in self.tensors))

    @classmethod
    def of(cls, key: str, base: str, layout: FlatLayout) -> Belonging:
        """Return what shards of a layout belong to."""
        return cls(key=key, base=base, tensors=tuple(zip(layout.names, layout.shapes, strict=True)))


class _Header(Record):
    """What stands in the metadata of a shard."""

    schema_version: Literal[1] = 1
    belonging: Belonging
    split: Split
    number: int = Field(ge=0)
    index: int | None = Field(default=None, ge=0)
    ids: tuple[str, ...] = Field(max_length=MAX_FITS)
    texts: tuple[str, ...] = Field(default=(), max_length=MAX_FITS)
    failed: dict[str, str] = Field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True)
class Shard:
    """Fits of one split that began from one base.

    `failed`: the tasks whose fit left the finite numbers, and how; they have no weights. `index`: how many
    shards of the split come before it, where that is known.

    Raises:
        DataError: the numbers differ, or something is not finite.
    """

    split: Split
    number: int
    members: Members
    start_losses: Tensor
    metric: Tensor
    failed: Mapping[str, str] = field(default_factory=dict)
    index: int | None = None

    def __post_init__(self) -> None:
        """Check the shapes, and that the fits can be learned from."""
        members = self.members
        numbers = {"deltas": members.deltas, "losses": members.losses, "metric": self.metric}
        numbers["start_losses"] = self.start_losses
        if bad := sorted(k for k, v in numbers.items() if not bool(torch.isfinite(v).all())):
            raise DataError(f"shard {self.number}: not finite: {', '.join(bad)}; name such fits in `failed`")
        if len(self.metric) != len(members) or len(self.start_losses) != len(members):
            raise DataError(
                f"shard {self.number}: expected a metric and a first loss for each of {len(members)} fits, "
                f"got {len(self.metric)} and {len(self.start_losses)}"
            )


def shard_file(number: int) -> str:
    """Return the place of a shard in its zoo.

    Example:
        >>> shard_file(3)
        'shards/00003.safetensors'
    """
    return f"{FOLDER}/{number:05d}.safetensors"


def shard_bytes(shard: Shard, belonging: Belonging) -> bytes:
    """Return a shard as bytes; the same shard gives the same bytes.

    Raises:
        DataError: its deltas are not of the layout.
    """
    members = shard.members
    if members.deltas.dim() != 2 or members.deltas.shape[1] != belonging.layout.size:
        raise DataError(
            f"shard {shard.number}: expected deltas (fits, {belonging.layout.size}), got "
            f"{tuple(members.deltas.shape)}: they are of another network"
        )
    tensors = {
        "deltas": members.deltas.float(),
        "losses": members.losses.float(),
        "start_losses": shard.start_losses.float(),
        "metric": shard.metric.float(),
        **{CONDITION + kind: value for kind, value in members.conditions.items()},
    }
    plain = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    header = _Header(
        belonging=belonging,
        split=shard.split,
        number=shard.number,
        index=shard.index,
        ids=members.ids,
        texts=members.texts,
        failed=dict(shard.failed),
    )
    signed = header.model_copy(update={"digest": _digest(plain, header)})
    return safetensors.torch.save(
        plain, metadata={METADATA_KEY: canonical_json(signed.model_dump(mode="json"))}
    )


def write_shard(folder: Path, shard: Shard, belonging: Belonging) -> Path:
    """Write a shard into the folder of a zoo, atomically, and return its file.

    Raises:
        DataError: its deltas are not of the layout.
        CheckpointError: it cannot be written.
    """
    path = folder / shard_file(shard.number)
    write_atomically(path, shard_bytes(shard, belonging))
    return path


def read_shard(folder: Path, number: int, belonging: Belonging) -> Shard:
    """Read and verify one shard of a zoo.

    Raises:
        CheckpointError: it is missing, damaged, too large, or of an unknown version; the text says how to
            make it anew.
        DataError: it belongs to another zoo: other fits, another base, or another network.
    """
    path = folder / shard_file(number)
    anew = f"delete it and run `metainit zoo build` with --out {folder}: only what is missing is fitted again"
    try:
        if path.stat().st_size > MAX_SHARD_BYTES:
            raise CheckpointError(f"{path} has more than {MAX_SHARD_BYTES} bytes; it is no shard: {anew}")
        with safetensors.safe_open(path, framework="pt") as stream:
            text = (stream.metadata() or {}).get(METADATA_KEY, "")
            if len(text) > MAX_HEADER_CHARACTERS:
                raise CheckpointError(f"{path} has a header of {len(text)} characters; {anew}")
            # Copies: what is read from the file itself would change, or be lost, with it.
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}
        header = _Header.model_validate_json(text)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: run `metainit zoo build` with --out {folder}, which fits only what is "
            "missing"
        ) from error
    except (OSError, SafetensorError, ValidationError) as error:
        raise CheckpointError(f"{path} is damaged or no shard of this version ({error}); {anew}") from error
    if _digest(tensors, header) != header.digest:
        raise DigestError(f"{path} was changed after it was written; {anew}")
    _require_same(path, header.belonging, belonging)
    if header.number != number:
        raise DataError(f"{path} is shard {header.number}, expected {number}; {anew}")
    conditions = {k.removeprefix(CONDITION): v for k, v in tensors.items() if k.startswith(CONDITION)}
    try:
        members = Members(tensors["deltas"], conditions, tensors["losses"], header.ids, header.texts)
        rest = (tensors["start_losses"], tensors["metric"], header.failed, header.index)
        shard = Shard(header.split, number, members, *rest)
    except KeyError as error:
        raise CheckpointError(f"{path} holds no tensor {error}; {anew}") from error
    if members.deltas.shape[1:] != (belonging.layout.size,):
        raise DataError(f"{path} has deltas {tuple(members.deltas.shape)}, expected {belonging.layout.size}")
    return shard


def _require_same(path: Path, found: Belonging, expected: Belonging) -> None:
    """Raise where a shard is of another zoo; the text says in what it differs."""
    if found.tensors != expected.tensors:
        sizes = f"{found.layout.size} numbers, here {expected.layout.size}"
        raise DataError(
            f"{path} holds fits of another network ({sizes}): one zoo has one network; choose another folder"
        )
    if found.base != expected.base:
        raise DataError(
            f"{path} holds fits that began from another base ({found.base[:12]}…, here "
            f"{expected.base[:12]}…): one zoo has one base; choose another folder"
        )
    if found.key != expected.key:
        raise DataError(
            f"{path} holds fits of another recipe, or of other data; choose another folder, or remove that "
            "one"
        )


def _digest(tensors: Mapping[str, Tensor], header: _Header) -> str:
    """Return the SHA-256 of the header without its digest and of every tensor's name, type and bytes."""
    # Shards of earlier versions have no index, and their digest knows of none.
    without = {"digest"} if header.index is not None else {"digest", "index"}
    unsigned = header.model_dump(mode="json", exclude=without) | {"digest": ""}
    total = hashlib.sha256(canonical_json(unsigned).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
