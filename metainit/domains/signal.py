"""What the domains of signals (images, slices) have in common: metric, controls and pictures."""

from __future__ import annotations

from torch import Tensor

METRIC = "psnr"
CONTROLS = (
    "default",
    "kaiming",
    "orthogonal",
    "siren",
    "siren_scaled",
    "lsuv",
    "mean_signal",
    "matched",
    "shuffled",
)
"""Every analytic start, the mean training signal, and two made from the start that is measured."""


def as_picture(signal: Tensor) -> Tensor:
    """Return a signal ``(height, width, channels)`` with 1 or 3 channels; of other numbers their mean.

    Example:
        >>> import torch
        >>> as_picture(torch.zeros(4, 5, 2)).shape
        torch.Size([4, 5, 1])
    """
    return signal if signal.shape[-1] in (1, 3) else signal.mean(-1, keepdim=True)
