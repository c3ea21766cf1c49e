"""A small zoo that is made of numbers, for tests of what reads one."""

from __future__ import annotations

from pathlib import Path

import torch

from hypernets.generator.flat import FlatLayout
from hypernets.generator.members import Members
from hypernets.generator.shards import Belonging, Shard, write_shard
from hypernets.generator.zoo import BASE, FitRoutine, ShardEntry, Zoo, ZooManifest, finish_zoo, read_zoo
from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, DataSource, Method, Spec
from metainit.domains.base import Split
from metainit.domains.seeding import generator_of

LAYOUT = FlatLayout(("weight", "bias"), ((2, 3), (2,)))
ROUTINE = FitRoutine(routine=AdaptationRoutine(optimizer="adam", steps=5, step_size=0.01), steps=5)


def base_of(folder: Path, seed: int = 0) -> checkpoint.Checkpoint:
    """Write the base of a zoo."""
    drawn = torch.randn(LAYOUT.size, generator=generator_of("base", seed))
    tensors = {name: value.clone() for name, value in LAYOUT.unflatten(drawn).items()}
    card = Card(kind="prior", name="prior", method=Method(name="maml"))
    return checkpoint.save(folder / BASE, tensors, card)


def shard_of(number: int, split: Split = "train", count: int = 6, size: int = LAYOUT.size) -> Shard:
    """Return a shard of random fits of classes 0 to 2."""
    generator = generator_of("shard", number, split)
    deltas = torch.randn(count, size, generator=generator)
    classes = torch.arange(count) % 3
    conditions = {"class": classes, "observation": torch.randn(count, 4, 4, generator=generator)}
    losses = 0.01 + 0.001 * torch.rand(count, generator=generator)
    ids = tuple(f"{split}-{number}-{i}" for i in range(count))
    members = Members(deltas, conditions, losses, ids, tuple(f"class {c}" for c in classes))
    return Shard(split, number, members, torch.ones(count), 20 + torch.rand(count, generator=generator))


def manifest_of(belonging: Belonging, shards: int) -> ZooManifest:
    """Return the manifest of a zoo that has yet to be finished."""
    return ZooManifest(
        name="toy",
        prior="prior",
        network=Spec(name="linear"),
        domain=Spec(name="image"),
        data=DataSource(description="numbers", fingerprint="f" * 64),
        metric="psnr",
        fit=ROUTINE,
        belonging=belonging,
        shards=(ShardEntry(split="train", sha256="0" * 64, fits=0),) * shards,
    )


def zoo_of(folder: Path, shards: list[Shard], deviations: float | None = 6.0) -> Zoo:
    """Write a whole zoo and open it."""
    belonging = Belonging.of("key", base_of(folder).card.digest, LAYOUT)
    for shard in shards:
        write_shard(folder, shard, belonging)
    finish_zoo(folder, manifest_of(belonging, len(shards)), deviations)
    return read_zoo(folder)
