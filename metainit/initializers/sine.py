"""SIREN's scheme, and the same with larger weights."""

from __future__ import annotations

from torch import nn

from metainit.errors import MismatchError
from metainit.initializers.base import Context, SineNetwork

WEIGHT_SCALE = 2.0
"""Multiplier of `siren_scaled`; the paper searches it between 1.5 and 4 and finds about 2 for images."""


def siren(network: nn.Module, context: Context) -> None:
    """Draw the weights of a sine network so that every layer's activations have the same distribution.

    Raises:
        MismatchError: the network does not offer `reset_sine_parameters`.

    Source: Sitzmann et al. 2020, "Implicit Neural Representations with Periodic Activation Functions",
    section 3.2.
    """
    _sine(network).reset_sine_parameters(context.generator)


def siren_scaled(network: nn.Module, context: Context) -> None:
    """Draw SIREN's weights and multiply all but the last layer's by `WEIGHT_SCALE`.

    Raises:
        MismatchError: the network does not offer `reset_sine_parameters`.

    Source: Yeom et al. 2025, "Fast Training of Sinusoidal Neural Fields via Scaling Initialization",
    arXiv:2410.04779.
    """
    _sine(network).reset_sine_parameters(context.generator, scale=WEIGHT_SCALE)


def _sine(network: nn.Module) -> SineNetwork:
    if not isinstance(network, SineNetwork):
        raise MismatchError(
            f"{type(network).__name__} has no sine layers: expected a network with "
            "reset_sine_parameters(generator, scale), as metainit.networks.Siren; use 'kaiming' or 'default'"
        )
    return network
