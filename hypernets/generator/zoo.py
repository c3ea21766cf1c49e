"""A zoo: a data set of trained weights that began from one base, in a folder that verifies itself.

``zoo.json`` (what is in it, which fits are left out and why), ``base.safetensors`` (the checkpoint where all
fits began) and ``shards/00000.safetensors``, ... The manifest is written last: a folder without one is not
finished.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from hypernets.generator.culling import loss_limit, repeated_ids, repeated_weights
from hypernets.generator.flat import FlatLayout
from hypernets.generator.generatability import Generatability
from hypernets.generator.members import Members
from hypernets.generator.shards import FOLDER, Belonging, Shard, read_shard, shard_file, write_shard
from metainit import checkpoint as files
from metainit.bounded import read_object
from metainit.card import AdaptationRoutine, DataSource, Record, Spec, canonical_json
from metainit.checkpoint import Checkpoint, write_atomically
from metainit.domains.base import Split
from metainit.errors import CheckpointError, DataError, DigestError
from metainit.transfer import file_sha256

__all__ = ["Shard", "Zoo", "ZooManifest", "cull", "finish_zoo", "read_zoo", "write_shard"]

MANIFEST = "zoo.json"
BASE = "base.safetensors"
SCHEMA_VERSION = 1
MAX_SHARDS = 100_000
MAX_BYTES = 16 << 30
"""The most that the deltas of one split may take in memory."""
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
DIVERGED, OUTLIER, SAME_TASK, SAME_WEIGHTS = "diverged", "loss above the limit", "same task", "same weights"
DUPLICATES = (SAME_TASK, SAME_WEIGHTS)
WAYS_OUT: dict[Split, str] = {
    "train": "build it with other steps of the fits",
    "validation": "build it in the same folder with held_out.validation=32, which fits only what is missing",
    "test": "build it in the same folder with held_out.test=32, which fits only what is missing",
}


class ShardEntry(Record):
    """One shard: its digest, how many fits it has, and which of them are left out (row -> reason)."""

    split: Split
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    fits: int = Field(ge=0)
    left_out: dict[int, str] = Field(default_factory=dict)
    failed: dict[str, str] = Field(default_factory=dict)


class Count(Record):
    """How many fits of a split were made, how many of them are members, and why the others are not."""

    fits: int
    members: int
    excluded: dict[str, int] = Field(default_factory=dict)
    duplicates: dict[str, int] = Field(default_factory=dict)


class FitRoutine(Record):
    """How the fits were made: `steps` of a routine."""

    routine: AdaptationRoutine
    steps: int = Field(ge=1)


class ZooManifest(Record):
    """What is in a zoo.

    `data` are those of the fits; `base` and `prior` the card's digest and the name of where they began.
    `limit`: the loss above which a fit of the train split is left out. Held-out fits are left out only where
    they diverged or are there twice, since hard tasks count. A number of a shard is its place in `shards`.
    """

    schema_version: Literal[1] = 1
    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    prior: str
    network: Spec
    domain: Spec
    data: DataSource
    metric: str
    fit: FitRoutine
    belonging: Belonging
    recipe: dict[str, Any] = Field(default_factory=dict)
    code_version: str = ""
    limit: float | None = None
    shards: tuple[ShardEntry, ...] = Field(max_length=MAX_SHARDS)
    generatability: Generatability | None = None

    @property
    def base(self) -> str:
        """The digest of the base's card."""
        return self.belonging.base

    def count(self, split: Split) -> Count:
        """Return how many fits of a split there are, and why some are left out."""
        entries = [entry for entry in self.shards if entry.split == split]
        reasons = Counter(reason for entry in entries for reason in entry.left_out.values())
        failed = sum(len(entry.failed) for entry in entries)
        if failed:
            reasons[DIVERGED] += failed
        fits = sum(entry.fits for entry in entries) + failed
        return Count(
            fits=fits,
            members=fits - sum(reasons.values()),
            excluded={r: n for r, n in sorted(reasons.items()) if r not in DUPLICATES},
            duplicates={r: n for r, n in sorted(reasons.items()) if r in DUPLICATES},
        )


@dataclass(frozen=True)
class Zoo:
    """A verified zoo: its manifest, its base, and its members.

    Example:
        >>> zoo = read_zoo('zoos/digits')                                        # doctest: +SKIP
        >>> zoo.members('train').deltas.shape                                    # doctest: +SKIP
        torch.Size([2000, 697])
    """

    folder: Path
    manifest: ZooManifest
    base: Checkpoint

    @property
    def layout(self) -> FlatLayout:
        """Names and shapes of what the fits moved, in the order of the deltas."""
        return self.manifest.belonging.layout

    @cached_property
    def base_vector(self) -> Tensor:
        """The base as a vector ``(size,)``, of what the fits moved."""
        return self.layout.flatten({name: self.base.weights[name] for name in self.layout.names})

    def members(self, split: Split = "train") -> Members:
        """Return the members of a split, in the order of the shards; those that are left out are not there.

        Raises:
            CheckpointError: a shard is damaged or missing; the text names it and says how to make it anew.
            DataError: the split has no member, or more than the memory should hold.
        """
        manifest = self.manifest
        expected = manifest.count(split).members * self.layout.size * 4
        if expected > MAX_BYTES:
            raise DataError(
                f"the {split} split of {manifest.name!r} has {expected >> 20} MiB of weights, at most "
                f"{MAX_BYTES >> 20} are read: fit fewer tasks, or fewer tensors (adapts)"
            )
        numbers = [n for n, entry in enumerate(manifest.shards) if entry.split == split]
        parts = [_kept(self._shard(n).members, manifest.shards[n].left_out) for n in numbers]
        if not any(len(part) for part in parts):
            raise DataError(
                f"the {split} split of the zoo {manifest.name!r} has no member: {WAYS_OUT[split]}"
            )
        return together(parts)

    def metric(self, split: Split = "train") -> Tensor:
        """Return the headline metric of each member of a split, ``(n,)``."""
        found = []
        for number, entry in enumerate(self.manifest.shards):
            if entry.split == split:
                shard = self._shard(number)
                found.append(shard.metric[_rows(len(shard.members), entry.left_out)])
        return torch.cat(found) if found else torch.zeros(0)

    def _shard(self, number: int) -> Shard:
        return read_shard(self.folder, number, self.manifest.belonging)


def cull(shards: Sequence[Shard], deviations: float | None) -> tuple[list[dict[int, str]], float | None]:
    """Return for each shard the rows that are left out, with the reason, and the limit of the losses.

    A task that is there twice stays where it is held out: nothing that is reported has been learned from.

    Args:
        shards: of all splits.
        deviations: how many robust deviations above the median a training loss may be; None: any.

    Raises:
        DataError: no fit of the train split is left.
    """
    left_out: list[dict[int, str]] = [{} for _ in shards]
    held_out_first = sorted(range(len(shards)), key=lambda n: (shards[n].split == "train", n))
    places = [(n, row) for n in held_out_first for row in range(len(shards[n].members))]
    ids = [shards[n].members.ids[row] for n, row in places]
    deltas = torch.cat([shards[n].members.deltas for n in held_out_first])
    twice = repeated_weights(deltas).tolist()
    for (n, row), same_task, same_weights in zip(places, repeated_ids(ids), twice, strict=True):
        if same_task or same_weights:
            left_out[n][row] = SAME_TASK if same_task else SAME_WEIGHTS
    trained = [n for n, shard in enumerate(shards) if shard.split == "train"]
    losses = [float(v) for n in trained for v in _kept(shards[n].members, left_out[n]).losses]
    if not losses:
        raise DataError(
            "no fit of the train split is left: all diverged, or none has moved; choose another step size of "
            "the fits"
        )
    if deviations is None:
        return left_out, None
    start = torch.cat([shards[n].start_losses for n in trained]).double().median()
    limit = loss_limit(torch.tensor(losses, dtype=torch.float64), deviations, float(start))
    for n in trained:
        for row, loss in enumerate(shards[n].members.losses.tolist()):
            if loss > limit:
                left_out[n].setdefault(row, OUTLIER)
    return left_out, limit


def finish_zoo(folder: Path, manifest: ZooManifest, deviations: float | None) -> ZooManifest:
    """Decide which fits are members, and write the manifest into a folder that has all of its shards.

    Args:
        folder: with the base and the shards.
        manifest: what is in it; its `shards` say only how many there are.
        deviations: see `cull`.

    Raises:
        CheckpointError: a shard is damaged or missing, or the manifest cannot be written.
        DataError: shards belong to different zoos, or no training fit is left.
    """
    count = len(manifest.shards)
    shards = [read_shard(folder, number, manifest.belonging) for number in range(count)]
    left_out, limit = cull(shards, deviations)
    entries = tuple(
        ShardEntry(
            split=shard.split,
            sha256=file_sha256(folder / shard_file(shard.number)),
            fits=len(shard.members),
            left_out=rows,
            failed=dict(shard.failed),
        )
        for shard, rows in zip(shards, left_out, strict=True)
    )
    whole = manifest.model_copy(update={"shards": entries, "limit": limit})
    text = canonical_json(whole.model_dump(mode="json"))
    write_atomically(folder / MANIFEST, text.encode())
    return whole


def read_manifest(folder: Path) -> ZooManifest:
    """Read what is in a zoo; nothing else of it is looked at.

    Raises:
        CheckpointError: there is no finished zoo, or one of an unknown version.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise CheckpointError(
            f"{folder} holds no finished zoo ({MANIFEST} is missing): run `metainit zoo build` with --out "
            f"{folder}, which goes on where it was"
        )
    try:
        value = read_object(file)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}: `metainit zoo build` with --out {folder} writes it anew, from shards that are sound"
        ) from error
    if (version := value.get("schema_version")) != SCHEMA_VERSION:
        raise CheckpointError(
            f"{file} has schema version {version!r}; this metainit reads {SCHEMA_VERSION}: upgrade metainit"
        )
    try:
        return ZooManifest.model_validate(value)
    except ValidationError as error:
        raise CheckpointError(f"{file} is not the manifest of a zoo: {error}") from error


def read_zoo(folder: str | Path) -> Zoo:
    """Open a zoo and verify every file of it.

    Raises:
        CheckpointError: it is not finished, of an unknown version, or a file is damaged or missing; the text
            names the file and says how to make only that anew.
        DataError: the base is another one, or not of the zoo's network.
    """
    path = Path(folder)
    manifest = read_manifest(path)
    base = files.load(path / BASE)
    if base.card.digest != manifest.base:
        raise DataError(
            f"{path / BASE} is another base than the fits began from ({base.card.digest[:12]}…, expected "
            f"{manifest.base[:12]}…): one zoo has one base; fetch the zoo again"
        )
    _require_shapes(path, base, manifest.belonging.layout)
    if damaged := damaged_shards(path, manifest):
        gone = [name for name in damaged if not (path / FOLDER / name).is_file()]
        changed = [name for name in damaged if name not in gone]
        said = [f"missing: {', '.join(gone[:5])}"] if gone else []
        said += [f"changed after they were written: {', '.join(changed[:5])}"] if changed else []
        raise DigestError(
            f"{path}: {len(damaged)} of {len(manifest.shards)} shards are damaged ({'; '.join(said)}); the "
            f"others are sound. {'Delete those that were changed, and run' if changed else 'Run'} `metainit "
            f"zoo build {manifest.recipe.get('name', 'RECIPE')} --out {path}`: only what is missing is fitted"
        )
    return Zoo(path, manifest, base)


def damaged_shards(path: Path, manifest: ZooManifest) -> list[str]:
    """Return the names of the shards that are missing, or not those of the manifest."""
    shards = [path / shard_file(number) for number in range(len(manifest.shards))]
    return [
        file.name
        for file, entry in zip(shards, manifest.shards, strict=True)
        if not file.is_file() or file_sha256(file) != entry.sha256
    ]


def together(parts: Sequence[Members]) -> Members:
    """Return the members of all parts, which have the same conditions."""
    kinds = parts[0].conditions
    return Members(
        torch.cat([part.deltas for part in parts]),
        {kind: torch.cat([part.conditions[kind] for part in parts]) for kind in kinds},
        torch.cat([part.losses for part in parts]),
        tuple(name for part in parts for name in part.ids),
        tuple(text for part in parts for text in part.texts),
    )


def _rows(count: int, left_out: Mapping[int, str]) -> Tensor:
    return torch.tensor([row for row in range(count) if row not in left_out], dtype=torch.int64)


def _kept(members: Members, left_out: Mapping[int, str]) -> Members:
    return members[_rows(len(members), left_out)]


def _require_shapes(path: Path, base: Checkpoint, layout: FlatLayout) -> None:
    shapes = {name: tuple(value.shape) for name, value in base.weights.items()}
    wrong = [
        name for name, shape in zip(layout.names, layout.shapes, strict=True) if shapes.get(name) != shape
    ]
    if wrong:
        raise DataError(f"{path / BASE} has no such tensors as the fits: {', '.join(wrong[:5])}")
