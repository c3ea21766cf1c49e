"""From the walk of autograd to the graph that GHN-3 was trained on: passes over a directed graph.

Each pass reproduces one rule of the published graphs, because the trained network knows no others. Where
those rules look for parts of dotted names, these look at modules and attributes: the same for the published
networks, and right where a module's path holds such a part by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum, auto
from functools import partial

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import VIRTUAL_EDGE_CUTOFF, Word, is_table_of_positions
from hypernets.ghn.ghn3_walk import Digraph, Step
from metainit.errors import MismatchError

NORMS = (nn.BatchNorm2d, nn.LayerNorm)
MATRICES = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
POSITIONS_ATTRIBUTE = "pos_embedding"

INPUT = Step("input")
SUM = Step("AddBackward0")


class Kind(Enum):
    """What the passes make of a step."""

    PARAMETER = auto()
    MAX_POOL = auto()
    AVERAGE_POOL = auto()
    SOFTMAX = auto()
    PRODUCT = auto()
    MEAN = auto()
    POOL_TO_MEAN = auto()
    SUM = auto()
    CONCAT = auto()
    INPUT = auto()
    UNKNOWN = auto()


_OPERATIONS = {
    "MaxPool2DWithIndices": Kind.MAX_POOL,
    "AvgPool2D": Kind.AVERAGE_POOL,
    "AdaptiveAvgPool2D": Kind.POOL_TO_MEAN,
    "Softmax": Kind.SOFTMAX,
    "Mul": Kind.PRODUCT,
    "Mean": Kind.MEAN,
    "Add": Kind.SUM,
    # What is left of a linear layer whose weights are computed.
    "Addmm": Kind.SUM,
    "Addbmm": Kind.SUM,
    "Addcmul": Kind.SUM,
    "Cat": Kind.CONCAT,
    "input": Kind.INPUT,
}


def kind(step: Step) -> Kind:
    """Return what a step is."""
    if not step.parameter:
        return _OPERATIONS.get(step.label.partition("Backward")[0], Kind.UNKNOWN)
    if step.attribute == "bias" and isinstance(step.owner, NORMS):
        return Kind.UNKNOWN  # made with the weight of its normalization, by the same node
    known = isinstance(step.owner, (*NORMS, *MATRICES, nn.Embedding)) or is_position_table(step)
    return Kind.PARAMETER if known else Kind.UNKNOWN


def is_position_table(step: Step) -> bool:
    """Whether a step is a transformer's learned table of positions, ``(1, positions, width)``."""
    return step.attribute == POSITIONS_ATTRIBUTE and is_table_of_positions(step.shape)


def word(step: Step) -> Word:
    """Return the word for a step that the passes have kept."""
    owner = step.owner
    if isinstance(owner, nn.BatchNorm2d):
        return Word.BATCH_NORM
    if isinstance(owner, nn.LayerNorm):
        return Word.LAYER_NORM
    if isinstance(owner, MATRICES):
        if step.is_bias:
            return Word.BIAS
        if isinstance(owner, nn.Conv2d) and owner.groups > 1:
            return Word.DILATED_GROUPED_CONV if min(owner.dilation) > 1 else Word.GROUPED_CONV
        return Word.CONV
    return _WORDS[kind(step)]


_WORDS = {
    Kind.PARAMETER: Word.TABLE,
    Kind.MAX_POOL: Word.MAX_POOL,
    Kind.AVERAGE_POOL: Word.AVERAGE_POOL,
    Kind.SOFTMAX: Word.SOFTMAX,
    Kind.PRODUCT: Word.GATE,
    Kind.MEAN: Word.GLOBAL_AVERAGE,
    Kind.POOL_TO_MEAN: Word.GLOBAL_AVERAGE,
    Kind.SUM: Word.SUM,
    Kind.CONCAT: Word.CONCAT,
    Kind.INPUT: Word.INPUT,
}


def reduce(graph: Digraph) -> Digraph:
    """Keep the steps that GHN-3 has words for, in the order that data take."""
    graph = _keep_known(graph)
    _put_weights_before_biases(graph)
    _route_around_softmax(graph)
    graph = _keep_junctions(graph)
    graph = _with_input(graph)
    graph = graph.reordered(_topological(graph))
    _put_mean_before_classifier(graph)
    return _with_sums_of_positions(graph)


def distances(graph: Digraph, virtual: bool = True) -> Tensor:
    """Return ``(N, N)`` integers: 1 for an edge, up to the cutoff for the shortest longer way, 0 for none."""
    size = len(graph.nodes)
    pairs = [(source, target) for source in range(size) for target in graph.after[source]]
    edges = np.zeros((size, size))
    if pairs:
        edges[tuple(np.array(pairs).T)] = 1
    if virtual:
        edges = csgraph.dijkstra(sparse.csr_array(edges), unweighted=True, limit=VIRTUAL_EDGE_CUTOFF)
        edges[~np.isfinite(edges)] = 0
    return torch.from_numpy(edges.astype(np.int64))


def _keep_known(graph: Digraph) -> Digraph:
    gated = any("sigmoid" in (name := step.label.lower()) or "swish" in name for step in graph.nodes)
    kinds = {step: kind(step) for step in graph.nodes}
    inputs = {step: len(before) for step, before in zip(graph.nodes, graph.before, strict=True)}

    def kept(phase: Kind, place: int, nodes: Sequence[Step]) -> bool:
        mine = kinds[nodes[place]]
        if mine is not phase:
            return True
        if phase is Kind.PRODUCT:
            return gated and _is_gate(place, nodes)
        if phase is Kind.MEAN:
            return not gated or _is_in_head(place, nodes)
        return phase is not Kind.UNKNOWN and inputs[nodes[place]] > 1

    # The order matters: a rule that looks at a step's neighbours sees what the earlier phases have left.
    for phase in (Kind.PRODUCT, Kind.UNKNOWN, Kind.MEAN, Kind.SUM, Kind.CONCAT):
        graph = _filtered(graph, partial(kept, phase))
    return graph


def _keep_junctions(graph: Digraph) -> Digraph:
    """Drop the sums and concatenations that fewer than two ways lead to."""
    inputs = {step: len(before) for step, before in zip(graph.nodes, graph.before, strict=True)}

    def kept(phase: Kind, place: int, nodes: Sequence[Step]) -> bool:
        return kind(nodes[place]) is not phase or inputs[nodes[place]] > 1

    for phase in (Kind.SUM, Kind.CONCAT):
        graph = _filtered(graph, partial(kept, phase))
    return graph


def _filtered(graph: Digraph, kept: Callable[[int, Sequence[Step]], bool]) -> Digraph:
    stays = [kept(place, graph.nodes) for place in range(len(graph.nodes))]
    for place, stay in enumerate(stays):
        if not stay:
            graph.bridge(place)
    return graph.reordered([place for place, stay in enumerate(stays) if stay])


def _is_in_head(place: int, nodes: Sequence[Step]) -> bool:
    """Whether a step stands in the classifier: by the names of the steps met before it.

    Steps at the end of the walk, where there are no three before and one after, count as such; at its
    beginning the walk's last ones are taken for those before.
    """
    if place + 1 >= len(nodes) or place - 3 < -len(nodes):
        return True
    return any(_label(nodes, place - back).startswith(("classifier", "fc", "head")) for back in (1, 2))


def _is_gate(place: int, nodes: Sequence[Step]) -> bool:
    """Whether a product is taken for a squeeze-and-excite gate: by the steps met before and after it."""
    if _is_in_head(place, nodes):
        return False
    return (
        _label(nodes, place - 2).startswith(("hard", "sigmoid"))
        or _label(nodes, place - 3).startswith(("relu", "mean"))
        or _label(nodes, place + 1).startswith(("hard", "sigmoid", "relu"))
    )


def _label(nodes: Sequence[Step], place: int) -> str:
    return nodes[place].label.lower()


def _put_weights_before_biases(graph: Digraph) -> None:
    """Mend layers whose weight is a source and whose bias takes the data: data -> weight -> bias."""
    nodes = graph.nodes
    for place in range(len(nodes)):
        step = nodes[place]
        if graph.before[place] or not step.is_weight:
            continue
        for follower in sorted(graph.after[place]):
            softmax = kind(nodes[follower]) is Kind.SOFTMAX and not graph.before[place]
            if nodes[follower].owner is not step.owner and not softmax:
                continue
            ways = len(graph.after[place])
            if not graph.before[follower] - {place}:
                continue
            nodes[place], nodes[follower] = nodes[follower], nodes[place]
            graph.cut(place, follower)
            graph.connect(follower, place)
            if ways == 1:
                for target in sorted(graph.after[follower] - {place}):
                    graph.cut(follower, target)
                    graph.connect(place, target)


def _route_around_softmax(graph: Digraph) -> None:
    """Let what meets a softmax's result come through the softmax."""
    frozen = [set(after) for after in graph.after]
    reverse = [set(before) for before in graph.before]
    for place, step in enumerate(graph.nodes):
        if kind(step) is not Kind.SOFTMAX:
            continue
        for follower in sorted(graph.after[place]):
            for other in sorted(graph.before[follower] - {place}):
                several, direct = _ways(frozen, reverse, other, follower), other in graph.after[place]
                if several > 1 or not direct:
                    graph.cut(other, follower)
                if several == 1 and not direct:
                    graph.connect(other, place)


def _ways(after: list[set[int]], before: list[set[int]], source: int, target: int) -> int:
    """Count the simple ways between two nodes, up to two."""
    useful = {target}
    frontier = [target]
    while frontier:
        for node in before[frontier.pop()] - useful:
            useful.add(node)
            frontier.append(node)
    found = 0
    stack = [(source, frozenset({source}))]
    while stack and found < 2:
        node, passed = stack.pop()
        if node == target:
            found += 1
            continue
        stack.extend((n, passed | {n}) for n in after[node] & useful - passed)
    return found


def _with_input(graph: Digraph) -> Digraph:
    graph.nodes.append(INPUT)
    graph.after.append(set())
    graph.before.append(set())
    last = len(graph.nodes) - 1
    for place, step in enumerate(graph.nodes[:last]):
        if not graph.before[place] and step.is_weight:
            graph.connect(last, place)
    return graph


def _topological(graph: Digraph) -> list[int]:
    """Sort by generations, within one in the order in which the last predecessor was met."""
    waiting = [len(before) for before in graph.before]
    generation = [place for place, count in enumerate(waiting) if count == 0]
    order: list[int] = []
    while generation:
        order += generation
        ready = []
        for place in generation:
            for target in sorted(graph.after[place]):
                waiting[target] -= 1
                if waiting[target] == 0:
                    ready.append(target)
        generation = ready
    if len(order) < len(graph.nodes):
        stuck = [step.label for step, count in zip(graph.nodes, waiting, strict=True) if count]
        raise MismatchError(f"the graph of the network has a cycle through {', '.join(stuck[:5])}")
    return order


def _put_mean_before_classifier(graph: Digraph) -> None:
    """Let a network that averages its classifier's outputs end with the classifier, as all others do."""
    if len(graph.nodes) < 3:
        return
    weight, bias, mean = graph.nodes[-3:]
    same = weight.owner is bias.owner and isinstance(bias.owner, MATRICES)
    if same and weight.is_weight and bias.is_bias and kind(mean) in (Kind.MEAN, Kind.POOL_TO_MEAN):
        graph.nodes[-3:] = [mean, weight, bias]


def _with_sums_of_positions(graph: Digraph) -> Digraph:
    """Put a sum after each table of positions: the table leads to the sum, data lead through the sum."""
    order: list[Step] = []
    place_of: list[int] = []
    tables = []
    for step in graph.nodes:
        if is_position_table(step):
            tables.append(len(order))
            order.append(step)
            place_of.append(len(order))
            order.append(SUM)
        else:
            place_of.append(len(order))
            order.append(step)
    made = Digraph(order)
    for source, targets in enumerate(graph.after):
        for target in targets:
            made.connect(place_of[source], place_of[target])
    for table in tables:
        made.connect(table, table + 1)
    return made
