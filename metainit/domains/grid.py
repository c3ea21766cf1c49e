"""Coordinates of pixel centres, the input of every network that stands for an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metainit.errors import DataError

CENTRED = 0.25
"""How far rounding may move a pixel centre, in pixels; float16 stays below it up to 2,048 pixels a side."""


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


def pixels_at(coordinates: Tensor, height: int, width: int) -> Tensor:
    """Return the rows of `pixel_grid` that coordinates are, the inverse of ``pixel_grid(...)[rows]``.

    Args:
        coordinates: ``(n, 2)``, pixel centres.
        height: of the image.
        width: of the image.

    Raises:
        DataError: a coordinate is no pixel centre of such an image.

    Example:
        >>> pixels_at(pixel_grid(3, 5)[[7, 2]], 3, 5).tolist()
        [7, 2]
    """
    sides = torch.tensor([height, width], dtype=torch.float64, device=coordinates.device)
    places = ((coordinates.double() + 1) * sides - 1) / 2
    rows = places.round()
    if bool(((places - rows).abs() > CENTRED).any() or (rows < 0).any() or (rows >= sides).any()):
        raise DataError(
            f"expected coordinates of pixel centres of an image of {height}x{width} pixels, as pixel_grid "
            "gives them; got others"
        )
    return (rows[:, 0] * width + rows[:, 1]).long()


def stratified_pixels(height: int, width: int, count: int, generator: torch.Generator) -> Tensor:
    r"""Return about `count` different pixels, one drawn from each cell of a grid of equal cells.

    The grid has :math:`r = \mathrm{round}\sqrt{nH/W}` rows and :math:`\lfloor n/r \rfloor` columns, so that
    its cells are about square. A mean over such pixels varies far less than over as many independent ones:
    what differs between neighbours is all that is left to chance.

    Returns:
        Indices into the rows of `pixel_grid`, ``(r * columns,)``: never more than `count`.

    Source: Cook 1986, "Stochastic Sampling in Computer Graphics", section 3.2 (jittered sampling).

    Example:
        >>> chosen = stratified_pixels(4, 4, 4, torch.Generator().manual_seed(0))
        >>> (chosen // 8).tolist()
        [0, 0, 1, 1]
    """
    rows = min(height, count, max(1, round(math.sqrt(count * height / width))))
    columns = min(width, count // rows)
    y = _one_of_each(height, rows, (rows, columns), generator)
    x = _one_of_each(width, columns, (columns, rows), generator).T
    return (y * width + x).flatten()


def _one_of_each(length: int, cells: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return, for each cell along an axis, as many places in it as the other axis has cells."""
    edges = torch.arange(cells + 1) * length // cells
    first, size = edges[:-1, None], edges.diff()[:, None]
    return first + (torch.rand(shape, generator=generator) * size).long()
