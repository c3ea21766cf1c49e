"""The architecture graph: operations as nodes, the parameters that they carry, and the way data take.

A graph says everything that a hypernetwork sees of a network, and nothing else travels to a server: no code,
no weights. Nodes lie in topological order, so that an edge always goes from a lower number to a higher one.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from metainit.card import canonical_json


class Operation(StrEnum):
    """What a node does. The order is that of the embedding's rows: append, never insert."""

    INPUT = "input"
    OUTPUT = "output"
    PARAMETER = "parameter"
    CONV = "conv"
    DEPTHWISE_CONV = "depthwise_conv"
    TRANSPOSED_CONV = "transposed_conv"
    LINEAR = "linear"
    EMBEDDING = "embedding"
    RECURRENT = "recurrent"
    BATCH_NORM = "batch_norm"
    LAYER_NORM = "layer_norm"
    GROUP_NORM = "group_norm"
    RMS_NORM = "rms_norm"
    RELU = "relu"
    LEAKY_RELU = "leaky_relu"
    GELU = "gelu"
    SILU = "silu"
    SIGMOID = "sigmoid"
    TANH = "tanh"
    SINE = "sine"
    ACTIVATION = "activation"
    SOFTMAX = "softmax"
    ATTENTION = "attention"
    ADD = "add"
    MULTIPLY = "multiply"
    MATMUL = "matmul"
    CONCAT = "concat"
    MAX_POOL = "max_pool"
    AVERAGE_POOL = "average_pool"
    MEAN = "mean"
    UPSAMPLE = "upsample"
    SCATTER = "scatter"
    GATHER = "gather"
    OTHER = "other"


class Role(StrEnum):
    """What a parameter is to its operation.

    `weight`: a matrix or kernels. `bias`: added. `norm_weight`: the gain of a normalization. `scale`: another
    factor (layer scale, a learned slope). `table`: rows that are looked up or added (embeddings, positions,
    class tokens).
    """

    WEIGHT = "weight"
    BIAS = "bias"
    NORM_WEIGHT = "norm_weight"
    SCALE = "scale"
    TABLE = "table"


class SkipReason(StrEnum):
    """Why a parameter is not predicted."""

    UNREACHED = "the forward pass does not reach it"
    KEPT = "the caller keeps it"
    NOT_FLOATING = "it does not hold real floating-point numbers"
    EMPTY = "it has no elements"
    OUTSIDE_VOCABULARY = "the hypernetwork has no word for it"


@dataclass(frozen=True)
class Parameter:
    """One of a network's parameters: its name in `named_parameters()`, its shape and its role.

    `transposed`: the input dimension comes before the output dimension, as in a transposed convolution.
    `spatial`: the height and width of the map whose flattened values a linear weight is applied to.

    Example:
        >>> Parameter('conv.weight', (8, 3, 5, 5), Role.WEIGHT).matrix
        (8, 3, 5, 5)
        >>> Parameter('fc.bias', (10,), Role.BIAS).matrix
        (10, 1, 1, 1)
        >>> Parameter('fc.weight', (10, 392), Role.WEIGHT, spatial=(7, 7)).matrix
        (10, 8, 7, 7)
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    transposed: bool = False
    spatial: tuple[int, int] = (1, 1)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int, int, int]:
        """The shape as (out, in, kernel height, kernel width).

        A table ``(1, rows, width)`` is ``(rows, width, 1, 1)``; of a kernel with more than two spatial
        dimensions the last ones are taken together.
        """
        shape = self.shape
        while self.role is not Role.WEIGHT and len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
        if self.transposed and len(shape) > 1:
            shape = (shape[1], shape[0], *shape[2:])
        out, inner, height = (*shape, 1, 1, 1)[:3]
        if self.spatial != (1, 1):
            return out, inner // math.prod(self.spatial), *self.spatial
        return out, inner, height, math.prod(shape[3:])

    @property
    def fan_in(self) -> int:
        """The number of inputs that one output is a sum over."""
        return max(1, math.prod(self.matrix[1:]))


@dataclass(frozen=True)
class Node:
    """An operation and the parameters that it carries, its weight first.

    `groups`, `stride`, `dilation`: of a convolution or pooling, 1 elsewhere; `kernel`: of a pooling, else
    what the weight says.
    """

    operation: Operation
    parameters: tuple[Parameter, ...] = ()
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    kernel: int = 1


@dataclass(frozen=True)
class Edge:
    """The result of `source` is operand number `operand` of `target`."""

    source: int
    target: int
    operand: int = 0


@dataclass(frozen=True)
class ArchitectureGraph:
    """Nodes in topological order, edges between them, and the parameters that are left out on purpose.

    Every parameter of the network is carried by exactly one node, or is in `skipped`.

    Raises:
        ValueError: an edge does not go forward, or a parameter is named twice.

    Example:
        >>> weight = Parameter('weight', (3, 2), Role.WEIGHT)
        >>> graph = ArchitectureGraph(
        ...     (Node(Operation.INPUT), Node(Operation.LINEAR, (weight,)), Node(Operation.OUTPUT)),
        ...     (Edge(0, 1), Edge(1, 2)),
        ... )
        >>> [p.name for p in graph.parameters]
        ['weight']
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    skipped: dict[str, SkipReason] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the graph is one."""
        for edge in self.edges:
            if not 0 <= edge.source < edge.target < len(self.nodes):
                raise ValueError(
                    f"edge {edge.source} -> {edge.target}: expected a way forward between "
                    f"{len(self.nodes)} nodes"
                )
        names = [p.name for p in self.parameters] + list(self.skipped)
        if len(set(names)) != len(names):
            twice = sorted(name for name, count in Counter(names).items() if count > 1)
            raise ValueError(f"named twice: {', '.join(twice[:5])}")

    @property
    def parameters(self) -> list[Parameter]:
        """All parameters that nodes carry, in the order of the nodes."""
        return [p for _, p in self.carried()]

    def carried(self) -> Iterator[tuple[int, Parameter]]:
        """Iterate over (number of the node, parameter)."""
        return ((i, p) for i, node in enumerate(self.nodes) for p in node.parameters)

    @property
    def numel(self) -> int:
        """The number of elements of all parameters that nodes carry."""
        return sum(p.numel for p in self.parameters)

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the graph's canonical JSON."""
        from hypernets.architecture.serialize import to_json

        return hashlib.sha256(canonical_json(to_json(self)).encode()).hexdigest()
