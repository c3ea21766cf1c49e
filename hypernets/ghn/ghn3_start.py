"""A published GHN-3 as an initialization."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypernets.architecture.graph import SkipReason
from hypernets.architecture.inputs import ExampleInputs
from hypernets.ghn.ghn3_checkpoint import from_checkpoint
from hypernets.ghn.ghn3_prediction import predict_ghn3
from hypernets.ghn.prediction import add_residual, spread
from hypernets.ghn.start import NetworkStart, Stored
from metainit.checkpoint import Checkpoint
from metainit.errors import GraphError, suggestion


class Ghn3Start(Stored, NetworkStart):
    """A converted GHN-3 as a start: the same tensors as the published code, and a residual unless `exact`.

    Its blocks repeat in every layer that is larger, which leaves neurons alike; its authors add noise before
    they train on. Here that is the residual of every prediction.
    """

    def __init__(self, stored: Checkpoint, evidence: dict[str, Any] | None = None) -> None:
        super().__init__(stored, evidence)
        self.hypernetwork = from_checkpoint(stored)

    def predicted_for(
        self,
        network: nn.Module,
        example_inputs: ExampleInputs,
        *,
        seed: int | None,
        exact: bool,
        keep: Collection[str],
    ) -> tuple[Mapping[str, Tensor], Mapping[str, SkipReason]]:
        """Return weights for a network by name, and why each other parameter has none."""
        names = dict(network.named_parameters())
        for name in keep:
            if name not in names:
                raise GraphError(f"keep: {name!r} is no parameter of the network; {suggestion(name, names)}")
        if not isinstance(example_inputs, Tensor):
            example_inputs = _in_order(example_inputs)
        drawn = int(torch.randint(2**62, ())) if seed is None else seed
        tensors, skipped = predict_ghn3(self.hypernetwork, network, example_inputs, seed=drawn)
        generator = torch.Generator().manual_seed(drawn)
        if not exact:
            for value in tensors.values():
                if value.dim() > 1:
                    add_residual(value, generator, spread(value), value)
        weights = {k: v for k, v in tensors.items() if k not in keep}
        return weights, {**skipped, **dict.fromkeys(keep, SkipReason.KEPT)}


def _in_order(example_inputs: tuple[Any, ...] | list[Any] | Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return inputs as the walk over gradients takes them.

    Raises:
        GraphError: they have names, or are no tensors.
    """
    if isinstance(example_inputs, Mapping) or not all(isinstance(v, Tensor) for v in example_inputs):
        raise GraphError(
            "a GHN-3 walks networks that take tensors in order: pass a tensor or a tuple of tensors"
        )
    return tuple(example_inputs)
