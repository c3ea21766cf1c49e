"""How well a generator does on held-out fits, which it has not learned from."""

from __future__ import annotations

import torch
from torch import Tensor

from hypernets.generator.conditions import Conditions
from hypernets.generator.model import Generator
from metainit.domains.seeding import generator_of

LEAST_ROWS = 256
"""Held-out fits are repeated, each time with other noise, until there are so many."""


def mean_error(generator: Generator, deltas: Tensor, conditions: Conditions) -> dict[str, float]:
    """Return ``validation_mean_error``: the squared error of the predicted mean of held-out deltas (m, D).

    It is a part of that of the members' overall mean; there is none where no mean is predicted.
    """
    if generator.mean is None:
        return {}
    values = generator.standardized(deltas)
    left = values - generator.predicted_mean(conditions)
    return {"validation_mean_error": float(left.square().mean() / values.square().mean())}


def denoising_loss(
    generator: Generator, deltas: Tensor, conditions: Conditions, seed: int
) -> dict[str, float]:
    """Return ``validation_loss``: that of the denoiser on held-out deltas (m, D), of the same noise."""
    values, process = generator.standardized(deltas), generator.process
    left = values - generator.predicted_mean(conditions)
    drawn = generator_of(seed, "validation")
    rows = torch.arange(max(LEAST_ROWS, len(values)), device=values.device) % len(values)
    time = process.draw(len(rows), drawn).to(values.device)
    noise = torch.randn(len(rows), values.shape[-1], generator=drawn).to(values.device)
    clean = generator.residual(left)[rows]
    condition = generator.conditioner(conditions)[rows]
    predicted = process.predict(generator.denoiser, process.noisy(clean, noise, time), time, condition)
    return {"validation_loss": float((predicted - process.target(clean, noise, time)).square().mean())}
