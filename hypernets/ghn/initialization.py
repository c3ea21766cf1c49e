"""A hypernetwork as an initialization: trace a network, predict its parameters, fill it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hypernets.architecture.graph import ArchitectureGraph, SkipReason
from hypernets.architecture.inputs import ExampleInputs
from hypernets.architecture.trace import trace
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.prediction import predict
from metainit.adaptation import Progress, Task
from metainit.card import AdaptationRoutine, Card
from metainit.checkpoint import Checkpoint
from metainit.errors import CheckpointError, MismatchError, SourceError
from metainit.initialization import run_routine
from metainit.recalibration import Recalibration, recalibrate

CONFIG = "hypernetwork"
"""Where a card's recipe keeps the sizes of the hypernetwork."""
MAX_ELEMENTS = 4_000_000_000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Filled:
    """What filling a network did: parameters that were predicted, those that were not, and why.

    `recalibrated`: what was measured on the user's data, if any were given.
    """

    predicted: tuple[str, ...]
    skipped: Mapping[str, SkipReason]
    recalibrated: Recalibration | None = None


class Predicted:
    """A graph hypernetwork as a start for any network that can be traced."""

    def __init__(self, stored: Checkpoint, evidence: dict[str, Any] | None = None) -> None:
        self.checkpoint = stored
        self.card: Card = stored.card
        self.evidence = evidence
        self.hypernetwork = hypernetwork_of(stored)

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
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
            MismatchError: the network cannot be traced, looks trained, or is too large; nothing is changed.
            SourceError: a condition is given, or no example inputs.
        """
        if condition is not None:
            raise SourceError(f"{self.card.name!r} takes no condition; only generated starts do")
        if example_inputs is None:
            raise SourceError(
                f"{self.card.name!r} predicts from the network's graph: pass example_inputs=, such as "
                "a batch of two"
            )
        filled = self.fill_(network, example_inputs, seed, observation, exact, keep, overwrite)
        _log.info(
            "%s predicted %d parameters and skipped %d; recalibrated: %s",
            self.card.name,
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
        graph = trace(network, example_inputs, keep=keep)
        weights = self.predict(graph, seed=seed, exact=exact)
        write(network, weights, graph)
        done = None if observation is None else recalibrate(network, [observation])
        return Filled(tuple(weights), graph.skipped, done)

    def predict(
        self, graph: ArchitectureGraph, *, seed: int | None = None, exact: bool = False
    ) -> dict[str, Tensor]:
        """Return weights for a graph by name.

        Raises:
            MismatchError: the network is larger than `MAX_ELEMENTS`, or a weight would not be finite.
        """
        if graph.numel > MAX_ELEMENTS:
            raise MismatchError(
                f"the network has {graph.numel} elements to predict, expected at most {MAX_ELEMENTS}: keep "
                "some of its parameters as they are (keep=...)"
            )
        return predict(self.hypernetwork, graph, seed=seed, exact=exact)

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
                f"{self.card.name!r} has no adaptation routine: pass routine=AdaptationRoutine(...)"
            )
        return run_routine(network, task, routine, {}, progress)


def hypernetwork_of(stored: Checkpoint) -> Ghn:
    """Return the hypernetwork that a checkpoint holds.

    Raises:
        CheckpointError: the card does not say its sizes, or the tensors are not those of such a one.
    """
    name = stored.card.name
    try:
        config = GhnConfig.model_validate(stored.card.provenance.recipe.get(CONFIG))
    except ValidationError as error:
        raise CheckpointError(
            f"the card of {name!r} does not say the sizes of its hypernetwork: {error}"
        ) from error
    with torch.device("meta"):
        ghn = Ghn(config)
    try:
        ghn.load_state_dict(stored.tensors, assign=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the tensors of {name!r} are not those of its hypernetwork: {error}"
        ) from error
    return ghn.eval().requires_grad_(False)


def refuse_trained(network: nn.Module) -> None:
    """Raise where a network shows traces of training: gradients, or statistics that batches have moved.

    Raises:
        MismatchError: it does; says where.
    """
    traces = [name for name, value in network.named_parameters() if value.grad is not None]
    traces += [
        name
        for name, value in network.named_buffers()
        if name.rpartition(".")[2] == "num_batches_tracked" and value.device.type != "meta" and int(value) > 0
    ]
    if traces:
        raise MismatchError(
            f"the network looks trained ({', '.join(traces[:3])} show it); nothing was filled: pass "
            "overwrite=True to fill it all the same"
        )


def write(network: nn.Module, weights: Mapping[str, Tensor], graph: ArchitectureGraph) -> None:
    """Copy predicted weights into a network, all of them or none; tied parameters stay tied.

    Raises:
        MismatchError: names or shapes are not those of the network.
    """
    own = dict(network.named_parameters())
    missing = sorted(own.keys() - weights.keys() - graph.skipped.keys())
    wrong = sorted(k for k, v in weights.items() if k not in own or own[k].shape != v.shape)
    if missing or wrong:
        raise MismatchError(
            f"the prediction does not fit this {type(network).__name__}; not predicted: "
            f"{', '.join(missing) or 'none'}; of another shape or name: "
            f"{', '.join(wrong) or 'none'}; nothing was filled"
        )
    on_meta = sorted(k for k in weights if own[k].device.type == "meta")
    if on_meta:
        raise MismatchError(
            f"the network lies on the meta device ({on_meta[0]} has no storage); nothing was filled: give it "
            "storage first, network.to_empty(device='cpu'), and fill its buffers"
        )
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
