"""Starts for networks of any architecture: predicted weights, and the controls that they are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metainit.domains.seeding import generator_of
from metainit.errors import MismatchError
from metainit.fill import fill_parameters
from metainit.initialization import load

Predict = Callable[[nn.Module, int], Mapping[str, Tensor]]
"""(network, seed) -> a value for each of its parameters."""
Fill = Callable[[nn.Module, int], None]
"""Fills a network in place from a seed."""


@dataclass(frozen=True)
class Start:
    """A named way to fill networks."""

    name: str
    fill: Fill


def predicted(predict: Predict, name: str = "predicted") -> Start:
    """Return the start that fills a network with what is predicted for it.

    Example:
        >>> def all_ones(network, seed):
        ...     return {name: torch.ones_like(value) for name, value in network.named_parameters()}
        >>> ones = predicted(all_ones)
        >>> layer = nn.Linear(1, 1)
        >>> ones.fill(layer, 0)
        >>> layer.weight.item()
        1.0
    """

    def fill(network: nn.Module, seed: int) -> None:
        _filled(network, predict(network, seed), name)

    return Start(name, fill)


def scale_only(predict: Predict, name: str = "scale_only") -> Start:
    """Return the control that keeps nothing of a prediction but the scale of each tensor.

    Matrices, kernels and tables are normal with the predicted tensor's standard deviation around 0; vectors
    around the predicted mean, which is near 1 for gains.
    """

    def fill(network: nn.Module, seed: int) -> None:
        drawn = {}
        for key, value in predict(network, seed).items():
            flat = value.detach().float()
            centre = flat.mean() if value.dim() < 2 else torch.zeros(())
            noise = torch.randn(value.shape, generator=generator_of("scale only", seed, key))
            drawn[key] = centre + flat.std(correction=0) * noise
        _filled(network, drawn, name)

    return Start(name, fill)


def analytic(source: str) -> Start:
    """Return an analytic rule of `metainit.load` as a start, drawn from the seed.

    Raises:
        SourceError: there is no such source.
    """
    rule = load(source)

    def fill(network: nn.Module, seed: int) -> None:
        rule.init_(network, seed=seed)

    return Start(source, fill)


def _filled(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Fill every parameter in place.

    Raises:
        MismatchError: a parameter has no value, or one of another shape, or one that is not finite, or a
            value has no parameter; nothing is changed.
    """
    if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
        raise MismatchError(
            f"{source} is not finite: {', '.join(bad)}; nothing was filled: use another start"
        )
    fill_parameters(network, weights, (), source)
