"""LSUV: orthogonal weights, scaled layer by layer to unit variance on data."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from metainit.errors import MismatchError
from metainit.initializers.analytic import orthogonal
from metainit.initializers.base import Context, HasPreActivation, need

TOLERANCE = 0.01
MAX_ROUNDS = 10
SCALED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def lsuv(network: nn.Module, context: Context) -> None:
    """Scale orthogonal weights until each layer's output has unit variance on `example_inputs`.

    Layers that apply their own activation are judged before it.

    Raises:
        MismatchError: no example inputs are given, or they do not fit the network, or a layer's output is
            constant or not finite on them; nothing is changed.

    Source: Mishkin & Matas 2015, "All You Need Is a Good Init", algorithm 1.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8))
        >>> x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
        >>> lsuv(network, Context(torch.Generator().manual_seed(0), example_inputs=x))
        >>> round(float(network(x).detach().std()), 1)
        1.0
    """
    inputs = need(context.example_inputs, "example_inputs", "LSUV measures variances on data")
    like = next(network.parameters(), inputs)
    inputs = inputs.to(like.dtype) if inputs.is_floating_point() else inputs
    before = {k: v.detach().clone() for k, v in network.state_dict().items()}
    try:
        orthogonal(network, context)
        for name, module in network.named_modules():
            if isinstance(module, SCALED):
                _scale(network, name, module, inputs)
    except (MismatchError, RuntimeError) as error:
        network.load_state_dict(before)
        if isinstance(error, MismatchError):
            raise
        raise MismatchError(f"example_inputs do not fit the network: {error}") from error
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name in before:
                buffer.copy_(before[name])  # running statistics saw the layers half-scaled


def _scale(network: nn.Module, name: str, module: nn.Module, inputs: Tensor) -> None:
    for _ in range(MAX_ROUNDS):
        output = _output(network, name, module, inputs)
        spread = float(output.std(correction=0)) if output.numel() else 0.0
        if abs(spread - 1) < TOLERANCE:
            return
        if not 1e-12 < spread < math.inf:
            what = "constant" if spread <= 1e-12 else "not finite"
            raise MismatchError(f"layer {name} is {what} on example_inputs: give other ones")
        with torch.no_grad():
            module.get_parameter("weight").div_(spread)


def _output(network: nn.Module, name: str, module: nn.Module, inputs: Tensor) -> Tensor:
    seen: list[Tensor] = []

    def keep(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        of = layer.pre_activation(arguments[0]) if isinstance(layer, HasPreActivation) else output
        seen.append(of.detach())

    handle = module.register_forward_hook(keep)
    try:
        with torch.no_grad():
            network(inputs)
    finally:
        handle.remove()
    if not seen:
        raise MismatchError(f"layer {name} is not called on example_inputs, so its output has no variance")
    return seen[0]
