"""The other tracer: the same recording from `torch.export`, for what cannot be recorded, and as a peer."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from hypernets.architecture.copying import copy_network, random_state_kept
from hypernets.architecture.inputs import ExampleInputs, arguments, convert, tensors
from hypernets.architecture.recording import Key, Ledger, Recording, bind, effects, keys

BLOCKS = {
    "wrap_with_set_grad_enabled": 1,
    "wrap_with_autocast": 4,
}
"""Calls of a block of code -> which argument is the block; what follows are its inputs."""


class UnknownCallError(Exception):
    """The exported program holds a call that is no ATen operator."""


def export(network: nn.Module, example_inputs: ExampleInputs, *, training: bool) -> Recording:
    """Export a copy of the network in training or evaluation mode and return what it does.

    Raises:
        UnknownCallError: the exported program holds control flow.
        Exception: whatever the forward pass or `torch.export` raises.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    def fake(tensor: Tensor) -> Tensor:
        device = "cpu" if tensor.is_meta else tensor.device
        with mode:
            shape = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
            return nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape

    replica = copy_network(network, fake)
    replica.train(training)
    args, kwargs = convert(arguments(example_inputs), lambda t: fake(t.detach()))
    with random_state_kept(network), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of exporting, which nobody asked for: the program is thrown away.
        program = torch.export.export(_Flat(replica), args, kwargs, strict=False)
    return _Reader(program, replica).read()


class _Flat(nn.Module):
    """A network that returns the tensors in its output, whatever held them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return list(tensors(self.network(*args, **kwargs)))


class _Reader:
    """Enters the calls of an exported program into a ledger, in order."""

    def __init__(self, program: torch.export.ExportedProgram, replica: nn.Module) -> None:
        self.program = program
        self.ledger = Ledger()
        self.found: dict[Node, Any] = {}
        self.placeholders: dict[Node, int] = {}
        first_names = {id(p): name for name, p in replica.named_parameters()}
        every = replica.named_parameters(remove_duplicate=False)
        self.names = {f"network.{name}": first_names[id(p)] for name, p in every}

    def read(self) -> Recording:
        signature, recording = self.program.graph_signature, self.ledger.recording
        outputs = self._run(self.program.graph_module, None)
        for node in self.program.graph.find_nodes(op="placeholder"):
            if isinstance(self.found[node], Key):
                value = self.placeholders[node]
                if node.name in signature.inputs_to_parameters:
                    recording.parameters[value] = self.names[signature.inputs_to_parameters[node.name]]
                elif node.name in signature.user_inputs:
                    recording.inputs.append(value)
        user = set(signature.user_outputs)
        for node in _nodes(outputs):
            if node.name in user and isinstance(self.found[node], Key):
                recording.outputs.append(self.ledger.read(self.found[node].name))
        return recording

    def _run(self, module: GraphModule, inputs: list[Any] | None) -> Any:
        given = iter(inputs or ())
        for node in module.graph.nodes:
            if node.op == "placeholder":
                self.found[node] = self._enter(node) if inputs is None else next(given)
            elif node.op == "get_attr":
                self.found[node] = self._attribute(module, node)
            elif node.op == "call_function":
                self.found[node] = self._call(module, node)
            elif node.op == "output":
                return node.args[0]
        raise AssertionError("a graph without an output")

    def _enter(self, node: Node) -> Any:
        tensor = node.meta.get("val")
        if not isinstance(tensor, Tensor):
            return None
        self.placeholders[node] = self.ledger.define(node, tensor.shape, tensor.dtype)
        return Key(node)

    def _attribute(self, module: GraphModule, node: Node) -> Any:
        value = operator.attrgetter(str(node.target))(module)
        if not isinstance(value, Tensor):
            return value
        self.ledger.define(node, value.shape, value.dtype)
        return Key(node)

    def _call(self, module: GraphModule, node: Node) -> Any:
        target = node.target
        args, kwargs = self._look_up(node.args), self._look_up(node.kwargs)
        if target is operator.getitem:
            return args[0][args[1]] if isinstance(args[0], (list, tuple)) else None
        if isinstance(target, HigherOrderOperator):
            return self._block(target, args)
        if not isinstance(target, OpOverload):
            return None  # Arithmetic on sizes.
        value, named = node.meta.get("val"), bind(target, args, kwargs)
        written = [key for name in effects(target)[0] for key in keys(named.get(name))]
        results: list[tuple[Hashable, Tensor] | None] = []
        for i, each in enumerate(value if isinstance(value, (list, tuple)) else (value,)):
            # What is written in place comes back as the result.
            key: Hashable = written[i] if i < len(written) else (node, i)
            results.append((key, each) if isinstance(each, Tensor) else None)
        self.ledger.call(target, named, results)
        names = [Key(result[0]) if result is not None else None for result in results]
        return names if isinstance(value, (list, tuple)) else names[0]

    def _block(self, target: HigherOrderOperator, args: list[Any]) -> Any:
        position = BLOCKS.get(str(target))
        if position is None:
            raise UnknownCallError(f"the exported program calls {target}")
        return self._look_up(self._run(args[position], list(args[position + 1 :])))

    def _look_up(self, value: Any) -> Any:
        if isinstance(value, Node):
            return self.found[value]
        if isinstance(value, (list, tuple)):
            return [self._look_up(item) for item in value]
        if isinstance(value, dict):
            return {name: self._look_up(item) for name, item in value.items()}
        return value


def _nodes(value: Any) -> list[Node]:
    if isinstance(value, Node):
        return [value]
    return [node for item in value for node in _nodes(item)] if isinstance(value, (list, tuple)) else []
