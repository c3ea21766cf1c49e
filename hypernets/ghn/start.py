"""A start from a network's graph: trace it, ask for weights, fill it. Who has the weights is left open."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hypernets.architecture.cache import GraphCache
from hypernets.architecture.graph import ArchitectureGraph, SkipReason
from hypernets.architecture.inputs import ExampleInputs
from metainit.adaptation import Progress, Task
from metainit.card import AdaptationRoutine, Card
from metainit.checkpoint import Checkpoint
from metainit.errors import DataError, SourceError
from metainit.fill import fill_parameters, refuse_trained
from metainit.initialization import run_given
from metainit.recalibration import Recalibration, recalibrate

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filled:
    """What filling a network did: parameters that were predicted, those that were not, and why.

    `recalibrated`: what was measured on the user's data, if any were given.
    """

    predicted: tuple[str, ...]
    skipped: Mapping[str, SkipReason]
    recalibrated: Recalibration | None = None


class NetworkStart(ABC):
    """A start that makes weights for whatever network it is shown."""

    @property
    @abstractmethod
    def card(self) -> Card:
        """The card of what predicts."""

    @property
    @abstractmethod
    def evidence(self) -> dict[str, Any] | None:
        """The evidence of what predicts, if there is any."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What errors call it."""

    @abstractmethod
    def predicted_for(
        self,
        network: nn.Module,
        example_inputs: ExampleInputs,
        *,
        seed: int | None,
        exact: bool,
        keep: Collection[str],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, SkipReason]]:
        """Return weights for a network by name, and why each other parameter has none; nothing is changed.

        Raises:
            MetainitError: there are none.
        """

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: ExampleInputs | None = None,
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
            MismatchError: the network looks trained, or is too large; nothing is changed.
            DataError: the network does not take the observation; nothing is changed.
            DivergenceError: statistics of the observation are not finite; nothing is changed.
            EndpointError: an endpoint predicts, and cannot; nothing is changed.
            SourceError: a condition is given, or no example inputs.
        """
        if condition is not None:
            raise SourceError(f"{self.name!r} takes no condition; only generated starts do")
        if example_inputs is None:
            raise SourceError(
                f"{self.name!r} predicts from the network's graph: pass example_inputs=, such as a batch "
                "of two"
            )
        filled = self.fill_(network, example_inputs, seed, observation, exact, keep, overwrite)
        _log.info(
            "%s predicted %d parameters and skipped %d; recalibrated: %s",
            self.name,
            len(filled.predicted),
            len(filled.skipped),
            filled.recalibrated or "nothing",
        )
        return network

    def fill_(
        self,
        network: nn.Module,
        example_inputs: ExampleInputs,
        seed: int | None = None,
        observation: Tensor | None = None,
        exact: bool = False,
        keep: Collection[str] = (),
        overwrite: bool = False,
    ) -> Filled:
        """Do what `init_` does, and say what was done."""
        if not overwrite:
            refuse_trained(network)
        weights, skipped = self.predicted_for(network, example_inputs, seed=seed, exact=exact, keep=keep)
        source = f"prediction of {self.name!r}"
        if observation is None:
            fill_parameters(network, weights, skipped, source)
            return Filled(tuple(weights), skipped)
        with _all_or_nothing(network):
            fill_parameters(network, weights, skipped, source)
            done = _recalibrated(network, observation)
        return Filled(tuple(weights), skipped, done)

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place; the routine must be given."""
        return run_given(self.name, network, task, routine, progress)


class Stored:
    """A hypernetwork that lies in a checkpoint: what its card and its evidence say of it."""

    def __init__(self, stored: Checkpoint, evidence: dict[str, Any] | None) -> None:
        self.checkpoint = stored
        self._evidence = evidence

    @property
    def name(self) -> str:
        """The card's."""
        return self.card.name

    @property
    def card(self) -> Card:
        """The hypernetwork's own card."""
        return self.checkpoint.card

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The hypernetwork's evidence, if any lies beside it."""
        return self._evidence


class GraphStart(NetworkStart):
    """A start that knows of a network what its architecture graph says, and nothing else.

    Graphs that it was asked for are kept: networks of one structure are traced once.
    """

    @cached_property
    def _graphs(self) -> GraphCache:
        return GraphCache()

    @abstractmethod
    def weights_for(
        self, graph: ArchitectureGraph, *, seed: int | None = None, exact: bool = False
    ) -> Checkpoint:
        """Return weights for a graph, with a card of their own; the seed is drawn where it is None.

        Raises:
            MetainitError: there are none.
        """

    def predicted_for(
        self,
        network: nn.Module,
        example_inputs: ExampleInputs,
        *,
        seed: int | None,
        exact: bool,
        keep: Collection[str],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, SkipReason]]:
        """Trace the network, and return weights for its graph."""
        graph = self._graphs.trace(network, example_inputs, keep=keep)
        return self.weights_for(graph, seed=seed, exact=exact).weights, graph.skipped


@contextmanager
def _all_or_nothing(network: nn.Module) -> Iterator[None]:
    """Put the network's parameters back where what is done to them fails."""
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    finished = False
    try:
        yield
        finished = True
    finally:
        if not finished:
            with torch.no_grad():
                for name, value in network.named_parameters():
                    value.copy_(before[name])


def _recalibrated(network: nn.Module, observation: Tensor) -> Recalibration:
    """Measure running statistics on inputs of the user's data, on the network's device and in its type."""
    like = next((p for p in network.parameters() if p.is_floating_point()), observation)
    moved = observation.to(like.device, like.dtype if observation.is_floating_point() else None)
    try:
        return recalibrate(network, [moved])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:  # what layers raise for wrong inputs
        raise DataError(
            f"the network does not take the observation of shape {tuple(observation.shape)}: "
            f"{str(error)[:300]}; nothing was filled: pass a batch of inputs like example_inputs"
        ) from error
