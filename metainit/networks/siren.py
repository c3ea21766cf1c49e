"""SIREN: a multilayer perceptron with sine activations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SineLayer(nn.Linear):
    r"""A linear layer and a sine: :math:`\sin(\omega (W x + b))`.

    Shapes: ``(..., in_features)`` -> ``(..., out_features)``.

    Example:
        >>> bool(SineLayer(2, 4, omega=30.0)(torch.zeros(1, 2)).abs().max() <= 1)
        True
    """

    def __init__(self, in_features: int, out_features: int, omega: float) -> None:
        super().__init__(in_features, out_features)
        self.omega = omega

    def pre_activation(self, inputs: Tensor) -> Tensor:
        """Return what the sine is taken of."""
        # The frequency is multiplied into the weights, not into the activations: the same function with
        # two passes over the large tensor fewer (one here, one in its gradient).
        return F.linear(inputs, self.omega * self.weight, self.omega * self.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the layer."""
        return torch.sin(self.pre_activation(inputs))


class Siren(nn.Module):
    r"""Implicit representation with sine activations.

    .. math:: h_{l+1} = \sin(\omega_l (W_l h_l + b_l)), \quad y = W_L h_L + b_L + \text{offset}

    `depth` counts linear layers, the last one without an activation. Tancik et al. use one large
    frequency for all layers, ``omega=200, omega_first=200``, and shift the output by one half.

    Shapes: ``(..., in_features)`` -> ``(..., out_features)``, any floating type.

    Raises:
        ValueError: a size or a frequency is not positive.

    Source: Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation
    Functions", sections 3 and 3.2; the variant from Tancik et al. 2021, "Learned
    Initializations", section 4.

    Example:
        >>> Siren(in_features=2, out_features=3, width=16, depth=3)(torch.zeros(7, 2)).shape
        torch.Size([7, 3])
    """

    def __init__(
        self,
        in_features: int = 2,
        out_features: int = 3,
        width: int = 256,
        depth: int = 5,
        omega: float = 30.0,
        omega_first: float = 30.0,
        offset: float = 0.5,
    ) -> None:
        super().__init__()
        if min(in_features, out_features, width) < 1 or depth < 2:
            raise ValueError(
                f"sizes must be positive and depth at least 2, got in_features={in_features}, "
                f"out_features={out_features}, width={width}, depth={depth}"
            )
        if min(omega, omega_first) <= 0:
            raise ValueError(f"frequencies must be positive, got omega={omega}, omega_first={omega_first}")
        self.offset = offset
        sizes = [in_features] + [width] * (depth - 1)
        omegas = [omega_first] + [omega] * (depth - 2)
        sines = [SineLayer(a, b, w) for a, b, w in zip(sizes, sizes[1:], omegas, strict=False)]
        self.layers = nn.ModuleList([*sines, nn.Linear(width, out_features)])

    @property
    def head(self) -> nn.Module:
        """The last layer, which has no activation."""
        return self.layers[-1]

    def reset_sine_parameters(self, generator: torch.Generator, scale: float = 1.0) -> None:
        r"""Draw the weights of section 3.2 of the paper, all but the last layer's times `scale`.

        First layer :math:`U(-1/n, 1/n)`, then
        :math:`U(-\sqrt{6/n}/\omega, \sqrt{6/n}/\omega)`; biases :math:`U(-1/\sqrt n, 1/\sqrt n)` as
        in the authors' code.
        """
        *sines, last = (module for module in self.layers if isinstance(module, nn.Linear))
        omega = 1.0
        with torch.no_grad():
            for index, layer in enumerate([*sines, last]):
                fan_in = layer.in_features
                omega = layer.omega if isinstance(layer, SineLayer) else omega
                bound = 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / omega
                factor = 1.0 if layer is last else scale
                layer.weight.uniform_(-bound, bound, generator=generator).mul_(factor)
                bias_bound = 1 / math.sqrt(fan_in)
                layer.bias.uniform_(-bias_bound, bias_bound, generator=generator)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map coordinates ``(..., in_features)`` to values ``(..., out_features)``."""
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden + self.offset
