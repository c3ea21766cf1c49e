"""Pictures: nothing overlaps, ways go down, same graph same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from hypernets.architecture.graph import ArchitectureGraph, Edge, Node, Operation, Parameter, Role
from hypernets.architecture.picture import COLOURS, describe, draw, layout
from hypernets.architecture.trace import trace


def chain(length: int, *skips: tuple[int, int]) -> ArchitectureGraph:
    edges = [Edge(i, i + 1) for i in range(length - 1)]
    return ArchitectureGraph(
        tuple(Node(Operation.RELU) for _ in range(length)), tuple(edges + [Edge(*s) for s in skips])
    )


@pytest.mark.parametrize("length", [1, 12, 60, 400])
def test_a_chain_is_straight_and_as_wide_as_high(length: int) -> None:
    plan = layout(chain(length))
    assert {lane for _, _, lane in plan.places} == {0}
    assert len(set(plan.places)) == length
    assert [(c, r) for c, r, _ in plan.places] == [(i // plan.rows, i % plan.rows) for i in range(length)]
    if length > 40:
        assert 0.3 < len(plan.lanes) * 2.85 / (plan.rows * 0.46) < 3


def test_no_two_nodes_share_a_place_and_edges_go_down() -> None:
    torch.manual_seed(0)
    nodes = 80
    pairs = {tuple(sorted(p)) for p in torch.randint(0, nodes, (150, 2)).tolist() if p[0] != p[1]}
    graph = ArchitectureGraph(
        tuple(Node(Operation.ADD) for _ in range(nodes)), tuple(Edge(a, b) for a, b in sorted(pairs))
    )
    plan = layout(graph)
    assert len(set(plan.places)) == nodes
    assert all(plan.places[e.source][:2] < plan.places[e.target][:2] for e in graph.edges)
    assert all(lane < plan.lanes[column] and row < plan.rows for column, row, lane in plan.places)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_same_graph_gives_the_same_bytes(tmp_path: Path, suffix: str) -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2)), torch.zeros(1, 3, 8, 8))
    first, second = (draw(graph, tmp_path / f"{name}.{suffix}").read_bytes() for name in "ab")
    assert first == second
    assert len(first) > 1000


def test_sizes_follow_the_graph_and_stay_bounded(tmp_path: Path) -> None:
    sizes = []
    for length in (3, 12, 100):
        with Image.open(draw(chain(length, (0, length - 1)), tmp_path / f"{length}.png")) as picture:
            sizes.append(picture.size)
    assert sizes[0][1] < sizes[1][1] < sizes[2][1]
    assert max(sizes[2]) <= 60 * 150


def test_every_operation_has_a_colour() -> None:
    assert set(COLOURS) == set(Operation)


@pytest.mark.parametrize(
    ("node", "text"),
    [
        (Node(Operation.DEPTHWISE_CONV, (Parameter("w", (8, 1, 3, 3), Role.WEIGHT),), groups=8),
         "depthwise conv 3x3 8→8"),
        (Node(Operation.TRANSPOSED_CONV, (Parameter("w", (8, 2, 2, 2), Role.WEIGHT, True),), 2, 2),
         "transposed conv 2x2/2 8→4"),
        (Node(Operation.LINEAR, (Parameter("w", (8, 4), Role.WEIGHT, True),)), "linear 8→4"),
        (Node(Operation.LINEAR, (Parameter("w", (10, 784), Role.WEIGHT, spatial=(7, 7)),)),
         "linear 16x7x7→10"),
        (Node(Operation.EMBEDDING, (Parameter("w", (10, 4), Role.TABLE),)), "embedding 10x4"),
        (Node(Operation.MAX_POOL, kernel=3, stride=2), "max pool 3/2"),
        (Node(Operation.BATCH_NORM, (Parameter("w", (8,), Role.NORM_WEIGHT),)), "batch norm"),
    ],
)  # fmt: skip
def test_a_node_says_what_it_does(node: Node, text: str) -> None:
    assert describe(node) == text
