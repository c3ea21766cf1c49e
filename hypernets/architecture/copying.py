"""Copies of a network to run in its place: the user's own is neither called nor changed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from metainit.errors import GraphError

UNCOPYABLE = (TypeError, RuntimeError, AttributeError)
"""What Python and PyTorch raise where a value cannot be copied: a lock, an open file, a tensor in a graph."""


def copy_network(network: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """Return a deep copy whose parameters, buffers and tensor attributes are `convert` of the network's.

    What is shared stays shared, as tied weights are. Attributes that cannot be copied (locks, open files) are
    shared with the original.

    Raises:
        GraphError: a lazy layer does not know its shape yet.
    """
    for name, parameter in network.named_parameters():
        if is_lazy(parameter):
            raise GraphError(
                f"{name} has no shape before the first forward pass (a lazy layer): call the network on the "
                "example inputs once, then trace it"
            )
    memo: dict[int, object] = {}
    for tensor in _tensors(network):
        if id(tensor) not in memo:
            memo[id(tensor)] = convert(tensor)
    try:
        return copy.deepcopy(network, dict(memo))
    except UNCOPYABLE:
        for module in network.modules():
            for value in vars(module).values():
                if not _copies(value, memo):
                    memo[id(value)] = value
        return copy.deepcopy(network, memo)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _copies(value: object, memo: dict[int, object]) -> bool:
    if isinstance(value, (nn.Module, dict)):
        return True
    try:
        copy.deepcopy(value, dict(memo))
    except UNCOPYABLE:
        return False
    return True


@contextmanager
def random_state_kept(network: nn.Module) -> Iterator[None]:
    """Fix the random states of torch (on the network's devices), Python and NumPy; put them back later."""
    devices = {p.device for p in network.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next(iter(devices)).type if devices else "cuda"
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([d for d in devices if d.type == kind], device_type=kind):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
