"""Fill a network from named tensors: everything fits and is copied, or nothing is touched."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from metainit.errors import MismatchError


def check_fits(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise unless the tensors are exactly the network's state dict, by name and shape.

    Raises:
        MismatchError: lists every missing, unexpected and mis-shaped tensor.
    """
    expected = network.state_dict()
    missing = sorted(set(expected) - set(tensors))
    unexpected = sorted(set(tensors) - set(expected))
    misshaped = [
        f"{name} {tuple(tensors[name].shape)} (expected {tuple(expected[name].shape)})"
        for name in sorted(set(expected) & set(tensors))
        if tensors[name].shape != expected[name].shape
    ]
    problems = [
        f"{title}: {', '.join(names)}"
        for title, names in (
            ("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped),
        )
        if names
    ]  # fmt: skip
    if problems:
        raise MismatchError(
            f"{source} does not fit this {type(network).__name__}; {'; '.join(problems)}; nothing was "
            "filled. Build the network that the card names: metainit.networks.build(start.card.network)"
        )


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """Copy tensors into the network, in place, in its own device and dtype.

    Raises:
        MismatchError: names or shapes differ; nothing is changed.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> fill(layer, {'weight': torch.ones(1, 1), 'bias': torch.zeros(1)}, 'ones').weight.item()
        1.0
    """
    check_fits(network, tensors, source)
    with torch.no_grad():
        for name, value in network.state_dict(keep_vars=True).items():
            value.copy_(tensors[name])
    return network
