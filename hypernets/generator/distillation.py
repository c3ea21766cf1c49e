"""A student that draws in one step what the generator draws in many.

A denoiser that is asked once, at the last time, gives the mean of all samples: it is the best guess from
noise alone. A student of pairs learns the sampler's own map from noise to sample, and keeps the spread.

Source: Luhman & Luhman 2021, "Knowledge Distillation in Iterative Generative Models for Improved Sampling
Speed", arXiv:2101.02388, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hypernets.generator.conditions import Conditions
from hypernets.generator.config import GeneratorTrainingConfig
from hypernets.generator.model import Generator
from hypernets.generator.sampling import noise_of
from metainit.domains.seeding import generator_of, seed_of

AT_ONCE = 256


@dataclass(frozen=True)
class Pairs:
    """Noise (n, d), what the teacher makes of it in many steps (n, d), and under which conditions."""

    noise: Tensor
    samples: Tensor
    conditions: Conditions

    @property
    def count(self) -> int:
        """How many pairs there are."""
        return len(self.noise)

    def __getitem__(self, which: Tensor) -> Pairs:
        return Pairs(self.noise[which], self.samples[which], self.conditions[which])


@torch.no_grad()
def teach(generator: Generator, known: Conditions, config: GeneratorTrainingConfig, seed: int) -> Pairs:
    """Return pairs that follow from the generator, the conditions of its members, and the seed.

    Conditions are hidden as often as in training, so that the student knows of that, too.
    """
    drawn, count = generator_of(seed, "pairs"), config.pairs
    rows = torch.arange(count, device=generator.device) % len(known)
    keep = {
        kind: (torch.rand(count, generator=drawn) >= config.dropout).to(generator.device)
        for kind in known.present
    }
    conditions = known[rows].hidden(keep)
    noise = noise_of([seed_of(seed, "pair", i) for i in range(count)], len(generator.columns))
    noise = noise.to(generator.device)
    # Always in the same parts: a run that goes on makes the same pairs, bit by bit.
    parts = [slice(first, first + AT_ONCE) for first in range(0, count, AT_ONCE)]
    samples = [generator.residuals(noise[p], conditions[p], config.teacher_steps) for p in parts]
    return Pairs(noise, torch.cat(samples), conditions)


def student_loss(generator: Generator, pairs: Pairs) -> Tensor:
    """Return the mean squared error of the student's samples for each pair, (B)."""
    assert generator.student is not None
    with torch.no_grad():
        condition = generator.conditioner(pairs.conditions)
    drawn = generator.process.from_noise(generator.student, pairs.noise, condition)
    return (drawn - pairs.samples).square().mean(-1)
