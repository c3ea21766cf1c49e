"""The architecture graph behind a card, laid out for whoever draws it: what `GET .../graph` answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from metainit.card import Card
from metainit.errors import MetainitError
from serving.catalog import Missing

MOST_NODES = 2_000
"""A page that is to draw more would be of no use to a reader."""
SIDE = 64
"""Pixels on a side of the images that a network of images is traced with."""


class Placed(BaseModel):
    """A node: what it does, what sort of operation that is, and its place."""

    label: str
    sort: str
    row: int = Field(description="counted from the inputs")
    lane: int = Field(description="side by side in a row")
    elements: int = Field(description="of its parameters")
    parameters: list[str]


class Drawing(BaseModel):
    """A graph to draw.

    `of`: the network of the card, the graph that weights were predicted for, or an example.
    """

    of: Literal["network", "predicted", "example"]
    name: str
    nodes: list[Placed]
    edges: list[tuple[int, int]]
    elements: int
    rows: int
    lanes: int


def drawing_of(card: Card) -> Drawing:
    """Return the graph that a card is about: of weights that were predicted, of its network, or an example.

    A hypernetwork's card names no network: the example is the first held-out architecture of the space that
    it learned on.

    Raises:
        Missing: the card has neither, or its graph cannot be traced or is too large.
    """
    from hypernets.architecture.picture import FAMILIES, describe, layout

    of, name, graph = _graph_of(card)
    if len(graph.nodes) > MOST_NODES:
        raise Missing(
            f"the graph of {card.name!r} has {len(graph.nodes)} nodes, drawn are at most {MOST_NODES}: use "
            "`metainit show --graph`"
        )
    sorts = {operation: sort for sort, (_, operations) in FAMILIES.items() for operation in operations}
    plan = layout(graph)
    nodes = [
        Placed(
            label=describe(node),
            sort=sorts.get(node.operation, "other"),
            row=column * plan.rows + row,
            lane=lane,
            elements=sum(p.numel for p in node.parameters),
            parameters=[p.name for p in node.parameters],
        )
        for node, (column, row, lane) in zip(graph.nodes, plan.places, strict=True)
    ]
    return Drawing(
        of=of,
        name=name,
        nodes=nodes,
        edges=[(edge.source, edge.target) for edge in graph.edges],
        elements=graph.numel,
        rows=1 + max((node.row for node in nodes), default=0),
        lanes=1 + max((node.lane for node in nodes), default=0),
    )


def _graph_of(card: Card) -> tuple[Literal["network", "predicted", "example"], str, Any]:
    from hypernets.architecture.space import build_architecture, distinct, identity
    from hypernets.architecture.space_ranges import SpaceConfig
    from hypernets.architecture.trace import trace
    from hypernets.ghn.predicted import GRAPH, stored_graph

    try:
        if card.provenance.recipe.get(GRAPH) is not None:
            return "predicted", card.name, stored_graph(card)
        if card.network is not None:
            import torch

            from metainit.networks import build

            with torch.device("meta"):
                network, inputs = build(card.network), torch.zeros(_input_shape(card.network.arguments))
            return "network", card.network.name, trace(network, inputs)
        space = card.provenance.recipe.get("space")
        if space is not None:
            config = SpaceConfig.model_validate(space)
            (spec,) = distinct(config, 0, 1, "test")
            network = build_architecture(spec)
            example = _image(spec.arguments)
            return "example", identity(spec), trace(network, example)
    except (MetainitError, ValueError, RuntimeError) as error:
        raise Missing(f"the network of {card.name!r} cannot be drawn: {error}") from error
    raise Missing(f"the card of {card.name!r} names no network and keeps no architecture graph")


def _input_shape(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of inputs of one of our networks: images where it takes channels, else coordinates."""
    if "in_features" in arguments or "in_channels" not in arguments:
        return 4, int(arguments.get("in_features", 2))
    side = int(arguments.get("size", SIDE))
    return 2, int(arguments["in_channels"]), side, side


def _image(arguments: Mapping[str, Any]) -> Any:
    import torch

    return torch.zeros(2, int(arguments["channels"]), int(arguments["size"]), int(arguments["size"]))
