"""Graphs to test on: small, random, and with every role."""

from __future__ import annotations

import random

from hypernets.architecture.graph import ArchitectureGraph, Edge, Node, Operation, Parameter, Role


def every_role() -> ArchitectureGraph:
    """Return a chain whose parameters have every role and layout."""
    nodes = (
        Node(Operation.INPUT),
        Node(Operation.CONV, (Parameter("conv.weight", (40, 3, 3, 3), Role.WEIGHT),
                              Parameter("conv.bias", (40,), Role.BIAS)), kernel=3),
        Node(Operation.DEPTHWISE_CONV, (Parameter("deep.weight", (40, 1, 9, 5), Role.WEIGHT),), groups=40),
        Node(Operation.BATCH_NORM, (Parameter("norm.weight", (40,), Role.NORM_WEIGHT),
                                    Parameter("norm.bias", (40,), Role.BIAS))),
        Node(Operation.TRANSPOSED_CONV,
             (Parameter("up.weight", (40, 6, 2, 2), Role.WEIGHT, transposed=True),)),
        Node(Operation.MULTIPLY, (Parameter("gamma", (1, 6, 1, 1), Role.SCALE),)),
        Node(Operation.EMBEDDING, (Parameter("words", (50, 12), Role.TABLE),)),
        Node(Operation.ADD, (Parameter("positions", (1, 17, 12), Role.TABLE),)),
        Node(Operation.LINEAR, (Parameter("fc.weight", (10, 98), Role.WEIGHT, spatial=(7, 7)),
                                Parameter("fc.bias", (10,), Role.BIAS))),
        Node(Operation.OUTPUT),
    )  # fmt: skip
    return ArchitectureGraph(nodes, tuple(Edge(i, i + 1) for i in range(len(nodes) - 1)))


def random_graph(seed: int, size: int = 12) -> ArchitectureGraph:
    """Return a random graph of linear layers and activations; every node but the first has a way in."""
    rng = random.Random(seed)
    kinds = (Operation.RELU, Operation.ADD, Operation.LINEAR, Operation.CONV)
    nodes, edges = [Node(Operation.INPUT)], []
    for i in range(1, size):
        kind = rng.choice(kinds)
        shape = {Operation.LINEAR: (rng.randint(1, 9), 4), Operation.CONV: (5, rng.randint(1, 6), 3, 3)}.get(
            kind
        )
        carried = () if shape is None else (Parameter(f"{i}.weight", shape, Role.WEIGHT),)
        nodes.append(Node(kind, carried))
        sources = rng.sample(range(i), k=min(i, rng.randint(1, 2)))
        edges += [Edge(s, i, operand) for operand, s in enumerate(sources)]
    return ArchitectureGraph(tuple(nodes), tuple(edges))


def relabelled(graph: ArchitectureGraph, seed: int) -> ArchitectureGraph:
    """Return the same graph with its nodes in another topological order."""
    rng = random.Random(seed)
    before: dict[int, set[int]] = {i: set() for i in range(len(graph.nodes))}
    for edge in graph.edges:
        before[edge.target].add(edge.source)
    order: list[int] = []
    while len(order) < len(graph.nodes):
        ready = [i for i, needs in before.items() if i not in order and needs <= set(order)]
        order.append(rng.choice(ready))
    new = {old: place for place, old in enumerate(order)}
    edges = tuple(Edge(new[e.source], new[e.target], e.operand) for e in graph.edges)
    return ArchitectureGraph(tuple(graph.nodes[i] for i in order), edges, graph.skipped)
