"""A network's graph as GHN-3 sees it: words, shapes, distances, and which node makes which parameter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from torch import Tensor, nn

from hypernets.architecture.graph import SkipReason
from hypernets.ghn.ghn3_config import Shape4, Word, shape4
from hypernets.ghn.ghn3_passes import NORMS, Kind, distances, is_position_table, kind, reduce, word
from hypernets.ghn.ghn3_walk import Inputs, Step, walk
from metainit.errors import MismatchError

DEFAULT_POOLING = 3
"""The kernel of a pooling that does not say its own."""


class Form(StrEnum):
    """How a node's vector becomes a parameter."""

    KERNELS = "kernels"
    CLASS_WEIGHT = "class_weight"
    CLASS_BIAS = "class_bias"
    NORM_WEIGHT = "norm_weight"
    BIAS = "bias"
    POSITIONS = "positions"


@dataclass(frozen=True)
class Target:
    """A parameter and the node that it is decoded from."""

    name: str
    shape: tuple[int, ...]
    node: int
    form: Form


@dataclass(frozen=True)
class Ghn3Graph:
    """N nodes in the order of the published implementation.

    `words` and `shapes`: what each node is and the shape that it works with, None for none. `distances`:
    ``(N, N)`` integers, 1 for an edge, up to 50 for a longer way, 0 for none. `targets`: the parameters that
    nodes make; every other one is in `skipped` with the reason.
    """

    words: tuple[Word, ...]
    shapes: tuple[Shape4 | None, ...]
    distances: Tensor
    targets: tuple[Target, ...]
    skipped: Mapping[str, SkipReason] = field(default_factory=dict)

    def require_of(self, network: nn.Module) -> None:
        """Raise unless targets and skipped parameters are those of a network.

        Raises:
            MismatchError: names the parameters that differ.
        """
        own = {name: tuple(p.shape) for name, p in network.named_parameters()}
        mine = {target.name: target.shape for target in self.targets}
        differing = sorted(own.keys() ^ (mine.keys() | self.skipped.keys()))
        differing += sorted(name for name in own.keys() & mine.keys() if own[name] != mine[name])
        if differing:
            raise MismatchError(
                f"the graph is not of this {type(network).__name__}: they differ in "
                f"{', '.join(differing[:5])}; build it again with graph_of"
            )


def graph_of(network: nn.Module, example_inputs: Inputs, virtual_edges: bool = True) -> Ghn3Graph:
    """Build the published graph of a network, without running it on values where that can be.

    Deviations: modules are recognized by `isinstance`, so subclasses count; the hand-made edges of Swin
    transformers, which go by the network's class, are left out.

    Raises:
        MismatchError: nothing of the network depends on a parameter, or its graph has a cycle.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
        >>> graph = graph_of(net, torch.zeros(2, 3, 3, 3))
        >>> [word.name for word in graph.words]
        ['INPUT', 'CONV', 'BIAS', 'BATCH_NORM', 'CONV', 'BIAS']
        >>> graph.distances[0].tolist()
        [0, 1, 2, 3, 4, 5]
    """
    walked = walk(network, example_inputs)
    met = {step.parameter for step in walked.nodes}
    graph = reduce(walked)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    targets = _targets(graph.nodes, names)
    made = {target.name for target in targets}
    return Ghn3Graph(
        words=tuple(word(step) for step in graph.nodes),
        shapes=tuple(_shape(step) for step in graph.nodes),
        distances=distances(graph, virtual_edges),
        targets=targets,
        skipped={
            name: _reason(parameter, name in met)
            for name, parameter in network.named_parameters()
            if name not in made
        },
    )


def _shape(step: Step) -> Shape4 | None:
    if step.parameter:
        return shape4(step.shape)
    if kind(step) in (Kind.MAX_POOL, Kind.AVERAGE_POOL):
        return 1, 1, *(step.kernel or (DEFAULT_POOLING, DEFAULT_POOLING))
    return None


def _targets(steps: list[Step], names: Mapping[int, str]) -> tuple[Target, ...]:
    targets: dict[str, Target] = {}
    for node, step in enumerate(steps):
        if not step.parameter or 0 in step.shape:
            continue
        form = _form(step, len(steps) - node)
        if form is None:
            continue
        targets[step.parameter] = Target(step.parameter, step.shape, node, form)
        if form is Form.NORM_WEIGHT and isinstance(step.owner, NORMS) and step.owner.bias is not None:
            name = names[id(step.owner.bias)]
            targets[name] = Target(name, step.shape, node, Form.BIAS)
    return tuple(targets.values())


def _form(step: Step, from_end: int) -> Form | None:
    """Return how a parameter is made, None where the published network cannot.

    The last two nodes are taken for a classifier's weight and bias.
    """
    if isinstance(step.owner, NORMS):
        return Form.NORM_WEIGHT if step.attribute == "weight" and len(step.shape) == 1 else None
    if is_position_table(step):
        return Form.POSITIONS
    match step.attribute:
        case "weight":
            pointwise = max(step.shape[2:], default=1) == 1
            return Form.CLASS_WEIGHT if from_end == 2 and pointwise else Form.KERNELS
        case "bias":
            return Form.CLASS_BIAS if from_end == 1 else Form.BIAS
        case "in_proj_weight":
            return Form.KERNELS
        case "in_proj_bias":
            return Form.BIAS
        case _:
            return None


def _reason(parameter: nn.Parameter, met: bool) -> SkipReason:
    if not parameter.is_floating_point():
        return SkipReason.NOT_FLOATING
    if parameter.numel() == 0:
        return SkipReason.EMPTY
    if not parameter.requires_grad:
        return SkipReason.KEPT
    return SkipReason.OUTSIDE_VOCABULARY if met else SkipReason.UNREACHED
