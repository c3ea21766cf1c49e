"""Architecture graphs as JSON: what travels to a server instead of code and weights.

Version 1::

    {"version": 1,
     "nodes": [{"operation": "conv", "parameters": [{"name": "conv.weight", "shape": [8, 3, 3, 3],
                                                     "role": "weight"}], "stride": 2}, ...],
     "edges": [[source, target, operand], ...],
     "skipped": {"head.bias": "kept", ...}}

What has its default value is left out, so that equal graphs have equal JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from hypernets.architecture.graph import (
    ArchitectureGraph,
    Edge,
    Node,
    Operation,
    Parameter,
    Role,
    SkipReason,
)
from metainit.errors import GraphError, suggestion

VERSION = 1
Member = TypeVar("Member", Operation, Role, SkipReason)
SETTINGS = ("groups", "stride", "dilation", "kernel")
OPERATIONS = {operation.value: operation for operation in Operation}
ROLES = {role.value: role for role in Role}
REASONS = {reason.name.lower(): reason for reason in SkipReason}


@dataclass(frozen=True)
class Limits:
    """What a graph from outside may cost: anything above is refused before it is built.

    `characters` of the text, `nodes`, `edges`, `parameters` (carried and skipped), `elements` of all
    parameters together, `dimensions` of one parameter, `name_length`, and `setting` (a stride, a number of
    groups).
    """

    characters: int = 32_000_000
    nodes: int = 20_000
    edges: int = 100_000
    parameters: int = 100_000
    elements: int = 4_000_000_000
    dimensions: int = 8
    name_length: int = 300
    setting: int = 1_000_000


def to_json(graph: ArchitectureGraph) -> dict[str, Any]:
    """Return the graph as a JSON value of version 1.

    Example:
        >>> to_json(ArchitectureGraph((Node(Operation.INPUT), Node(Operation.OUTPUT)), (Edge(0, 1),)))
        {'version': 1, 'nodes': [{'operation': 'input'}, {'operation': 'output'}], 'edges': [[0, 1, 0]]}
    """
    value: dict[str, Any] = {
        "version": VERSION,
        "nodes": [_node_to_json(node) for node in graph.nodes],
        "edges": [[edge.source, edge.target, edge.operand] for edge in graph.edges],
    }
    if graph.skipped:
        value["skipped"] = {name: reason.name.lower() for name, reason in graph.skipped.items()}
    return value


def _node_to_json(node: Node) -> dict[str, Any]:
    value: dict[str, Any] = {"operation": node.operation.value}
    if node.parameters:
        value["parameters"] = [_parameter_to_json(p) for p in node.parameters]
    return value | {name: getattr(node, name) for name in SETTINGS if getattr(node, name) != 1}


def _parameter_to_json(parameter: Parameter) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": parameter.name,
        "shape": list(parameter.shape),
        "role": parameter.role.value,
    }
    if parameter.transposed:
        value["transposed"] = True
    if parameter.spatial != (1, 1):
        value["spatial"] = list(parameter.spatial)
    return value


def from_json(value: str | bytes | dict[str, Any], limits: Limits | None = None) -> ArchitectureGraph:
    """Read a graph from JSON text, or from the value that it holds; nothing in it is trusted.

    Raises:
        GraphError: the text is no JSON, the value no graph, a graph that is not a way forward, or one above
            a limit. The message says where.

    Example:
        >>> from_json('{"version": 1, "nodes": [{"operation": "input"}], "edges": [[0, 0]]}')
        Traceback (most recent call last):
        ...
        metainit.errors.GraphError: architecture graph: edges[0]: expected a source below its target and a \
target below 1 (the number of nodes), got 0 -> 0: nodes lie in topological order, without cycles
    """
    return _Reader(limits or Limits()).graph(value)


class _Reader:
    """Checks a value from the outside in, and counts what it has used of the limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.elements = 0
        self.names: set[str] = set()

    def graph(self, value: Any) -> ArchitectureGraph:
        if isinstance(value, (str, bytes, bytearray)):
            value = self._parse(value)
        top = _object(value, "", required=("version", "nodes", "edges"), optional=("skipped",))
        if type(top["version"]) is not int or top["version"] != VERSION:
            _refuse("version", f"{VERSION}, the only one that this metainit reads", top["version"])
        nodes = tuple(
            self._node(node, f"nodes[{i}]")
            for i, node in enumerate(_list(top["nodes"], "nodes", self.limits.nodes))
        )
        edges = tuple(
            self._edge(edge, f"edges[{i}]", len(nodes))
            for i, edge in enumerate(_list(top["edges"], "edges", self.limits.edges))
        )
        if len(set(edges)) != len(edges):
            _refuse("edges", "each edge once", f"{len(edges) - len(set(edges))} repeated")
        return ArchitectureGraph(nodes, edges, self._skipped(top.get("skipped", {})))

    def _parse(self, text: str | bytes | bytearray) -> Any:
        if len(text) > self.limits.characters:
            raise GraphError(
                f"architecture graph: the text has {len(text)} characters, expected at most "
                f"{self.limits.characters}"
            )
        try:
            return json.loads(text, object_pairs_hook=_each_key_once)
        except (ValueError, RecursionError) as error:
            raise GraphError(f"architecture graph: the text is not valid JSON: {str(error)[:200]}") from error

    def _node(self, value: Any, where: str) -> Node:
        node = _object(value, where, required=("operation",), optional=("parameters", *SETTINGS))
        parameters = tuple(
            self._parameter(p, f"{where}.parameters[{i}]")
            for i, p in enumerate(
                _list(node.get("parameters", []), f"{where}.parameters", self.limits.parameters)
            )
        )
        settings = {
            name: _integer(node[name], f"{where}.{name}", 1, self.limits.setting)
            for name in SETTINGS
            if name in node
        }
        return Node(_member(node["operation"], f"{where}.operation", OPERATIONS), parameters, **settings)

    def _parameter(self, value: Any, where: str) -> Parameter:
        optional = ("transposed", "spatial")
        parameter = _object(value, where, required=("name", "shape", "role"), optional=optional)
        name = self._name(parameter["name"], f"{where}.name")
        sizes = _list(parameter["shape"], f"{where}.shape", self.limits.dimensions)
        shape = tuple(
            _integer(size, f"{where}.shape[{i}]", 1, self.limits.elements) for i, size in enumerate(sizes)
        )
        transposed = parameter.get("transposed", False)
        if type(transposed) is not bool:
            _refuse(f"{where}.transposed", "true or false", transposed)
        role = _member(parameter["role"], f"{where}.role", ROLES)
        spatial = (1, 1)
        if "spatial" in parameter:
            spatial = self._spatial(parameter["spatial"], f"{where}.spatial", shape, role, transposed)
        result = Parameter(name, shape, role, transposed, spatial)
        self.elements += result.numel
        if self.elements > self.limits.elements:
            raise GraphError(
                f"architecture graph: {where}: with {name!r} of shape {shape} all parameters together have "
                f"{self.elements} elements, expected at most {self.limits.elements}"
            )
        return result

    def _spatial(
        self, value: Any, where: str, shape: tuple[int, ...], role: Role, transposed: bool
    ) -> tuple[int, int]:
        """Read the height and width of a flattened map, which only a matrix of weights can have."""
        sides = _list(value, where, 2)
        if len(sides) != 2:
            _refuse(where, "[height, width]", value)
        height, width = (
            _integer(side, f"{where}[{i}]", 1, self.limits.elements) for i, side in enumerate(sides)
        )
        matrix = role is Role.WEIGHT and len(shape) == 2 and not transposed
        if not matrix or shape[1] % (height * width):
            _refuse(where, f"sides that divide the inputs of a matrix of weights, here {list(shape)}", value)
        return height, width

    def _edge(self, value: Any, where: str, nodes: int) -> Edge:
        numbers = _list(value, where, 3)
        if len(numbers) < 2:
            _refuse(where, "[source, target] or [source, target, operand]", value)
        source, target, operand = (
            _integer(number, f"{where}[{i}]", 0, self.limits.nodes)
            for i, number in enumerate((*numbers, 0)[:3])
        )
        if not source < target < nodes:
            raise GraphError(
                f"architecture graph: {where}: expected a source below its target and a target below "
                f"{nodes} (the number of nodes), got {source} -> {target}: nodes lie in topological order, "
                "without cycles"
            )
        return Edge(source, target, operand)

    def _skipped(self, value: Any) -> dict[str, SkipReason]:
        if not isinstance(value, dict):
            _refuse("skipped", "an object", value)
        return {
            self._name(name, "skipped"): _member(reason, f"skipped[{_shown(name)}]", REASONS)
            for name, reason in value.items()
        }

    def _name(self, value: Any, where: str) -> str:
        if not isinstance(value, str) or not 0 < len(value) <= self.limits.name_length:
            _refuse(where, f"a name of 1 to {self.limits.name_length} characters", value)
        if not value.isprintable():
            _refuse(where, "a name of printable characters", value)
        if value in self.names:
            _refuse(where, "a name that no other parameter has", value)
        self.names.add(value)
        if len(self.names) > self.limits.parameters:
            raise GraphError(f"architecture graph: {where}: more than {self.limits.parameters} parameters")
        return value


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object has a key twice")
    return value


def _object(value: Any, where: str, required: tuple[str, ...], optional: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, f"an object with the keys {', '.join(required)}", value)
    missing = [key for key in required if key not in value]
    if missing:
        _refuse(where, f"the key {missing[0]!r}", value)
    for key in value:
        if key not in required and key not in optional:
            _refuse(where, f"no key but {', '.join((*required, *optional))}", key)
    return value


def _list(value: Any, where: str, most: int) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        _refuse(where, "a list", value)
    if len(value) > most:
        _refuse(where, f"at most {most} entries", value)
    return list(value)


def _integer(value: Any, where: str, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        _refuse(where, f"an integer from {least} to {most}", value)
    return value


def _member(value: Any, where: str, members: dict[str, Member]) -> Member:
    if not isinstance(value, str):
        _refuse(where, f"one of {', '.join(members)}", value)
    if value not in members:
        raise GraphError(
            f"architecture graph: {where}: {_shown(value)} is not known, {suggestion(value[:50], members)}"
        )
    return members[value]


def _refuse(where: str, expected: str, got: Any) -> NoReturn:
    place = f" {where}:" if where else ""
    raise GraphError(f"architecture graph:{place} expected {expected}, got {_shown(got)}")


def _shown(value: Any) -> str:
    """Describe a value in a few printable characters, whatever it is."""
    if isinstance(value, str):
        return ascii(value) if len(value) <= 60 else f"{ascii(value[:60])}... ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > 100:
        return f"an integer of {value.bit_length()} bits"
    if value is None or isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, dict):
        return f"an object of {len(value)} keys"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return f"a {type(value).__name__}"
