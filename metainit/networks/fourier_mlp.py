"""A multilayer perceptron over random Fourier features."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierMLP(nn.Module):
    r"""Random Fourier features, ReLU layers, and optionally a sigmoid at the end.

    .. math:: \gamma(x) = [\sin(2\pi B x), \cos(2\pi B x)], \quad B_{ij} \sim N(0, \text{scale}^2)

    The frequencies B are a buffer, so they are part of the state dict and of every checkpoint. They are
    drawn from `frequency_seed`, so that the same spec has the same frequencies.

    Shapes: ``(..., in_features)`` -> ``(..., out_features)``, any floating type.

    Raises:
        ValueError: a size is not positive.

    Source: Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low
    Dimensional Domains", section 3; Tancik et al. 2021, "Learned Initializations", CT experiment.

    Example:
        >>> network = FourierMLP(in_features=2, out_features=1, width=16, depth=3, frequencies=8)
        >>> network(torch.zeros(7, 2)).shape
        torch.Size([7, 1])
        >>> 'frequencies' in network.state_dict()
        True
    """

    frequencies: Tensor

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 1,
        width: int = 256,
        depth: int = 5,
        frequencies: int = 256,
        scale: float = 10.0,
        sigmoid: bool = True,
        frequency_seed: int = 0,
    ) -> None:
        super().__init__()
        if min(in_features, out_features, width, frequencies) < 1 or depth < 2:
            raise ValueError(
                f"sizes must be positive and depth at least 2, got in_features={in_features}, "
                f"out_features={out_features}, width={width}, frequencies={frequencies}, depth={depth}"
            )
        generator = torch.Generator().manual_seed(frequency_seed)
        drawn = torch.randn(frequencies, in_features, generator=generator)
        self.register_buffer("frequencies", scale * drawn)
        sizes = [2 * frequencies] + [width] * (depth - 1) + [out_features]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.squash: nn.Module = nn.Sigmoid() if sigmoid else nn.Identity()

    @property
    def head(self) -> nn.Module:
        """The last layer."""
        return self.layers[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        """Map coordinates ``(..., in_features)`` to values ``(..., out_features)``."""
        phase = 2 * math.pi * inputs @ self.frequencies.T
        hidden = torch.cat([phase.sin(), phase.cos()], dim=-1)
        for layer in self.layers[:-1]:
            hidden = torch.relu(layer(hidden))
        output: Tensor = self.squash(self.layers[-1](hidden))
        return output
