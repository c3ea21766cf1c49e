"""A hypernetwork behind an endpoint: networks are traced here, and their weights come from there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.serialize import to_json
from hypernets.architecture.trace import trace
from hypernets.ghn.initialization import refuse_trained
from hypernets.ghn.recalibration import recalibrate
from metainit import checkpoint as files
from metainit.adaptation import Progress, Task
from metainit.card import AdaptationRoutine, Card, canonical_json, read_card
from metainit.checkpoint import Checkpoint
from metainit.client import Client
from metainit.errors import EndpointError, SourceError
from metainit.fill import fill_parameters
from metainit.initialization import run_routine
from metainit.references import parse_url

SEEDS = 2**53
"""Seeds are drawn below: every JSON reader has these integers."""


class RemotePredicted:
    """A graph hypernetwork on an endpoint, as a start for any network that can be traced."""

    def __init__(self, connect: Callable[[], AbstractContextManager[Client]], reference: str) -> None:
        self._connect, self._reference = connect, reference
        self._shown: dict[str, Any] | None = None

    @property
    def card(self) -> Card:
        """The hypernetwork's own card."""
        return read_card(canonical_json(self._detail["card"]))

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The hypernetwork's evidence."""
        found = self._detail.get("evidence")
        return found if isinstance(found, dict) else None

    @property
    def _detail(self) -> dict[str, Any]:
        """What the endpoint shows, asked for once."""
        if self._shown is None:
            with self._connect() as client:
                self._shown = client.show(self._reference)
        return self._shown

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | Sequence[Any] | Mapping[str, Any] | None = None,
        condition: Any = None,
        observation: Tensor | None = None,
        exact: bool = False,
        keep: Collection[str] = (),
        overwrite: bool = False,
    ) -> nn.Module:
        """Fill the network in place and return it; what cannot be predicted keeps its values.

        Args:
            network: any module that can be traced.
            seed: of the residual that keeps neurons from being alike; drawn where it is None.
            example_inputs: inputs to trace the network with; a batch of two is enough.
            condition: none is taken.
            observation: inputs of the user's data, on which running statistics are measured.
            exact: leave the residual out.
            keep: names of parameters to leave as they are.
            overwrite: fill a network that looks trained.

        Raises:
            GraphError: the network cannot be traced; nothing is changed.
            MismatchError: the network looks trained; nothing is changed.
            EndpointError: the endpoint cannot be reached, or has no prediction; nothing is changed.
            SourceError: a condition is given, or no example inputs.
        """
        if condition is not None:
            raise SourceError(f"{self._reference} takes no condition; only generated starts do")
        if example_inputs is None:
            raise SourceError(
                f"{self._reference} predicts from the network's graph: pass example_inputs=, such as a "
                "batch of two"
            )
        if not overwrite:
            refuse_trained(network)
        stored = self.weights_for(trace(network, example_inputs, keep=keep), seed=seed, exact=exact)
        fill_parameters(network, stored.weights, stored.card.skipped, f"prediction of {self._reference}")
        if observation is not None:
            recalibrate(network, [observation])
        return network

    def weights_for(
        self, graph: ArchitectureGraph, *, seed: int | None = None, exact: bool = False
    ) -> Checkpoint:
        """Return the checkpoint of the weights for a graph.

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

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place; the routine must be given."""
        if routine is None:
            raise SourceError(
                f"{self._reference} has no adaptation routine: pass routine=AdaptationRoutine(...)"
            )
        return run_routine(network, task, routine, {}, progress)


def connected(client: Client | None, source: str) -> RemotePredicted:
    """Return the hypernetwork at a reference of a client, or at an address where there is none."""
    if client is not None:
        return RemotePredicted(lambda: nullcontext(client), source)
    base, reference = parse_url(source)
    return RemotePredicted(lambda: Client(base), str(reference))
