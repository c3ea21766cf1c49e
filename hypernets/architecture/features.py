"""What a hypernetwork reads of a graph: numbers for nodes, pairs of nodes and parameters, as PyG data.

N nodes, P pairs of nodes with a path between them, T parameters to predict.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Data

from hypernets.architecture.graph import ArchitectureGraph, Node, Operation, Role
from hypernets.architecture.paths import shortest_paths

OPERATIONS = {operation: row for row, operation in enumerate(Operation)}
ROLES = {role: row for row, role in enumerate(Role)}
NODE_SIZES = 9
TARGET_SIZES = 4
MAX_PLACE = 15
"""Parameters of one node beyond this place share an embedding."""


def to_data(graph: ArchitectureGraph, max_distance: int) -> Data:
    """Return a graph as PyG data, which `torch_geometric.data.Batch` can batch.

    Args:
        graph: N nodes, T parameters.
        max_distance: the longest path that makes a pair.

    Returns:
        ``operation`` (N), ``sizes`` (N, 9) and ``target_sizes`` (T, 4) as log2 of 1 + size, ``degree`` (N, 2)
        in and out, ``edge_index`` (2, P) and ``distance`` (P) from 1 on, ``target_index`` (T) the node of
        each parameter, ``target_role`` and ``target_place`` (T).

    Example:
        >>> from hypernets.architecture.graph import Edge
        >>> graph = ArchitectureGraph((Node(Operation.INPUT), Node(Operation.RELU)), (Edge(0, 1),))
        >>> to_data(graph, 50).distance.tolist()
        [1]
    """
    pairs, lengths = shortest_paths(graph, max_distance)
    degree = torch.zeros(len(graph.nodes), 2, dtype=torch.long)
    for source, target in {(e.source, e.target) for e in graph.edges}:
        degree[target, 0] += 1
        degree[source, 1] += 1
    carried = list(graph.carried())
    places = [place for node in graph.nodes for place in range(len(node.parameters))]
    # PyG's batching adds the number of earlier nodes to whatever has `index` in its name.
    return Data(
        num_nodes=len(graph.nodes),
        operation=torch.tensor([OPERATIONS[n.operation] for n in graph.nodes]),
        sizes=_log([_node_sizes(n) for n in graph.nodes], NODE_SIZES),
        degree=degree,
        edge_index=torch.from_numpy(pairs),
        distance=torch.from_numpy(lengths),
        target_index=torch.tensor([i for i, _ in carried], dtype=torch.long),
        target_role=torch.tensor([ROLES[p.role] for _, p in carried], dtype=torch.long),
        target_place=torch.tensor([min(p, MAX_PLACE) for p in places], dtype=torch.long),
        target_sizes=_log([p.matrix for _, p in carried], TARGET_SIZES),
    )


def _node_sizes(node: Node) -> tuple[int, ...]:
    main = node.parameters[0].matrix if node.parameters else (0, 0, 0, 0)
    own = (node.groups - 1, node.stride - 1, node.dilation - 1, node.kernel - 1)
    return (*main, *own, len(node.parameters))


def _log(rows: list[tuple[int, ...]], columns: int) -> Tensor:
    return torch.log2(1.0 + torch.tensor(rows, dtype=torch.float32).reshape(-1, columns))
