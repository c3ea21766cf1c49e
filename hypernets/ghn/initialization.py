"""A hypernetwork as an initialization: it predicts the parameters of networks that are traced."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.predicted import predicted_checkpoint
from hypernets.ghn.start import GraphStart, Stored
from metainit.checkpoint import Checkpoint
from metainit.errors import CheckpointError, MismatchError

CONFIG = "hypernetwork"
"""Where a card's recipe keeps the sizes of the hypernetwork."""
MAX_ELEMENTS = 4_000_000_000


class Predicted(Stored, GraphStart):
    """A graph hypernetwork as a start for any network that can be traced."""

    def __init__(self, stored: Checkpoint, evidence: dict[str, Any] | None = None) -> None:
        super().__init__(stored, evidence)
        self.hypernetwork = hypernetwork_of(stored)

    def predict(
        self, graph: ArchitectureGraph, *, seed: int | None = None, exact: bool = False
    ) -> dict[str, Tensor]:
        """Return weights for a graph by name.

        Raises:
            MismatchError: the network is larger than `MAX_ELEMENTS`, or a weight would not be finite.
        """
        return self.weights_for(graph, seed=seed, exact=exact).weights

    def weights_for(
        self, graph: ArchitectureGraph, *, seed: int | None = None, exact: bool = False
    ) -> Checkpoint:
        """Return weights for a graph, with a card of their own.

        Raises:
            MismatchError: the network is larger than `MAX_ELEMENTS`, or a weight would not be finite.
        """
        if graph.numel > MAX_ELEMENTS:
            raise MismatchError(
                f"the network has {graph.numel} elements to predict, expected at most {MAX_ELEMENTS}: keep "
                "some of its parameters as they are (keep=...)"
            )
        drawn = int(torch.randint(2**62, ())) if seed is None else seed
        return Checkpoint(*predicted_checkpoint(self.hypernetwork, self.card, graph, seed=drawn, exact=exact))


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
