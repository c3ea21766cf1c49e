"""Analytic rules: the framework's default, Kaiming and orthogonal."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from metainit.errors import MismatchError
from metainit.initializers.base import Context, Role, roles


def default(network: nn.Module, context: Context) -> None:
    """Draw every module's parameters again by its own `reset_parameters`.

    Raises:
        MismatchError: a parameter belongs to a module without that method; nothing is changed.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> default(layer, Context(torch.Generator().manual_seed(0)))
    """
    modules: list[Any] = []
    orphans: list[str] = []
    for prefix, module in network.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if own and callable(getattr(module, "reset_parameters", None)):
            modules.append(module)
        elif own:
            orphans += [f"{prefix}.{name}" if prefix else name for name in own]
    if orphans:
        raise MismatchError(
            f"the parameters {', '.join(orphans)} belong to modules without reset_parameters(); give "
            "those modules one, or use another start"
        )
    # `reset_parameters` takes no generator, so the global one is lent to it and put back.
    with torch.random.fork_rng(devices=[]):
        drawn = int(torch.randint(2**62, (), generator=context.generator))
        torch.default_generator.manual_seed(drawn)
        for module in modules:
            module.reset_parameters()


def kaiming(network: nn.Module, context: Context) -> None:
    r"""Draw weights from :math:`N(0, 2 / \text{fan-in})`; biases 0, normalization weights 1.

    Raises:
        MismatchError: a parameter is none of these; nothing is changed.

    Source: He et al. 2015, "Delving Deep into Rectifiers", section 2.2.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> kaiming(layer, Context(torch.Generator().manual_seed(0)))
        >>> layer.bias.tolist()
        [0.0, 0.0]
    """
    known = roles(network)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if known[name] is Role.WEIGHT:
                nn.init.kaiming_normal_(value, generator=context.generator)
            else:
                value.fill_(1.0 if known[name] is Role.NORM_WEIGHT else 0.0)


def orthogonal(network: nn.Module, context: Context) -> None:
    """Draw semi-orthogonal weights; biases 0, normalization weights 1.

    Raises:
        MismatchError: a parameter is none of these; nothing is changed.

    Source: Saxe et al. 2013, "Exact Solutions to the Nonlinear Dynamics of Learning in Deep Linear Networks".

    Example:
        >>> layer = nn.Linear(3, 3, bias=False)
        >>> orthogonal(layer, Context(torch.Generator().manual_seed(0)))
        >>> bool(torch.allclose(layer.weight @ layer.weight.T, torch.eye(3), atol=1e-5))
        True
    """
    known = roles(network)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if known[name] is Role.WEIGHT:
                # In single precision at least: there is no QR decomposition of half-precision tensors.
                drawn = torch.empty_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
                value.copy_(nn.init.orthogonal_(drawn, generator=context.generator))
            else:
                value.fill_(1.0 if known[name] is Role.NORM_WEIGHT else 0.0)
