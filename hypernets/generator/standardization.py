"""Deltas in units of their own spread, and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hypernets.generator.description import Layers
from hypernets.generator.flat import FlatLayout
from metainit.errors import DataError

FLOOR = 1e-3
"""The least deviation, as a part of the root mean square of all: a dimension that never moves stays put."""


class Standardization(nn.Module):
    r"""Standardized values :math:`x = (\delta - \mu) / \sigma`.

    Two buffers are stored, both of shape (D) float32: `mean` :math:`\mu` and `deviation` :math:`\sigma`, the
    square root of the biased variance and at least `FLOOR` times the root mean square of all deviations. For
    the kind ``layer`` they have one value for all numbers of a layer.

    Example:
        >>> layout = FlatLayout.of({'w': torch.zeros(2)})
        >>> unit = Standardization(layout, (('w',),), 'dimension')
        >>> unit.fit(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        >>> unit(torch.tensor([2.0, 3.0]))
        tensor([1., 0.])
    """

    mean: Tensor
    deviation: Tensor
    _layer: Tensor

    def __init__(self, layout: FlatLayout, layers: Layers, kind: Literal["dimension", "layer"]) -> None:
        super().__init__()
        self.kind = kind
        number = {name: index for index, layer in enumerate(layers) for name in layer}
        # On the CPU even where tensors without numbers are made: what is not stored is not loaded.
        numbers = torch.tensor([number[name] for name in layout.names], device="cpu")
        of = numbers.repeat_interleave(torch.tensor(layout.sizes, device="cpu"))
        self.register_buffer("_layer", of, persistent=False)
        self.register_buffer("mean", torch.zeros(layout.size))
        self.register_buffer("deviation", torch.ones(layout.size))

    def fit(self, deltas: Tensor) -> None:
        """Take mean and deviation of deltas ``(n, D)``.

        Raises:
            DataError: no dimension differs between any two of them, or one is not finite.
        """
        values = deltas.double()
        mean, square = values.mean(0), values.square().mean(0)
        if self.kind == "layer":
            mean, square = self._pooled(mean), self._pooled(square)
            variance = square - mean.square()
        else:
            variance = values.var(0, correction=0)
        typical = variance.clamp_min(0).mean().sqrt()
        # What rounding leaves of equal numbers is no spread.
        if not bool(typical > 1e-7 * values.abs().max()):
            raise DataError(
                f"{len(deltas)} members have the same weights, or some that are not finite: a generator "
                "learns how fits of different tasks differ"
            )
        self.mean.copy_(mean)
        self.deviation.copy_(variance.clamp_min(0).sqrt().clamp_min(FLOOR * typical))

    def _pooled(self, values: Tensor) -> Tensor:
        """Return for each dimension the mean of its layer."""
        sums = values.new_zeros(int(self._layer.max()) + 1).index_add(0, self._layer, values)
        counts = torch.bincount(self._layer)
        return (sums / counts.clamp_min(1))[self._layer]

    def forward(self, deltas: Tensor) -> Tensor:
        """Return deltas ``(..., D)`` standardized."""
        return (deltas - self.mean) / self.deviation

    def inverse(self, values: Tensor) -> Tensor:
        """Return standardized values ``(..., D)`` as deltas."""
        return values * self.deviation + self.mean
