"""What a single call says beside its operator: which values it reads, dimensions, strides, kernels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from hypernets.architecture.drafts import Use
from hypernets.architecture.graph import Operation
from hypernets.architecture.recording import Call, Recording, Ref
from hypernets.architecture.vocabulary import Einsum, Product, operator_name

PERMUTATIONS = {"t", "numpy_T", "mT", "transpose", "permute", "swapaxes", "swapdims", "mH", "adjoint"}
SAME_DIMENSIONS = {"detach", "alias", "to", "_to_copy", "clone", "contiguous", "type_as", "lift_fresh"}


def values_in(values: Iterable[Any]) -> Iterator[Ref]:
    """Iterate over the values among arguments, in order."""
    for value in values:
        if isinstance(value, Ref):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from values_in(value)


def seen_through(use: Use, call: Call) -> Use:
    """Return a use after a call that only moves its elements."""
    name, order = operator_name(call.operator), use.order
    if order is None or name in SAME_DIMENSIONS:
        return use
    new: tuple[int, ...] | None = None
    if name in PERMUTATIONS:
        rank = len(order)
        if name == "permute":
            dims = [d % rank for d in call.arguments["dims"]]
        else:
            dims = list(range(rank))
            named = [
                v for k, v in call.arguments.items() if k.startswith(("dim", "axis")) and isinstance(v, int)
            ]
            a, b = (named or [-2, -1])[:2] if rank > 1 else (0, 0)
            dims[a], dims[b] = dims[b], dims[a]
        new = tuple(order[d] for d in dims)
    return Use(use.name, use.shape, new, use.role, use.transposed)


def summed_dimension(call: Call, rule: Product | Einsum, ref: Ref, rank: int) -> int | None:
    """Return which dimension of a factor is summed over, None if there is not exactly one."""
    if isinstance(rule, Product):
        return 0 if rank == 1 else rank - 1 if call.arguments.get(rule.left) == ref else rank - 2
    terms, _, result = call.arguments["equation"].replace(" ", "").partition("->")
    factors = list(values_in([call.arguments["tensors"]]))
    letters = terms.split(",")[factors.index(ref)]
    dropped = [i for i, letter in enumerate(letters) if letter.isalpha() and letter not in result]
    return dropped[0] if len(dropped) == 1 and "." not in letters else None


def _first(value: Any, default: int = 1) -> int:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return max((n for n in numbers if isinstance(n, int)), default=default)


def is_transposed_convolution(call: Call) -> bool:
    """Return whether a call of the general convolution is a transposed one."""
    return call.arguments.get("transposed") is True


def convolution(call: Call, operation: Operation, recording: Recording) -> tuple[Operation, dict[str, int]]:
    """Return a convolution's exact kind and its settings."""
    if operation not in (Operation.CONV, Operation.TRANSPOSED_CONV):
        return operation, {}
    arguments = call.arguments
    groups = arguments.get("groups", 1)
    if is_transposed_convolution(call):
        operation = Operation.TRANSPOSED_CONV
    weight = recording.values[arguments["weight"].value].shape
    if operation is Operation.CONV and groups > 1 and weight[1] == 1:
        operation = Operation.DEPTHWISE_CONV
    stride, dilation = _first(arguments.get("stride", 1)), _first(arguments.get("dilation", 1))
    return operation, {"groups": groups, "stride": stride, "dilation": dilation}


def cuts_at_zero(call: Call) -> bool:
    """Return whether a clamp is a ReLU, with or without an upper end."""
    bounded = operator_name(call.operator) in ("clamp", "clamp_min", "hardtanh")
    return bounded and call.arguments.get("min_val", call.arguments.get("min")) == 0


def pooling(call: Call, operation: Operation) -> tuple[Operation, dict[str, int]]:
    """Return a pooling's exact kind and its settings: the average over everything is a mean."""
    if operation not in (Operation.MAX_POOL, Operation.AVERAGE_POOL):
        return operation, {}
    arguments = call.arguments
    if "output_size" in arguments:
        whole = _first(arguments["output_size"]) == 1
        return (Operation.MEAN if whole and operation is Operation.AVERAGE_POOL else operation), {}
    kernel = _first(arguments.get("kernel_size", 1))
    settings = {"kernel": kernel, "stride": _first(arguments.get("stride"), kernel)}
    return operation, settings | {"dilation": _first(arguments.get("dilation", 1))}
