"""Between a parameter as a hypernetwork sees it, (out, in, height, width), and as its network stores it."""

from __future__ import annotations

import math

from torch import Tensor

from hypernets.architecture.graph import Parameter, Role


def as_stored(values: Tensor, parameter: Parameter) -> Tensor:
    """Return values ``(out, in, height, width)``, or ``(out,)`` of a vector, in the parameter's own shape.

    Example:
        >>> import torch
        >>> as_stored(torch.zeros(3, 2, 5, 5), Parameter('up.weight', (2, 3, 5, 5), Role.WEIGHT, True)).shape
        torch.Size([2, 3, 5, 5])
    """
    shape = parameter.shape
    if not parameter.transposed or len(shape) < 2:
        return values.reshape(shape)
    turned = (shape[1], shape[0], *shape[2:])
    return values.reshape(turned).transpose(0, 1).contiguous()


def is_vector(parameter: Parameter) -> bool:
    """Return whether a parameter has no inner dimension: biases, gains."""
    return parameter.role is not Role.WEIGHT and math.prod(parameter.matrix[1:]) == 1


def grid(parameter: Parameter) -> tuple[int, int, int, int]:
    """Return the shape that blocks are decoded in, as (out, in, height, width).

    That is `Parameter.matrix`, but for a table: its rows are laid out as a square map of ``width`` channels,
    so that no two rows are alike, and positions of an image that lie close together are close in the map. A
    table of more than two dimensions is such a map as it is stored, with its channels first.

    Example:
        >>> grid(Parameter('positions', (1, 50, 16), Role.TABLE))
        (16, 1, 8, 7)
        >>> grid(Parameter('positions', (1, 16, 8, 7), Role.TABLE))
        (16, 1, 8, 7)
    """
    rows, width, *rest = parameter.matrix
    if parameter.role is not Role.TABLE or is_vector(parameter):
        return parameter.matrix
    if _is_map(parameter):
        return rows, 1, width, math.prod(rest)
    height = math.isqrt(max(rows, 1) - 1) + 1
    return width, 1, height, math.ceil(rows / height)


def from_grid(values: Tensor, parameter: Parameter) -> Tensor:
    """Return values in `grid`'s shape as the parameter is stored."""
    if parameter.role is not Role.TABLE or is_vector(parameter) or _is_map(parameter):
        return as_stored(values, parameter)
    return values.flatten(1)[:, : parameter.matrix[0]].T.reshape(parameter.shape)


def _is_map(parameter: Parameter) -> bool:
    return math.prod(parameter.matrix[2:]) > 1
