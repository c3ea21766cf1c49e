"""Graphs that were traced before: the same structure on the same shapes is traced once.

A network's structure is everything but its numbers: the classes of its modules and their settings, the shapes
and types of its parameters and buffers, which of them are tied, and training flags.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.inputs import ExampleInputs, arguments, tensors
from hypernets.architecture.recorded import keeps_numbers
from hypernets.architecture.trace import Dependence, Tracer, trace_fully

HELD_BY_MODULES = {"_parameters", "_buffers", "_modules"}
HOOKS = {name for name, value in vars(nn.Module()).items() if not value and isinstance(value, dict)}
"""What every module has, mostly empty."""
PLAIN = {
    bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size,
}  # fmt: skip
EMPTY = {list, tuple, dict, OrderedDict}


class OpaqueError(Exception):
    """A module holds something that cannot be compared with another's."""


class _Entry(NamedTuple):
    """`classes`: of the modules, kept alive, since a key names them by their identity."""

    graph: ArchitectureGraph
    integers: str | None
    classes: frozenset[type]


class GraphCache:
    """The graphs of the `size` structures that were asked for last.

    A graph that depends on integers that the forward pass looked at is found again for the same integers
    only; one that depends on other numbers, or of a network with attributes that cannot be compared (open
    files, generators), is traced anew each time.

    Example:
        >>> cache = GraphCache()
        >>> first = cache.trace(nn.Linear(2, 3), torch.zeros(1, 2))
        >>> cache.trace(nn.Linear(2, 3), torch.ones(1, 2)) is first
        True
        >>> cache.trace(nn.Linear(2, 4), torch.zeros(1, 2)) is first
        False
    """

    def __init__(self, size: int = 64) -> None:
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        self.size = size
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def trace(
        self,
        network: nn.Module,
        example_inputs: ExampleInputs,
        *,
        keep: Collection[str] = (),
        tracer: Tracer = "auto",
    ) -> ArchitectureGraph:
        """Return the network's graph, from the cache where it is there; see `hypernets.architecture.trace`.

        Raises:
            GraphError: as `trace` does.
        """
        try:
            key = structure(network, example_inputs, keep, tracer)
        except OpaqueError:
            return trace_fully(network, example_inputs, keep=keep, tracer=tracer).graph
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
        if entry is not None and entry.integers in (None, _integers(network, example_inputs)):
            return entry.graph
        traced = trace_fully(network, example_inputs, keep=keep, tracer=tracer)
        if traced.depends_on is not Dependence.NUMBERS:
            looked = traced.depends_on is Dependence.INTEGERS
            integers = _integers(network, example_inputs) if looked else None
            classes = frozenset(type(module) for module in network.modules())
            with self._lock:
                self._entries[key] = _Entry(traced.graph, integers, classes)
                self._entries.move_to_end(key)
                while len(self._entries) > self.size:
                    self._entries.popitem(last=False)
        return traced.graph


def structure(
    network: nn.Module, example_inputs: ExampleInputs, keep: Collection[str], tracer: Tracer
) -> str:
    """Return a hash of all that a graph depends on, except for numbers in tensors.

    Raises:
        OpaqueError: a module holds something that cannot be compared.
    """
    describer = _Describer(network)
    args, kwargs = arguments(example_inputs)
    parts = [
        [describer.module(name, module) for name, module in network.named_modules(remove_duplicate=False)],
        describer.describe(args),
        describer.describe(kwargs),
        sorted(keep),
        tracer,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _integers(network: nn.Module, example_inputs: ExampleInputs) -> str:
    """Return a hash of the numbers that the recorder keeps: integers, and small buffers."""
    digest = hashlib.sha256()
    for tensor in (*network.buffers(), *tensors(arguments(example_inputs))):
        if keeps_numbers(tensor):
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class _Describer:
    """Turns modules and what they hold into values that are equal where the structure is.

    What was described before is named by its number, so that shared things are told from equal ones.
    """

    def __init__(self, network: nn.Module) -> None:
        self.seen: dict[int, int] = {}
        self.alive: list[Any] = []
        self.modules = {id(module): i for i, module in enumerate(network.modules())}

    def module(self, name: str, module: nn.Module) -> Any:
        number = self._number(module)
        if number is not None:
            return name, number
        held = vars(module)
        return (
            name,
            self._class(type(module)),
            [(n, self.describe(p)) for n, p in module._parameters.items()],
            [(n, self.describe(b)) for n, b in module._buffers.items()],
            [
                (n, self.describe(_hooks(n, v)))
                for n, v in held.items()
                if n not in HELD_BY_MODULES and (v or n not in HOOKS)
            ],
        )

    def _class(self, kind: type) -> Any:
        """Return which class it is, and its methods: in a notebook both change under one name."""
        number = self._number(kind)
        if number is not None:
            return number
        own = [base for base in kind.__mro__ if not base.__module__.startswith("torch.")]
        methods = [(n, f) for base in own for n, f in vars(base).items() if isinstance(f, FunctionType)]
        return id(kind), [(n, self._code(f.__code__)) for n, f in methods]

    def describe(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        if kind in EMPTY and not value:
            return kind.__name__
        if isinstance(value, nn.Module) and id(value) in self.modules:
            return "module", self.modules[id(value)]
        number = self._number(value)
        if number is not None:
            return "seen", number
        if kind is nn.Parameter or kind is Tensor:
            return tuple(value.shape), value.dtype, value.device, value.requires_grad
        return kind.__name__, list(self._parts(value))

    def _number(self, value: Any) -> int | None:
        """Return the number of what was described before; else give it one."""
        if id(value) in self.seen:
            return self.seen[id(value)]
        self.seen[id(value)] = len(self.seen)
        self.alive.append(value)
        return None

    def _parts(self, value: Any) -> Iterator[Any]:
        match value:
            case Tensor():
                yield from (_name(type(value)), tuple(value.shape), value.dtype, value.device)
            case Mapping():
                for key, item in value.items():
                    yield self.describe(key), self.describe(item)
            case list() | tuple():
                yield from (self.describe(item) for item in value)
            case set() | frozenset():
                yield sorted(repr(self.describe(item)) for item in value)
            case enum.Enum():
                yield _name(type(value)), value.name
            case weakref.ReferenceType():
                yield self.describe(value())
            case type() | BuiltinFunctionType() | ModuleType():
                yield _name(value)
            case FunctionType():
                yield _name(value)
                yield self._code(value.__code__)
                yield self.describe(value.__defaults__)
                yield self.describe(value.__kwdefaults__)
                yield [self.describe(cell.cell_contents) for cell in value.__closure__ or ()]
            case MethodType():
                yield self.describe(value.__func__)
                yield self.describe(value.__self__)
            case functools.partial():
                yield self.describe(value.func)
                yield self.describe(value.args)
                yield self.describe(value.keywords)
            case _ if type(value).__module__ == "typing":
                yield repr(value)
            case _:
                if not hasattr(value, "__dict__"):
                    raise OpaqueError(f"a {type(value).__name__} cannot be compared")
                yield _name(type(value))
                yield self.describe(vars(value))

    def _code(self, code: CodeType) -> Any:
        constants = [self._code(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
        return code.co_code, code.co_names, constants


def _hooks(name: str, value: Any) -> Any:
    """Return an attribute of a module, hooks without the numbers that PyTorch counts them by."""
    return list(value.values()) if name in HOOKS else value


def _name(value: Any) -> str:
    return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
