"""Normalization layers that are pure functions of their input and weights: no running statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

Norm = Literal["group", "batch"]
"""``group``: each image alone. ``batch``: with the statistics of the batch at hand, so that an image's output
depends on its neighbours (transductive where the batch is the query)."""

MAX_GROUPS = 8


class BatchStatistics(nn.BatchNorm2d):
    """Batch normalization with the statistics of the batch at hand, in training and in use alike.

    It has no buffers, so that a network stays a function of its weights under `torch.func`, and it takes a
    batch of one value a channel, which the framework's refuses: that one is normalized to the bias.

    Shapes: ``(N, channels, H, W)`` -> the same.

    Source: Ioffe & Szegedy 2015, algorithm 1. As the transductive evaluation of Nichol et al. 2018 and of
    Hendryx et al. 2019 uses it.

    Example:
        >>> out = BatchStatistics(3).eval()(torch.rand(4, 3, 8, 8))
        >>> bool(out.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel over images and pixels."""
        return torch.batch_norm(
            input, self.weight, self.bias, None, None, True, 0.0, self.eps, torch.backends.cudnn.enabled
        )


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a group normalization with at most 8 groups, of at least two channels each where they divide.

    Source: Wu & He 2018, "Group Normalization", arXiv:1803.08494.

    Example:
        >>> [group_norm(c).num_groups for c in (2, 8, 24, 112)]
        [1, 4, 8, 8]
    """
    fitting = [g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and channels >= 2 * g]
    return nn.GroupNorm(max(fitting, default=1), channels)


_MAKERS: Mapping[str, Callable[[int], nn.Module]] = MappingProxyType(
    {"group": group_norm, "batch": BatchStatistics}
)


def normalization(norm: Norm, channels: int) -> nn.Module:
    """Return a normalization layer by the name of its kind.

    Raises:
        ValueError: the name is unknown.

    Example:
        >>> type(normalization('batch', 4)).__name__
        'BatchStatistics'
    """
    if norm not in _MAKERS:
        raise ValueError(f"norm is {norm!r}, the choices are: {', '.join(sorted(_MAKERS))}")
    return _MAKERS[norm](channels)
