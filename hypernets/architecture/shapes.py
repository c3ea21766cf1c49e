"""Shapes of the results of functions that are recorded whole, without running what they are made of.

PyTorch would work these out as well, but for the commonest layers with a hundred small calls of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten
Arguments = Mapping[str, Any]


def shape_of(tensor: Tensor) -> Tensor:
    """Return a tensor without numbers of the same shape, strides and type."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def pointwise_shape(operator: OpOverload, args: Sequence[Any]) -> Tensor | None:
    """Return the shape of an elementwise call's result where it is that of its first argument, else None."""
    if operator not in POINTWISE or not args[0].is_meta or not args[0].is_floating_point():
        return None
    first, other = args[0], args[1] if len(args) > 1 else None
    if isinstance(other, Tensor) and (other.shape, other.dtype) != (first.shape, first.dtype):
        return None
    in_place: Tensor = first
    return in_place if operator._schema.is_mutable else shape_of(first)


POINTWISE = {
    aten.gelu.default, aten.silu.default, aten.silu_.default, aten.hardswish.default, aten.hardswish_.default,
    aten.hardsigmoid.default, aten.hardsigmoid_.default, aten.relu.default, aten.relu_.default,
    aten.sigmoid.default, aten.tanh.default, aten.clamp_min.default, aten.hardtanh.default,
    aten.hardtanh_.default, aten.add.Tensor, aten.add_.Tensor, aten.mul.Tensor, aten.mul_.Tensor,
}  # fmt: skip


def whole_shape(operator: OpOverload, arguments: Arguments) -> Tensor | None:
    """Return the shape of an operator's result, or None where its arguments are not the usual ones."""
    rule = RULES.get(operator)
    return rule(arguments) if rule is not None else None


def _linear(arguments: Arguments) -> Tensor | None:
    data, weight = arguments["input"], arguments["weight"]
    if weight.ndim != 2 or data.ndim < 1 or data.shape[-1] != weight.shape[1]:
        return None
    return torch.empty((*data.shape[:-1], weight.shape[0]), dtype=data.dtype, device="meta")


def _same(arguments: Arguments) -> Tensor:
    return shape_of(arguments["input"])


def _channels(arguments: Arguments) -> Tensor | None:
    data = arguments["input"]
    for name in ("weight", "bias", "running_mean"):
        tensor = arguments.get(name)
        if tensor is not None and (data.ndim < 2 or tensor.shape != data.shape[1:2]):
            return None
    return shape_of(data)


def _last_dimensions(arguments: Arguments) -> Tensor | None:
    data, shape = arguments["input"], tuple(arguments["normalized_shape"])
    if tuple(data.shape[-len(shape) :]) != shape:
        return None
    return torch.empty(data.shape, dtype=data.dtype, device="meta")


def _attention(arguments: Arguments) -> Tensor | None:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    if query.ndim < 3 or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    return torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device="meta")


def _grouped_product(arguments: Arguments) -> Tensor | None:
    rows, matrices = arguments["self"], arguments["mat2"]
    if rows.ndim != 2 or matrices.ndim != 3 or rows.shape[1] != matrices.shape[1]:
        return None
    return torch.empty((rows.shape[0], matrices.shape[2]), dtype=rows.dtype, device="meta")


RULES: Mapping[OpOverload, Callable[[Arguments], Tensor | None]] = {
    aten.linear.default: _linear,
    aten._grouped_mm.default: _grouped_product,
    aten.dropout.default: _same,
    aten.batch_norm.default: _channels,
    aten.instance_norm.default: _channels,
    aten.group_norm.default: _channels,
    aten.layer_norm.default: _last_dimensions,
    aten.rms_norm.default: _last_dimensions,
    aten.scaled_dot_product_attention.default: _attention,
}
