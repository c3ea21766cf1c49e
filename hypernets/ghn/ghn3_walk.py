"""The autograd graph of a network's output, walked from the output back: the raw material of GHN-3's graph.

The order in which nodes are met is the published implementation's: later passes and the trained network
depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from metainit.errors import MismatchError

Inputs = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Step:
    """A node of the walk: a parameter, or an operation of autograd that takes no parameter directly.

    `label`: the parameter's dotted name, or the name of the operation's derivative. `parameter`: its name in
    `named_parameters()`, `attribute` its name in the module `owner`. `kernel`: of a pooling.
    """

    label: str
    parameter: str = ""
    owner: nn.Module | None = None
    attribute: str = ""
    shape: tuple[int, ...] = ()
    kernel: tuple[int, int] | None = None

    @property
    def is_bias(self) -> bool:
        """Whether it is a parameter that is added."""
        return "bias" in self.attribute

    @property
    def is_weight(self) -> bool:
        """Whether it is a parameter that multiplies."""
        return "weight" in self.attribute


class Digraph:
    """Nodes in an order, and edges between their places; passes change it in place."""

    def __init__(self, nodes: list[Step]) -> None:
        self.nodes = nodes
        self.after: list[set[int]] = [set() for _ in nodes]
        self.before: list[set[int]] = [set() for _ in nodes]

    def connect(self, source: int, target: int) -> None:
        """Add an edge."""
        self.after[source].add(target)
        self.before[target].add(source)

    def cut(self, source: int, target: int) -> None:
        """Take an edge away, if it is there."""
        self.after[source].discard(target)
        self.before[target].discard(source)

    def bridge(self, node: int) -> None:
        """Connect all that leads to a node with all that it leads to, and take the node's edges away."""
        for source in self.before[node]:
            for target in self.after[node] - {source}:
                self.connect(source, target)
        for source in list(self.before[node]):
            self.cut(source, node)
        for target in list(self.after[node]):
            self.cut(node, target)

    def reordered(self, order: list[int]) -> Digraph:
        """Return the graph of some nodes in a new order."""
        place = {old: new for new, old in enumerate(order)}
        made = Digraph([self.nodes[old] for old in order])
        for old in order:
            for target in self.after[old]:
                if target in place:
                    made.connect(place[old], place[target])
        return made


def walk(network: nn.Module, example_inputs: Inputs) -> Digraph:
    """Run a network on meta tensors, and walk its graph from each output back to the parameters.

    A network that needs values (it reads a tensor's elements) is run on its own weights and inputs instead.

    Raises:
        MismatchError: no output depends on a parameter that requires a gradient.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    outputs, names = _run(network, inputs)
    roots = [leaf.grad_fn for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]
    found = [root for root in roots if root is not None]
    if not found:
        raise MismatchError(
            f"no output of {type(network).__name__} depends on a parameter that requires a gradient: "
            "give example inputs that the forward pass uses, and set requires_grad"
        )
    return _walk(found, _parameter_steps(network, names))


def _run(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Any, dict[str, Tensor]]:
    """Return the outputs and the leaves that stood for the parameters."""
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        try:
            leaves = {
                name: torch.empty_like(p, device="meta").requires_grad_(p.requires_grad)
                for name, p in network.named_parameters()
            }
            buffers = {name: torch.empty_like(b, device="meta") for name, b in network.named_buffers()}
            given = tuple(t.detach().to("meta") for t in inputs)
            return functional_call(network, {**leaves, **buffers}, given), leaves
        except (RuntimeError, TypeError, ValueError) as error:
            if any(p.is_meta for p in network.parameters()):
                raise MismatchError(
                    f"{type(network).__name__} cannot be run without values ({error}): give it weights, on "
                    "any device but meta"
                ) from error
        # Not under the handler: an error of the network itself is raised as it is.
        leaves = {name: p.detach().requires_grad_(p.requires_grad) for name, p in network.named_parameters()}
        buffers = {name: b.clone() for name, b in network.named_buffers()}
        given = tuple(t.detach() for t in inputs)
        return functional_call(network, {**leaves, **buffers}, given), leaves


def _parameter_steps(network: nn.Module, leaves: dict[str, Tensor]) -> dict[int, Step]:
    """Return the step of each parameter by the identity of the leaf that stood for it."""
    first = {id(p): name for name, p in network.named_parameters()}
    steps = {}
    for path, module in network.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            # Of a tied parameter the last place counts, as in the published graphs.
            name = first[id(parameter)]
            label = f"{path}.{attribute}" if path else attribute
            steps[id(leaves[name])] = Step(label, name, module, attribute, tuple(parameter.shape))
    return steps


@dataclass(eq=False)
class _Visit:
    """A derivative on the way: where edges to it end, where its own begin, and what is left to follow."""

    start: int
    rest: Iterator[Any]


def _walk(roots: list[Any], parameters: dict[int, Step]) -> Digraph:
    steps: list[Step] = []
    edges: list[tuple[int, int]] = []
    places: dict[Any, int] = {}  # a derivative or a leaf -> the node that its results come from

    def number(step: Step) -> int:
        steps.append(step)
        return len(steps) - 1

    def enter(derivative: Any) -> _Visit:
        children = [child for child, _ in derivative.next_functions if child is not None]
        leaves = list(dict.fromkeys(child for child in children if hasattr(child, "variable")))
        for leaf in leaves:
            if leaf not in places:
                # A leaf that is no parameter of the network has no name and no owner.
                places[leaf] = number(parameters.get(id(leaf.variable)) or Step("leaf"))
        mine = [places[leaf] for leaf in leaves] or [number(_operation(derivative))]
        last = next((c for c in reversed(children) if hasattr(c, "variable")), None)
        places[derivative] = mine[-1] if last is None else places[last]
        return _Visit(mine[0], iter(children))

    for root in roots:
        if root in places:
            continue
        stack = [enter(root)]
        while stack:
            visit = stack[-1]
            child = next(visit.rest, None)
            if child is None:
                stack.pop()
                continue
            if child not in places:
                stack.append(enter(child))
            place = places[child]
            if place != visit.start:
                # A bias comes after the weight of its layer, anything else before what uses it.
                added = hasattr(child, "variable") and steps[place].is_bias
                edges.append((visit.start, place) if added else (place, visit.start))
    graph = Digraph(steps)
    for source, target in edges:
        graph.connect(source, target)
    return graph


def _operation(derivative: Any) -> Step:
    sizes = getattr(derivative, "_saved_kernel_size", None)
    kernel = (sizes[0], sizes[-1]) if isinstance(sizes, tuple) and sizes else None
    return Step(type(derivative).__name__, kernel=kernel)
