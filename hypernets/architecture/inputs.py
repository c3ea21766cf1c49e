"""Example inputs and outputs: whatever holds tensors, and the tensors that it holds, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from metainit.errors import GraphError

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def arguments(example_inputs: ExampleInputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments of a call on example inputs.

    Raises:
        GraphError: they are neither a tensor, nor a sequence, nor a mapping of keyword arguments.

    Example:
        >>> arguments((1, 2)), arguments({'x': 3})
        (((1, 2), {}), ((), {'x': 3}))
    """
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, (tuple, list)):
        return tuple(example_inputs), {}
    raise GraphError(
        "example_inputs: expected a tensor, a tuple of positional arguments or a dictionary of keyword "
        f"arguments, got {type(example_inputs).__name__}"
    )


def convert(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return nested arguments with every tensor changed."""
    return pytree.tree_map_only(Tensor, change, value)


def tensors(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in a nested value, as a network's output is, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for part in fields(value):
            yield from tensors(getattr(value, part.name))
