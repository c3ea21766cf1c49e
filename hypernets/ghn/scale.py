"""From what a decoder says to a parameter: the scale that each role asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from hypernets.architecture.graph import Parameter, Role

GAIN = 2.0
"""The beta of the fan-in rule: He's, for units that are on half of the time."""
TABLE_SCALE = 0.2


def _weight(raw: Tensor, parameter: Parameter) -> Tensor:
    return raw * math.sqrt(GAIN / parameter.fan_in)


def _around_one(raw: Tensor, parameter: Parameter) -> Tensor:
    return 2 * torch.sigmoid(0.5 * raw)


def _bias(raw: Tensor, parameter: Parameter) -> Tensor:
    return torch.tanh(0.2 * raw)


def _table(raw: Tensor, parameter: Parameter) -> Tensor:
    return TABLE_SCALE * raw


SCALES: Mapping[Role, Callable[[Tensor, Parameter], Tensor]] = MappingProxyType(
    {
        Role.WEIGHT: _weight,
        Role.BIAS: _bias,
        Role.NORM_WEIGHT: _around_one,
        Role.SCALE: _around_one,
        Role.TABLE: _table,
    }
)


def scaled(raw: Tensor, parameter: Parameter) -> Tensor:
    r"""Return a decoder's values on the scale of a parameter's role, in any shape.

    A weight is :math:`w \sqrt{2 / \text{fan-in}}`, not standardised; a bias :math:`\tanh(0.2\,b)`; a gain
    :math:`2\sigma(0.5\,g)`, which is 1 where the decoder says 0.

    Source: GHN-3 (Knyazev et al. 2023, arXiv:2303.04143), weight normalisation; the scale of tables is ours.

    Example:
        >>> scaled(torch.zeros(2), Parameter('norm.weight', (2,), Role.NORM_WEIGHT))
        tensor([1., 1.])
    """
    return SCALES[parameter.role](raw, parameter)
