"""What a forward pass did: ATen calls in order, with the values that they read and made.

Values are numbered and never change: a call that writes in place makes a new one. Both tracers keep their
books with a `Ledger`; everything after them sees only the `Recording`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from metainit.errors import GraphError

MAX_CALLS = 200_000


@dataclass(frozen=True)
class Ref:
    """A value in the place of a tensor among a call's arguments."""

    value: int


@dataclass(frozen=True)
class Value:
    """What is known of a tensor. `floating`: it holds real or complex floating-point numbers."""

    shape: tuple[int, ...]
    floating: bool


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by name, and the values that it made (None for no tensor)."""

    operator: OpOverload
    arguments: Mapping[str, Any]
    results: tuple[int | None, ...]


@dataclass
class Recording:
    """Values by number, calls in order, and which values are inputs, parameters and outputs.

    `looked_at_data`: a number that the forward pass looked at, such as the largest index of an edge list, may
    have changed what it did.
    """

    values: list[Value] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    parameters: dict[int, str] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    looked_at_data: bool = False


@dataclass
class _Entry:
    """The value that a tensor holds now; the tensor that it is a view of; the writes that it has seen."""

    value: int
    parent: Hashable | None
    root: Hashable
    seen: int


class Ledger:
    """Keeps account of which value each tensor holds, through views and writes in place.

    A key names a tensor as long as the ledger lives.
    """

    def __init__(self) -> None:
        self.recording = Recording()
        self._entries: dict[Hashable, _Entry] = {}
        self._writes: dict[Hashable, list[tuple[Hashable, int]]] = {}

    def define(self, key: Hashable, shape: Sequence[int], dtype: torch.dtype, parent: Hashable = None) -> int:
        """Enter a tensor that holds a new value, as a view of `parent` if one is given."""
        value = self._value(tuple(shape), dtype.is_floating_point or dtype.is_complex)
        root = self._entries[parent].root if parent is not None else key
        self._entries[key] = _Entry(value, parent, root, len(self._writes.get(root, ())))
        return value

    def knows(self, key: Hashable) -> bool:
        """Return whether the key names a tensor."""
        return key in self._entries

    def read(self, key: Hashable) -> int:
        """Return the value that a tensor holds now."""
        entry = self._entries[key]
        writes = self._writes.get(entry.root, ())
        while entry.seen < len(writes):
            writer, written = writes[entry.seen]
            entry.seen += 1
            if writer == key:
                continue
            if self._covers(writer, key):
                entry.value = written
            elif self._descends(writer, key):
                old = self.recording.values[entry.value]
                entry.value = self._overlay(entry.value, written, old)
        return entry.value

    def call(
        self,
        operator: OpOverload,
        arguments: Mapping[str, Any],
        results: Sequence[tuple[Hashable, Tensor] | None],
    ) -> None:
        """Enter a call. Arguments hold `Key` in place of tensors; results are tensors with their keys."""
        if len(self.recording.calls) >= MAX_CALLS:
            raise GraphError(
                f"the forward pass made more than {MAX_CALLS} calls, too many for a graph. Loops over "
                "time or layers are unrolled: give a shorter example input"
            )
        read = {name: self._refer(value) for name, value in arguments.items()}
        written, viewed = effects(operator)
        writers = [key for name in written for key in keys(arguments.get(name))]
        parents = [key for name in viewed for key in keys(arguments.get(name))] if not writers else []
        numbers: list[int | None] = []
        for result in results:
            if result is None:
                numbers.append(None)
                continue
            key, tensor = result
            if key in writers:
                writers.remove(key)
                numbers.append(self._write(key))
            elif self.knows(key):
                numbers.append(None)
            else:
                numbers.append(self.define(key, tensor.shape, tensor.dtype, parents[0] if parents else None))
        numbers += [self._write(key) for key in writers]
        self.recording.calls.append(Call(operator, read, tuple(numbers)))

    def _value(self, shape: tuple[int, ...], floating: bool) -> int:
        self.recording.values.append(Value(shape, floating))
        return len(self.recording.values) - 1

    def _write(self, key: Hashable) -> int:
        entry = self._entries[key]
        old = self.recording.values[entry.value]
        entry.value = self._value(old.shape, old.floating)
        writes = self._writes.setdefault(entry.root, [])
        writes.append((key, entry.value))
        entry.seen = len(writes)
        return entry.value

    def _overlay(self, below: int, above: int, like: Value) -> int:
        value = self._value(like.shape, like.floating)
        arguments = {"self": Ref(below), "src": Ref(above)}
        self.recording.calls.append(Call(torch.ops.aten.slice_scatter.default, arguments, (value,)))
        return value

    def _covers(self, writer: Hashable, key: Hashable) -> bool:
        """Return whether all of `key` lies in what was written: it is a view of it, or both are whole."""
        if self._descends(key, writer):
            return True
        sizes = [self.recording.values[self._entries[k].value].shape for k in (writer, key)]
        root = self.recording.values[self._entries[self._entries[key].root].value].shape
        return math.prod(sizes[0]) == math.prod(sizes[1]) == math.prod(root)

    def _descends(self, key: Hashable | None, ancestor: Hashable) -> bool:
        while key is not None and key != ancestor:
            key = self._entries[key].parent
        return key is not None

    def _refer(self, value: Any) -> Any:
        if isinstance(value, Key):
            return Ref(self.read(value.name))
        if isinstance(value, (list, tuple)):
            return [self._refer(item) for item in value]
        return value


@dataclass(frozen=True)
class Key:
    """A tensor's key in the place of the tensor among a call's arguments."""

    name: Hashable


def keys(value: Any) -> Iterator[Hashable]:
    """Iterate over the keys in an argument."""
    if isinstance(value, Key):
        yield value.name
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from keys(item)


@cache
def parameter_names(operator: OpOverload) -> tuple[str, ...]:
    """Return the names of an operator's arguments, in order."""
    return tuple(argument.name for argument in operator._schema.arguments)


@cache
def effects(operator: OpOverload) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the arguments that a call writes to, and of those that its results are views of."""
    aliased = [
        (a.name, a.alias_info.is_write) for a in operator._schema.arguments if a.alias_info is not None
    ]
    written = tuple(name for name, is_written in aliased if is_written)
    return written, tuple(name for name, is_written in aliased if not is_written)


def bind(operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a call's arguments by name."""
    return dict(zip(parameter_names(operator), args, strict=False)) | dict(kwargs)
