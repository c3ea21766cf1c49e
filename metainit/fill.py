"""Fill a network from named tensors: everything fits and is copied, or nothing is touched."""

from __future__ import annotations

from collections.abc import Collection, Mapping

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


def fill_parameters(
    network: nn.Module, tensors: Mapping[str, Tensor], skipped: Collection[str], source: str
) -> nn.Module:
    """Copy tensors into the network's parameters, in place; buffers, and what is skipped, stay as they are.

    Raises:
        MismatchError: a parameter has no tensor and is not skipped, names or shapes differ, or a parameter
            cannot be written to; nothing is changed.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> fill_parameters(layer, {'weight': torch.ones(1, 1)}, ['bias'], 'ones').weight.item()
        1.0
    """
    own = dict(network.named_parameters())
    problems = {
        "missing": sorted(own.keys() - tensors.keys() - set(skipped)),
        "unexpected": sorted((tensors.keys() | set(skipped)) - own.keys()),
        "mis-shaped": [
            f"{name} {tuple(tensors[name].shape)} (expected {tuple(own[name].shape)})"
            for name in sorted(own.keys() & tensors.keys())
            if tensors[name].shape != own[name].shape
        ],
    }
    said = "; ".join(f"{title}: {', '.join(names)}" for title, names in problems.items() if names)
    if said:
        raise MismatchError(
            f"{source} was made for another network than this {type(network).__name__}; {said}; nothing was "
            "filled. Predict for this one"
        )
    _refuse_unwritable({name: own[name] for name in tensors})
    with torch.no_grad():
        for name, value in tensors.items():
            own[name].copy_(value)
    return network


def fill(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """Copy tensors into the network, in place, in its own device and dtype.

    Raises:
        MismatchError: names or shapes differ, or a tensor cannot be written to; nothing is changed.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> fill(layer, {'weight': torch.ones(1, 1), 'bias': torch.zeros(1)}, 'ones').weight.item()
        1.0
    """
    check_fits(network, tensors, source)
    own = network.state_dict(keep_vars=True)
    _refuse_unwritable(own)
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return network


def _refuse_unwritable(targets: Mapping[str, Tensor]) -> None:
    """Raise where a tensor does not take values, or takes them and forgets them.

    Raises:
        MismatchError: one has no storage, or shares numbers between places, or was made for inference.
    """
    for name, value in sorted(targets.items()):
        if value.device.type == "meta":
            raise MismatchError(
                f"the network lies on the meta device ({name} has no storage); nothing was filled: give it "
                "storage first, network.to_empty(device='cpu'), and fill its buffers"
            )
        if any(n > 1 and step == 0 for n, step in zip(value.shape, value.stride(), strict=True)):
            raise MismatchError(
                f"{name} is expanded: several of its places share one number; nothing was filled: make it of "
                "expanded values that are cloned, value.expand(...).clone()"
            )
        if value.is_inference() and not torch.is_inference_mode_enabled():
            raise MismatchError(
                f"{name} was made in inference mode and cannot be written to outside; nothing was filled: "
                "build the network outside torch.inference_mode()"
            )
