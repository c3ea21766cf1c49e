"""The main tracer: run the forward pass on shapes alone and write down every call.

A copy of the network whose tensors have shapes but no numbers (on PyTorch's meta device) goes through its own
forward pass. Small tensors of integers, and what is computed from them alone (positions, windows, masks, the
number of nodes of a graph), keep their numbers, since control flow often looks at them. Functions whose parts
say less than the whole (attention, recurrent layers, norms) are written down as one call.

A forward pass that looks at numbers that are not there is run once more on a copy that has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from inspect import signature
from types import BuiltinFunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from hypernets.architecture.copying import copy_network, random_state_kept
from hypernets.architecture.inputs import ExampleInputs, arguments, convert, tensors
from hypernets.architecture.recording import Key, Ledger, Recording, bind, effects, parameter_names
from hypernets.architecture.shapes import pointwise_shape, shape_of, whole_shape

aten = torch.ops.aten
NUMBERS_KEPT = 2**22
"""Integer tensors up to this size keep their numbers."""
FLOATS_KEPT = 2**16
"""Floating-point constants made in the forward pass, likewise."""
SMALL_BUFFER = 64
"""Floating-point buffers, likewise: flags and counters, not statistics."""
MASKS = (torch.bool, torch.uint8)


class NoNumbersError(Exception):
    """The forward pass looked at a number that only the inputs or parameters determine."""


COMPOSITES: Mapping[Callable[..., Any], OpOverload] = {
    F.linear: aten.linear.default,
    F.bilinear: aten.bilinear.default,
    F.scaled_dot_product_attention: aten.scaled_dot_product_attention.default,
    F.batch_norm: aten.batch_norm.default,
    F.layer_norm: aten.layer_norm.default,
    F.group_norm: aten.group_norm.default,
    F.instance_norm: aten.instance_norm.default,
    F.rms_norm: aten.rms_norm.default,
    F.dropout: aten.dropout.default,
    F.dropout1d: aten.dropout.default,
    F.dropout2d: aten.dropout.default,
    F.dropout3d: aten.dropout.default,
    F.alpha_dropout: aten.dropout.default,
    F.feature_alpha_dropout: aten.dropout.default,
    torch.batch_norm: aten.batch_norm.default,
    torch.layer_norm: aten.layer_norm.default,
    torch.group_norm: aten.group_norm.default,
    torch.instance_norm: aten.instance_norm.default,
    torch.rms_norm: aten.rms_norm.default,
    torch.dropout: aten.dropout.default,
    torch.einsum: aten.einsum.default,
    torch._grouped_mm: aten._grouped_mm.default,
    torch.lstm: aten.lstm.input,
    torch.gru: aten.gru.input,
    torch.rnn_tanh: aten.rnn_tanh.input,
    torch.rnn_relu: aten.rnn_relu.input,
    torch.lstm_cell: aten.lstm_cell.default,
    torch.gru_cell: aten.gru_cell.default,
    torch.rnn_tanh_cell: aten.rnn_tanh_cell.default,
    torch.rnn_relu_cell: aten.rnn_relu_cell.default,
}
PACKED = {
    aten.lstm.input: aten.lstm.data,
    aten.gru.input: aten.gru.data,
    aten.rnn_tanh.input: aten.rnn_tanh.data,
    aten.rnn_relu.input: aten.rnn_relu.data,
}
_device_of = torch.Tensor.device.__get__


def record(
    network: nn.Module, example_inputs: ExampleInputs, *, training: bool, numbers: bool = False
) -> Recording:
    """Run a copy of the network in training or evaluation mode and return what it did.

    `numbers`: compute the forward pass, instead of its shapes alone.

    Raises:
        NoNumbersError: without numbers, the forward pass cannot go on.
        GraphError: it made too many calls, or a lazy layer has no shape.
    """
    recorder = _Recorder(network, numbers)
    replica = copy_network(network, recorder.with_numbers if numbers else recorder.stand_in)
    replica.train(training)
    args, kwargs = convert(arguments(example_inputs), recorder.take_input)
    for name, tensor in replica.named_parameters():
        recorder.ledger.recording.parameters[recorder.enter(tensor)] = name
    with random_state_kept(network), torch.no_grad(), recorder, _Composites(recorder):
        result = replica(*args, **kwargs)
    recording = recorder.ledger.recording
    recording.outputs = [recorder.ledger.read(recorder.known(tensor)) for tensor in tensors(result)]
    return recording


def keeps_numbers(tensor: Tensor) -> bool:
    """Return whether a buffer or an input of integers keeps its numbers while a forward pass is recorded."""
    few = tensor.numel() <= (SMALL_BUFFER if tensor.is_floating_point() else NUMBERS_KEPT)
    return few and not (tensor.is_meta or tensor.is_complex() or isinstance(tensor, nn.Parameter))


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every ATen call, runs it on shapes where numbers are missing, and enters it into the ledger."""

    def __init__(self, network: nn.Module, numbers: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = Ledger()
        self.numbers = numbers
        self.paused = False
        first = next((p for p in network.parameters()), None)
        self.device = torch.device("cpu") if first is None or first.is_meta else first.device
        self._alive: list[Tensor] = []
        self._numberless: set[int] = set()

    def stand_in(self, tensor: Tensor) -> Tensor:
        """Return what stands for a tensor of the network: its shape, or a copy of its few numbers."""
        if keeps_numbers(tensor):
            return tensor.detach().clone()
        shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape

    def with_numbers(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor of the network, in a type that every operator has on the CPU."""
        half = tensor.dtype in (torch.float16, torch.bfloat16) and tensor.device.type == "cpu"
        copy = tensor.detach().to(torch.float32 if half else tensor.dtype, copy=True)
        return nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy

    def take_input(self, tensor: Tensor) -> Tensor:
        """Return what stands for an example input, and enter it as one."""
        plain = tensor.detach()
        stand_in = self.with_numbers(plain) if self.numbers else self._shape_unless_integer(plain)
        self.ledger.recording.inputs.append(self.enter(stand_in))
        return stand_in

    def _shape_unless_integer(self, tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() or tensor.is_complex():
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        return self.stand_in(tensor)

    def enter(self, tensor: Tensor) -> int:
        """Enter a tensor that no call made, and return its value."""
        self._alive.append(tensor)
        return self.ledger.define(id(tensor), tensor.shape, tensor.dtype)

    def known(self, tensor: Tensor) -> int:
        """Return a tensor's key, entering it first if no call made it."""
        if not self.ledger.knows(id(tensor)):
            self.enter(tensor)
        return id(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        result = self._run(func, args, kwargs)
        self.write_down(func, bind(func, args, kwargs), result)
        return result

    def write_down(self, operator: OpOverload, named: Mapping[str, Any], result: Any) -> None:
        """Enter a call into the ledger."""
        names = {name: self._keys(value) for name, value in named.items()}
        flat = result if isinstance(result, (tuple, list)) else (result,)
        results = [
            (id(item), item) if isinstance(item, Tensor) else None
            for each in flat
            for item in (each if isinstance(each, (tuple, list)) else (each,))
        ]
        self._alive.extend(item[1] for item in results if item is not None)
        self.ledger.call(operator, names, results)

    def _keys(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Key(self.known(value))
        if isinstance(value, (list, tuple)):
            return [self._keys(item) for item in value]
        return value

    def _run(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if self.numbers:
            return func(*args, **kwargs)
        operands = list(_in_arguments((args, kwargs)))
        if operands:
            on_shapes = any(self._is_numberless(t) for t in operands)
        else:
            on_shapes = _is_large(func, args, kwargs)
        if torch.Tag.nondeterministic_seeded in func.tags:
            on_shapes = True
        if not on_shapes:
            self.ledger.recording.looked_at_data |= _looks_at_data(func, args)
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            raise NoNumbersError("the control flow depends on a tensor's values")
        shape = pointwise_shape(func, args)
        if shape is not None:
            return shape
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            args = (args[0], [p for i in args[1] for p in self._positions(i)], *args[2:])
        return self._run_on_shapes(func, args, kwargs)

    def _run_on_shapes(self, func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        originals: dict[int, Tensor] = {}

        def without_numbers(value: Any) -> Any:
            if isinstance(value, Tensor):
                if value.is_meta:
                    return value
                shape = shape_of(value)
                originals[id(shape)] = value
                return shape
            if isinstance(value, (list, tuple)):
                return type(value)([without_numbers(item) for item in value])
            return value

        shapes = [without_numbers(value) for value in args]
        named = {
            name: torch.device("meta") if name == "device" and value is not None else without_numbers(value)
            for name, value in kwargs.items()
        }
        names = parameter_names(func)
        if "device" in names and "device" not in named and len(shapes) <= names.index("device"):
            named["device"] = torch.device("meta")
        result = func(*shapes, **named)
        written, _ = effects(func)
        if originals and written:
            for name, value in bind(func, args, kwargs).items():
                if name in written:
                    self._numberless.update(_storage(t) for t in _in_arguments(value) if not t.is_meta)
        if isinstance(result, (tuple, list)):
            return type(result)([originals.get(id(item), item) for item in result])
        return originals.get(id(result), result)

    def _is_numberless(self, tensor: Tensor) -> bool:
        return tensor.is_meta or (bool(self._numberless) and _storage(tensor) in self._numberless)

    def _positions(self, index: Tensor | None) -> list[Tensor | None]:
        """Return an index without masks, whose shapes would depend on numbers."""
        if index is None or index.dtype not in MASKS or self._is_numberless(index):
            return [index]
        self.ledger.recording.looked_at_data = True
        return list(index.nonzero(as_tuple=True))

    def run_whole(
        self, func: Callable[..., Any], operator: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Run a function as one call of an operator."""
        if operator in PACKED and not isinstance(args[3], bool):
            operator = PACKED[operator]
        if operator is aten.einsum.default:
            equation, *operands = args
            if not isinstance(equation, str):
                return func(*args, **kwargs)
            named: Mapping[str, Any] = {"equation": equation, "tensors": _unpacked(operands)}
        else:
            named = dict(zip(_names(func, operator), args, strict=False)) | dict(kwargs)
        self.paused = True
        try:
            result = None if self.numbers else whole_shape(operator, named)
            if result is None:
                result = self._call(func, args, kwargs)
        finally:
            self.paused = False
        self.write_down(operator, named, result)
        return result

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if not self.numbers and any(self._is_numberless(t) for t in _in_arguments((args, kwargs))):
            args, kwargs = convert((args, kwargs), lambda t: t if t.is_meta else shape_of(t))
        return func(*args, **kwargs)


class _Composites(TorchFunctionMode):
    """Catches functions before they fall into parts, and answers for the device that shapes stand for."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func == _device_of:
            device = func(*args)
            return self.recorder.device if device.type == "meta" else device
        operator = COMPOSITES.get(func)
        # Below vmap and grad the tensors here are wrappers, whose shapes are not those of the call.
        if operator is None or torch._C._functorch.peek_interpreter_stack() is not None:
            return func(*args, **kwargs)
        return self.recorder.run_whole(func, operator, args, kwargs)


@cache
def _names(func: Callable[..., Any], operator: OpOverload) -> tuple[str, ...]:
    if isinstance(func, BuiltinFunctionType):
        return parameter_names(operator)
    return tuple(signature(func).parameters)


def _unpacked(operands: Sequence[Any]) -> list[Any]:
    return (
        list(operands[0]) if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else list(operands)
    )


def _in_arguments(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _in_arguments(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _in_arguments(item)


def _looks_at_data(func: OpOverload, args: Sequence[Any]) -> bool:
    """Return whether a call's result, or its shape, lets the forward pass act on numbers."""
    if func is aten.index.Tensor:
        return any(index is not None and index.dtype in MASKS for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _is_large(func: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether a call that takes no tensor makes one whose numbers are not worth their memory."""
    size = args[0] if args and isinstance(args[0], (list, tuple)) else kwargs.get("size", ())
    return math.prod(size) > FLOATS_KEPT
