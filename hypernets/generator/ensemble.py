"""The mean of a network's outputs over several drawn starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metainit.checkpoint import Checkpoint
from metainit.errors import MismatchError
from metainit.networks import function_of


@torch.no_grad()
def ensemble(network: nn.Module, starts: Sequence[Checkpoint], inputs: Tensor) -> Tensor:
    """Return the mean of a network's outputs with each of some starts; the network keeps its weights.

    Parameters alone come from the starts; buffers are the network's own.

    Raises:
        MismatchError: there is no start, or one lacks a parameter.

    Source: Lutati & Wolf 2022, arXiv:2210.00471, section 4, which averages the outputs of drawn networks.
    """
    if not starts:
        raise MismatchError("an ensemble needs at least one start, got none")
    function, names = function_of(network), [name for name, _ in network.named_parameters()]
    if missing := sorted({name for name in names for start in starts if name not in start.weights}):
        raise MismatchError(f"a start has no {', '.join(missing)}: draw starts for this network")
    like = next(network.parameters())
    total = torch.zeros(())
    for start in starts:
        weights = {name: start.tensors[name].to(like.device, like.dtype) for name in names}
        total = total.to(like.device) + function(weights)(inputs)
    return total / len(starts)
