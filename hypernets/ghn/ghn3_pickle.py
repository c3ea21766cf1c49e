"""Tensors out of a pickle that joblib wrote, read without unpickling: no code in the file can run.

`pickletools` takes the file apart into opcodes. A small stack machine follows the few that a dictionary of
tensors needs, and knows the few globals that such a file names: each stands for a function of this module.
Any other opcode or global is refused by its name before anything of it is carried out.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from metainit.errors import CheckpointError

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""The first value of a storage that torch wrote in its format before zip files."""

DTYPES = MappingProxyType(
    {
        "f2": torch.float16,
        "f4": torch.float32,
        "f8": torch.float64,
        "i1": torch.int8,
        "i2": torch.int16,
        "i4": torch.int32,
        "i8": torch.int64,
        "u1": torch.uint8,
        "b1": torch.bool,
    }
)
STORAGES = MappingProxyType(
    {
        "HalfStorage": torch.float16,
        "BFloat16Storage": torch.bfloat16,
        "FloatStorage": torch.float32,
        "DoubleStorage": torch.float64,
        "CharStorage": torch.int8,
        "ShortStorage": torch.int16,
        "IntStorage": torch.int32,
        "LongStorage": torch.int64,
        "ByteStorage": torch.uint8,
        "BoolStorage": torch.bool,
    }
)
_MARK = object()
Stream = io.BufferedReader | io.BytesIO


@dataclass(frozen=True)
class _Global:
    """A global that the file names; what it stands for is looked up where it is used."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Attributes(dict[Any, Any]):
    """An ordered dictionary: its attributes (`_metadata`) are dropped."""


@dataclass
class _ArrayHeader:
    """The object that joblib writes before the bytes of an array."""


@dataclass
class _ArrayType:
    """A numpy type: its code, and `<`, `>` or `|` for the order of its bytes."""

    code: str
    order: str = "|"


@dataclass(frozen=True)
class _StorageReference:
    dtype: torch.dtype
    key: str
    elements: int


def read_pickle(stream: Stream, size: int, origin: str) -> Any:
    """Return the value that a pickle of plain values and tensors stands for.

    Args:
        stream: at the pickle's first byte; it is read up to the pickle's end.
        size: bytes of the whole stream; no array can be larger.
        origin: names the file in errors.

    Raises:
        CheckpointError: the pickle is truncated or damaged, or needs more than values and tensors.
    """
    try:
        return _Machine(stream, size, origin).run()
    except CheckpointError:
        raise
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        # Whatever a damaged stream makes of the stack.
        raise CheckpointError(f"{origin} is truncated or damaged: {error!r}") from error


class _Machine:
    """The stack, the memo, and what each opcode does to them."""

    def __init__(self, stream: Stream, size: int, origin: str) -> None:
        self.stream, self.size, self.origin = stream, size, origin
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for opcode, argument, _ in pickletools.genops(self.stream):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _PUSHED:
                self.stack.append(_PUSHED[opcode.name](argument))
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise CheckpointError(
                    f"{self.origin} holds the pickle opcode {opcode.name}, which no dictionary of tensors "
                    "needs; it is refused"
                )
        raise CheckpointError(f"{self.origin} is truncated: its pickle has no end")

    def from_mark(self) -> list[Any]:
        place = len(self.stack) - 1
        while self.stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise CheckpointError(f"{self.origin} is damaged: its pickle lacks a mark")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items

    def remember(self, place: int | None) -> None:
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def name_global(self, text: str | None) -> None:
        if text is None:
            name, module = self.stack.pop(), self.stack.pop()
        else:
            module, _, name = text.partition(" ")
        named = _Global(str(module), str(name))
        if named not in _CALLED and named not in _NAMED:
            raise CheckpointError(
                f"{self.origin} names {named}, which no dictionary of tensors needs; it is refused, because "
                "a pickle can run any code that it names"
            )
        self.stack.append(named)

    def call(self, _: Any) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        function = _CALLED.get(named) if isinstance(named, _Global) else None
        if function is None or not isinstance(arguments, tuple):
            raise CheckpointError(f"{self.origin} calls {named}, which is refused")
        self.stack.append(function(self, *arguments))

    def make(self, _: Any) -> None:
        arguments, named = self.stack.pop(), self.stack.pop()
        if named != _HEADER or arguments != ():
            raise CheckpointError(f"{self.origin} makes a {named}, which is refused")
        self.stack.append(_ArrayHeader())

    def build(self, _: Any) -> None:
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, _ArrayHeader):
            self.stack[-1] = self.array(**state)
        elif isinstance(built, _ArrayType):
            built.order = state[1]
        elif not isinstance(built, _Attributes):
            raise CheckpointError(
                f"{self.origin} sets the state of a {type(built).__name__}, which is refused"
            )

    def array(
        self,
        subclass: Any,
        shape: tuple[int, ...],
        order: str,
        dtype: _ArrayType,
        allow_mmap: bool = False,
        numpy_array_alignment_bytes: int | None = None,
    ) -> Tensor:
        """Read the bytes of an array, which stand in the middle of the pickle."""
        if dtype.order == ">":
            raise CheckpointError(f"{self.origin} holds big-endian numbers, which are not supported")
        kind = DTYPES[dtype.code]
        if numpy_array_alignment_bytes is not None:
            self.stream.read(self.stream.read(1)[0])
        values = _values(self.stream, self.size, kind, math.prod(shape))
        return (
            values.view(shape[::-1]).permute(*range(len(shape))[::-1]) if order == "F" else values.view(shape)
        )

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.extend([value])

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise CheckpointError(f"{self.origin} is damaged: it appends to a {type(target).__name__}")
        target += values

    def set_items(self, flat: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise CheckpointError(f"{self.origin} is damaged: it sets items of a {type(target).__name__}")
        target.update(zip(flat[::2], flat[1::2], strict=True))

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items([key, value])

    def take(self, count: int) -> None:
        if len(self.stack) < count:
            raise CheckpointError(f"{self.origin} is damaged: its pickle takes more than it has")
        taken = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(taken)

    def storage(self, content: bytes) -> Tensor:
        """Read a storage in torch's format before zip files: five pickles, then the numbers."""
        stream = io.BytesIO(content)
        nested = f"a storage in {self.origin}"
        magic, _, _, reference, _ = (read_pickle(stream, len(content), nested) for _ in range(5))
        if magic != TORCH_MAGIC or not isinstance(reference, _StorageReference):
            raise CheckpointError(f"{nested} is damaged: it does not begin as one")
        elements = int.from_bytes(stream.read(8), "little")
        if elements != reference.elements:
            raise CheckpointError(f"{nested} holds {elements} numbers, its header says {reference.elements}")
        return _values(stream, len(content), reference.dtype, elements)

    def refer(self, _: Any) -> None:
        kind, storage, key, _, elements, _ = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Global):
            raise CheckpointError(f"{self.origin} refers to a {kind!r}, expected a storage")
        self.stack.append(_StorageReference(STORAGES[storage.name], str(key), int(elements)))


def _values(stream: Stream, size: int, dtype: torch.dtype, count: int) -> Tensor:
    wanted = count * dtype.itemsize
    if not 0 <= wanted <= size:
        raise ValueError(f"an array of {wanted} bytes in a file of {size}")
    content = bytearray(wanted)
    if stream.readinto(content) != wanted:
        raise ValueError(f"an array of {wanted} bytes ends early")
    return torch.frombuffer(content, dtype=dtype) if wanted else torch.empty(0, dtype=dtype)


def _tensor(
    machine: _Machine, storage: Tensor, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> Tensor:
    if not isinstance(storage, Tensor):
        raise CheckpointError(f"{machine.origin} is damaged: a tensor without a storage")
    if math.prod(shape) > storage.numel():
        raise CheckpointError(f"{machine.origin} is damaged: a tensor {shape} of {storage.numel()} numbers")
    return storage.as_strided(shape, stride, offset)


_HEADER = _Global("joblib.numpy_pickle", "NumpyArrayWrapper")
_NAMED = frozenset(
    {_HEADER, _Global("numpy", "ndarray"), *(_Global("torch", name) for name in STORAGES)},
)
_CALLED: MappingProxyType[_Global, Callable[..., Any]] = MappingProxyType(
    {
        _Global("collections", "OrderedDict"): lambda machine: _Attributes(),
        _Global("torch._utils", "_rebuild_tensor_v2"): _tensor,
        _Global("torch._utils", "_rebuild_parameter"): lambda machine, data, *_: data,
        _Global("torch.storage", "_load_from_bytes"): lambda machine, content: machine.storage(content),
        _Global("numpy", "dtype"): lambda machine, code, *_: _ArrayType(code),
    }
)


def _constant(value: Callable[[], Any]) -> Callable[[Any], Any]:
    return lambda _: value()


_PUSHED: MappingProxyType[str, Callable[[Any], Any]] = MappingProxyType(
    {
        "MARK": _constant(lambda: _MARK),
        "NONE": _constant(lambda: None),
        "NEWTRUE": _constant(lambda: True),
        "NEWFALSE": _constant(lambda: False),
        "EMPTY_DICT": _constant(dict),
        "EMPTY_LIST": _constant(list),
        "EMPTY_TUPLE": _constant(tuple),
        **{
            name: lambda argument: argument
            for name in (
                "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINUNICODE", "BINUNICODE",
                "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
            )
        },
    }
)  # fmt: skip
_ACTIONS: MappingProxyType[str, Callable[[_Machine, Any], None]] = MappingProxyType(
    {
        "BINPUT": _Machine.remember,
        "LONG_BINPUT": _Machine.remember,
        "MEMOIZE": _Machine.remember,
        "BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
        "LONG_BINGET": lambda machine, place: machine.stack.append(machine.memo[place]),
        "GLOBAL": _Machine.name_global,
        "STACK_GLOBAL": _Machine.name_global,
        "REDUCE": _Machine.call,
        "NEWOBJ": _Machine.make,
        "BUILD": _Machine.build,
        "APPEND": _Machine.append,
        "APPENDS": lambda machine, _: machine.extend(machine.from_mark()),
        "SETITEM": _Machine.set_item,
        "SETITEMS": lambda machine, _: machine.set_items(machine.from_mark()),
        "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.from_mark())),
        "TUPLE1": lambda machine, _: machine.take(1),
        "TUPLE2": lambda machine, _: machine.take(2),
        "TUPLE3": lambda machine, _: machine.take(3),
        "BINPERSID": _Machine.refer,
    }
)
