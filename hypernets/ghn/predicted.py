"""A prediction as a checkpoint: weights for one graph, and a card that says how to make them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.serialize import from_json, to_json
from hypernets.ghn.model import Ghn
from hypernets.ghn.prediction import predict_each
from metainit.card import Card, Provenance, canonical_json
from metainit.errors import GraphError
from metainit.versions import code_version

GRAPH = "graph"
"""Where the recipe on the card of a prediction keeps the graph."""
MAX_GRAPH_CHARACTERS = 3_000_000
"""A card has its limit; of a larger graph it keeps the hash alone."""


def predicted_checkpoint(
    hypernetwork: Ghn, source: Card, graph: ArchitectureGraph, *, seed: int = 0, exact: bool = False
) -> tuple[dict[str, Tensor], Card]:
    """Return weights for a graph, and their card: same hypernetwork, graph and seed, same bytes.

    Args:
        hypernetwork: what predicts.
        source: the hypernetwork's own card.
        graph: the network to predict for.
        seed: of the residual.
        exact: leave the residual out; the seed has no meaning then.

    Raises:
        MismatchError: a predicted weight is not finite.

    Example:
        >>> from hypernets.architecture.graph import Node, Operation, Parameter, Role
        >>> from hypernets.ghn.config import GhnConfig
        >>> from metainit.card import Method
        >>> layer = Node(Operation.LINEAR, (Parameter('weight', (3, 2), Role.WEIGHT),))
        >>> source = Card(kind='ghn', name='digits', method=Method(name='ghn3'))
        >>> ghn = Ghn(GhnConfig(width=16, heads=2, block=4))
        >>> tensors, card = predicted_checkpoint(ghn, source, ArchitectureGraph((layer,), ()))
        >>> card.kind, card.name, list(tensors)
        ('weights', 'digits', ['weight'])
    """
    seeds = [None if exact else seed]
    ((tensors, card),) = predicted_checkpoints(hypernetwork, source, graph, seeds)
    return tensors, card


def predicted_checkpoints(
    hypernetwork: Ghn, source: Card, graph: ArchitectureGraph, seeds: Sequence[int | None]
) -> Iterator[tuple[dict[str, Tensor], Card]]:
    """Yield what `predicted_checkpoint` gives for each seed, None for exact, having predicted once.

    Raises:
        MismatchError: a predicted weight is not finite.
    """
    every = predict_each(hypernetwork, graph, seeds)
    yield from ((t, card_of(source, graph, seed)) for t, seed in zip(every, seeds, strict=True))


def card_of(source: Card, graph: ArchitectureGraph, seed: int | None) -> Card:
    """Return the card of a prediction for a graph by the hypernetwork of a card; no seed is exact."""
    value = to_json(graph)
    recipe = {"hypernetwork": source.name, "digest": source.digest, "exact": seed is None}
    if len(canonical_json(value)) <= MAX_GRAPH_CHARACTERS:
        recipe[GRAPH] = value
    return Card(
        kind="weights",
        name=source.name,
        method=source.method,
        graph=graph.hash,
        provenance=Provenance(
            recipe=recipe,
            seeds=[] if seed is None else [seed],
            data=source.provenance.data,
            code_version=code_version(),
        ),
        skipped={name: str(reason) for name, reason in graph.skipped.items()},
    )


def stored_graph(card: Card) -> ArchitectureGraph:
    """Return the graph that the weights of a card were predicted for.

    Raises:
        GraphError: the card keeps none, or what it keeps is no graph.
    """
    value = card.provenance.recipe.get(GRAPH)
    if value is None:
        kept = ", but its hash: it is too large for a card" if card.graph else ""
        raise GraphError(
            f"the card of {card.name!r} (kind {card.kind}) keeps no architecture graph{kept}; weights from "
            "`metainit predict` have one"
        )
    return from_json(value)
