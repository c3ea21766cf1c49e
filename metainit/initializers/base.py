"""What an initializer sees, and how tensors are sorted into the roles that the rules speak of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metainit.errors import MismatchError


@dataclass(frozen=True)
class Context:
    """What an initializer may use: random state, and data where the user gave some.

    `example_inputs`: inputs of the network. `observation`: signals ``(signals, points, out_features)`` at
    the points `example_inputs`, for starts that are learned from a few signals.
    """

    generator: torch.Generator
    example_inputs: Tensor | None = None
    observation: Tensor | None = None


Initializer = Callable[[nn.Module, Context], None]
"""Fills every parameter of a network in place, or raises `MismatchError` before it changes one."""


class Role(Enum):
    """What a parameter is to its module."""

    WEIGHT = "weight"
    BIAS = "bias"
    NORM_WEIGHT = "norm weight"


NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


def roles(network: nn.Module) -> dict[str, Role]:
    """Return the role of every parameter by name.

    Raises:
        MismatchError: a parameter has no role that a rule could speak of (a bare vector, say).

    Example:
        >>> [role.value for role in roles(nn.Linear(2, 3)).values()]
        ['weight', 'bias']
    """
    found: dict[str, Role] = {}
    unknown: list[str] = []
    for prefix, module in network.named_modules():
        for name, value in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if name.startswith("bias"):
                found[full] = Role.BIAS
            elif isinstance(module, NORMS):
                found[full] = Role.NORM_WEIGHT
            elif value.dim() >= 2:
                found[full] = Role.WEIGHT
            else:
                unknown.append(f"{full} {tuple(value.shape)}")
    if unknown:
        raise MismatchError(
            f"no analytic rule covers the parameters {', '.join(unknown)}: expected matrices, kernels, "
            "biases and normalization weights; fill these yourself, or use a learned or predicted start"
        )
    return found


@runtime_checkable
class SineNetwork(Protocol):
    """A network that knows the SIREN scheme for its own layers."""

    def reset_sine_parameters(self, generator: torch.Generator, scale: float = 1.0) -> None:
        """Draw all parameters; all but the last layer's weights times `scale`."""
        ...


@runtime_checkable
class HasPreActivation(Protocol):
    """A layer that applies its own activation."""

    def pre_activation(self, inputs: Tensor) -> Tensor:
        """Return what the activation is applied to."""
        ...


def need(value: Any, what: str, why: str) -> Any:
    """Return `value`, or say which argument is missing.

    Raises:
        MismatchError: `value` is None.
    """
    if value is None:
        raise MismatchError(f"this start needs {what}: {why}; pass {what}=...")
    return value
