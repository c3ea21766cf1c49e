"""Shortest paths of a graph up to a length, without a dense search over all pairs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from hypernets.architecture.graph import ArchitectureGraph

Integers = npt.NDArray[np.int64]


def shortest_paths(graph: ArchitectureGraph, limit: int) -> tuple[Integers, Integers]:
    r"""Return the pairs of nodes with a directed path of at most `limit` edges, and its shortest length.

    A breadth-first search from all nodes at once: the k-th frontier :math:`F_k = [F_{k-1} A > 0]`, less what
    was reached before, is a sparse matrix.

    Args:
        graph: a graph of N nodes.
        limit: the longest path that counts.

    Returns:
        ``(2, pairs)`` sources and targets, and ``(pairs,)`` lengths from 1 on, sorted by source and target.

    Example:
        >>> from hypernets.architecture.graph import Edge, Node, Operation
        >>> chain = ArchitectureGraph((Node(Operation.RELU),) * 3, (Edge(0, 1), Edge(1, 2)))
        >>> pairs, lengths = shortest_paths(chain, limit=50)
        >>> pairs.tolist(), lengths.tolist()
        ([[0, 0, 1], [1, 2, 2]], [1, 2, 1])
    """
    size = len(graph.nodes)
    ends = np.array([(e.source, e.target) for e in graph.edges], dtype=np.int64).reshape(-1, 2)
    ones = np.ones(len(ends), dtype=np.int64)
    step = sparse.csr_array((ones, (ends[:, 0], ends[:, 1])), shape=(size, size))
    step.data[:] = 1  # parallel edges were added up
    frontier, reached = step, step.copy()
    for length in range(2, limit + 1):
        frontier = frontier @ step
        frontier.data[:] = 1
        # What is new: in the frontier, and not reached before.
        frontier = frontier - frontier.multiply(reached > 0)
        frontier.eliminate_zeros()
        if frontier.nnz == 0:
            break
        reached = reached + length * frontier
    found = sparse.coo_array(reached)
    order = np.lexsort((found.col, found.row))
    pairs = np.stack([found.row, found.col]).astype(np.int64)[:, order]
    return pairs, found.data.astype(np.int64)[order]
