"""Zoos whose distribution is known: Gaussian weights whose mean is linear in the condition."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hypernets.generator.config import ConditionConfig, GeneratorConfig
from hypernets.generator.description import Layers
from hypernets.generator.flat import FlatLayout
from hypernets.generator.members import Members
from hypernets.generator.model import Generator

LAYOUT = FlatLayout(("0.weight", "0.bias", "1.weight"), ((2, 2), (2,), (1, 2)))
LAYERS: Layers = (("0.weight", "0.bias"), ("1.weight",))
CONDITIONS = ConditionConfig(classes=3, observation=(2,))
SMALL = {"width": 32, "depth": 1, "embedding": 16, "mean_width": 16, "mean_depth": 1, "sketch": 8}


@dataclass(frozen=True)
class Gaussian:
    """Deltas 0.01 (a_class + o B + z C), z and o of unit variance."""

    classes: Tensor
    seen: Tensor
    factor: Tensor

    def mean(self, labels: Tensor, observations: Tensor) -> Tensor:
        return 0.01 * (self.classes[labels] + observations @ self.seen)

    @property
    def covariance(self) -> Tensor:
        return 1e-4 * self.factor.T @ self.factor

    def members(self, count: int, seed: int = 0) -> Members:
        drawn = torch.Generator().manual_seed(seed)
        labels = torch.randint(3, (count,), generator=drawn)
        observations = torch.randn(count, 2, generator=drawn)
        noise = 0.01 * torch.randn(count, 3, generator=drawn) @ self.factor
        deltas = self.mean(labels, observations) + noise
        ids = tuple(str(i) for i in range(count))
        texts = tuple(("one ring", "two squares", "three stars")[c] for c in labels.tolist())
        given = {"class": labels, "observation": observations}
        return Members(deltas, given, torch.zeros(count), ids, texts)


def gaussian() -> Gaussian:
    drawn = torch.Generator().manual_seed(7)
    return Gaussian(*(torch.randn(n, 8, generator=drawn) for n in (3, 2, 3)))


def small(members: int, seed: int = 0, **changes: object) -> Generator:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GeneratorConfig.model_validate(SMALL | {"conditions": CONDITIONS} | changes)
        return Generator(config, LAYOUT, LAYERS, members)
