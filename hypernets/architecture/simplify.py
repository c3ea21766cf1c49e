"""From a recording to a graph: contract what only reshapes, prune what is no data, fuse what is spelt out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypernets.architecture.builder import Builder
from hypernets.architecture.drafts import Draft
from hypernets.architecture.fusing import fuse
from hypernets.architecture.graph import (
    ArchitectureGraph,
    Edge,
    Node,
    Operation,
    Parameter,
    Role,
    SkipReason,
)
from hypernets.architecture.recording import Recording


def simplify(recording: Recording) -> list[Draft]:
    """Return the drafts of a graph's nodes, in topological order; what leads to no output is left out."""
    return _reaching_outputs(fuse(Builder(recording).build()))


def finish(drafts: Sequence[Draft], skipped: dict[str, SkipReason]) -> ArchitectureGraph:
    """Return the graph of drafts. A parameter that is not skipped belongs to the first node that uses it."""
    numbers = {id(draft): i for i, draft in enumerate(drafts)}
    taken = set(skipped)
    nodes = []
    for draft in drafts:
        own = []
        for use in draft.uses:
            if use.name not in taken:
                taken.add(use.name)
                own.append(
                    Parameter(use.name, use.shape, use.role or Role.TABLE, use.transposed, use.spatial)
                )
        nodes.append(
            Node(draft.operation, tuple(own), draft.groups, draft.stride, draft.dilation, draft.kernel)
        )
    edges = tuple(
        Edge(numbers[id(operand.draft)], i, position)
        for i, draft in enumerate(drafts)
        for position, operand in enumerate(draft.operands)
    )
    return ArchitectureGraph(tuple(nodes), edges, skipped)


def names_used(drafts: Iterable[Draft]) -> set[str]:
    """Return the names of all parameters that drafts use."""
    return {use.name for draft in drafts for use in draft.uses}


def _reaching_outputs(drafts: Sequence[Draft]) -> list[Draft]:
    ends = [d for d in drafts if d.operation is Operation.OUTPUT]
    reached = {id(d) for d in ends}
    while ends:
        for operand in ends.pop().operands:
            if id(operand.draft) not in reached:
                reached.add(id(operand.draft))
                ends.append(operand.draft)
    return [d for d in drafts if id(d) in reached or d.operation is Operation.INPUT]
