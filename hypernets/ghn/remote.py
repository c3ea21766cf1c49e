"""A hypernetwork behind an endpoint: networks are traced here, and their weights come from there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.serialize import to_json
from hypernets.ghn.start import GraphStart
from metainit import checkpoint as files
from metainit.card import Card, canonical_json, read_card
from metainit.checkpoint import Checkpoint
from metainit.client import Client
from metainit.errors import EndpointError
from metainit.references import parse_url

SEEDS = 2**53
"""Seeds are drawn below: every JSON reader has these integers."""


class RemotePredicted(GraphStart):
    """A graph hypernetwork on an endpoint, as a start for any network that can be traced."""

    def __init__(self, connect: Callable[[], AbstractContextManager[Client]], reference: str) -> None:
        self._connect, self._reference = connect, reference

    @property
    def name(self) -> str:
        """The reference."""
        return self._reference

    @property
    def card(self) -> Card:
        """The hypernetwork's own card."""
        return read_card(canonical_json(self._shown["card"]))

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The hypernetwork's evidence."""
        found = self._shown.get("evidence")
        return found if isinstance(found, dict) else None

    @cached_property
    def _shown(self) -> dict[str, Any]:
        with self._connect() as client:
            return client.show(self._reference)

    def weights_for(
        self, graph: ArchitectureGraph, *, seed: int | None = None, exact: bool = False
    ) -> Checkpoint:
        """Return the weights for a graph that the endpoint predicts.

        Raises:
            EndpointError: the endpoint cannot be reached, or has no prediction.
            CheckpointError: what it serves is no checkpoint.
        """
        drawn = int(torch.randint(SEEDS, ())) if seed is None else seed
        with self._connect() as client:
            path = client.predicted(self._reference, to_json(graph), seed=drawn, exact=exact)
        stored = files.load(path)
        if stored.card.graph != graph.hash:
            raise EndpointError(
                f"{self._reference} answered for the graph {str(stored.card.graph)[:16]}…, asked was "
                f"{graph.hash[:16]}…: is this a metainit endpoint?"
            )
        return stored


def connected(client: Client | None, source: str) -> RemotePredicted:
    """Return the hypernetwork at a reference of a client, or at an address where there is none."""
    if client is not None:
        return RemotePredicted(lambda: nullcontext(client), source)
    base, reference = parse_url(source)
    return RemotePredicted(lambda: Client(base), str(reference))
