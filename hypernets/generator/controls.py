r"""Controls for a generator: starts from the same members and conditions, without a generative model.

Each is fitted to members and their features, and then maps features ``(B, F)`` to deltas ``(B, D)``. Settings
(the ridge, the noise) are the caller's to choose on held-out tasks. An equally large regressor is a generator
whose training ends with its mean.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from hypernets.generator.conditions import Conditions
from metainit.domains.seeding import generator_of

Conditional = Callable[[Tensor, int], Tensor]
"""Features (B, F) of some tasks and a seed -> a delta for each, (B, D)."""


def features_of(conditions: Conditions, classes: int, examples: bool) -> Tensor:
    """Return what is known of tasks as one vector each, (B, F): what is absent is zero.

    A class is one-hot; of an observation of `examples` ``(ways, shots, ...)`` the mean of each way's shots is
    taken, and all of it is flattened.
    """
    parts = []
    for kind, value in sorted(conditions.values.items()):
        seen = functional.one_hot(value, classes).float() if kind == "class" else value.float()
        if kind == "observation" and examples:
            seen = seen.mean(2)
        flat = seen.flatten(1)
        parts.append(torch.where(conditions.present[kind][:, None], flat, torch.zeros_like(flat)))
    return torch.cat(parts, 1) if parts else torch.zeros(len(conditions), 0)


def zoo_mean(deltas: Tensor) -> Conditional:
    """Return the control that gives everyone the mean of all members (n, D)."""
    mean = deltas.mean(0)
    return lambda features, seed: mean.expand(len(features), -1)


def nearest_member(features: Tensor, deltas: Tensor) -> Conditional:
    """Return the control that gives the member whose features are nearest; among equals one is drawn."""

    def nearest(asked: Tensor, seed: int) -> Tensor:
        distances = torch.cdist(asked, features)
        ties = distances <= distances.amin(1, keepdim=True) + 1e-6
        order = torch.rand(ties.shape, generator=generator_of(seed, "nearest")).to(ties.device)
        return deltas.index_select(0, torch.where(ties, order, -1.0).argmax(1))

    return nearest


def noised_member(features: Tensor, deltas: Tensor, noise: float) -> Conditional:
    """Return the nearest member plus normal noise, as a part of each number's deviation among the members."""
    nearest, deviation = nearest_member(features, deltas), deltas.std(0)

    def noised(asked: Tensor, seed: int) -> Tensor:
        drawn = torch.randn(len(asked), deltas.shape[1], generator=generator_of(seed, "noised")).to(deltas)
        return nearest(asked, seed) + noise * deviation * drawn

    return noised


def ridge(features: Tensor, deltas: Tensor, strength: float) -> Conditional:
    r"""Return the linear regression of deltas on features with a penalty on all but the intercept.

    .. math:: W = (X^T X + \lambda n I)^{-1} X^T Y

    for centred features X (n, F) and deltas Y (n, D), solved in double precision.

    Source: Hoerl & Kennard 1970, "Ridge Regression", Technometrics 12(1).

    Example:
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> line = ridge(x, 2 * x[:, :1] + 1, 1e-9)
        >>> bool(torch.allclose(line(torch.tensor([[1.0, 0.0, 0.0]]), 0), torch.tensor([[3.0]]), atol=1e-4))
        True
    """
    centre, offset = features.double().mean(0), deltas.double().mean(0)
    inputs, outputs = features.double() - centre, deltas.double() - offset
    gram = inputs.T @ inputs
    gram.diagonal().add_(strength * len(inputs))
    weight = torch.linalg.solve(gram, inputs.T @ outputs)
    return lambda asked, seed: ((asked.double() - centre) @ weight + offset).to(deltas.dtype)
