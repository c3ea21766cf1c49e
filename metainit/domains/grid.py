"""Coordinates of pixel centres, the input of every network that stands for an image."""

from __future__ import annotations

import torch
from torch import Tensor


def pixel_grid(
    height: int,
    width: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    r"""Return the pixel centres of an image in :math:`[-1, 1]^2`, the first row first.

    Pixel (i, j) has the coordinates :math:`((2i + 1) / H - 1, (2j + 1) / W - 1)`: y first
    (downwards), then x (to the right). The same field of view at another resolution covers the same
    square, so a network fitted at one size can be rendered at any other.

    Returns:
        ``(height * width, 2)``, row by row.

    Example:
        >>> pixel_grid(2, 2).tolist()
        [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]
    """
    y = (2 * torch.arange(height, dtype=torch.float64, device=device) + 1) / height - 1
    x = (2 * torch.arange(width, dtype=torch.float64, device=device) + 1) / width - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1)
    return grid.reshape(height * width, 2).to(dtype)
