from __future__ import annotations

import networkx
import pytest

from hypernets.architecture.features import to_data
from hypernets.architecture.graph import ArchitectureGraph, Edge, Node, Operation
from hypernets.architecture.paths import shortest_paths
from tests.hypernets.graphs import every_role, random_graph


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
@pytest.mark.parametrize("seed", range(5))
def test_lengths_are_those_of_a_search_over_all_pairs(seed: int, limit: int) -> None:
    graph = random_graph(seed, 25)
    pairs, lengths = shortest_paths(graph, limit)
    peer = networkx.DiGraph([(e.source, e.target) for e in graph.edges])
    expected = {
        (s, t): d
        for s, row in networkx.all_pairs_shortest_path_length(peer, cutoff=limit)
        for t, d in row.items()
        if s != t
    }
    found = {(int(s), int(t)): int(d) for s, t, d in zip(*pairs, lengths, strict=True)}
    assert found == expected


def test_parallel_edges_count_once() -> None:
    graph = ArchitectureGraph((Node(Operation.INPUT), Node(Operation.ADD)), (Edge(0, 1, 0), Edge(0, 1, 1)))
    pairs, lengths = shortest_paths(graph, 5)
    assert lengths.tolist() == [1]
    assert to_data(graph, 5).degree.tolist() == [[0, 1], [1, 0]]


def test_a_graph_without_edges_has_no_pairs() -> None:
    graph = ArchitectureGraph((Node(Operation.INPUT),), ())
    data = to_data(graph, 5)
    assert data.edge_index.shape == (2, 0)
    assert data.target_sizes.shape == (0, 4)


def test_features_say_which_node_carries_which_parameter() -> None:
    graph = every_role()
    data = to_data(graph, 50)
    assert data.target_index.tolist() == [i for i, _ in graph.carried()]
    assert data.target_place.tolist() == [0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    assert data.sizes.shape == (10, 9)
