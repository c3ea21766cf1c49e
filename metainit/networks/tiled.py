"""Run a network on images of any size in overlapping tiles of the size that it knows."""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from metainit.domains.base import Predict
from metainit.errors import RecipeError

AT_ONCE = 8
"""Tiles in one call of the network."""
OVERLAP = 0.5
"""Part of a tile that it shares with its neighbour."""


def tiled(
    predict: Predict, tile: tuple[int, int], overlap: float = OVERLAP, at_once: int = AT_ONCE
) -> Predict:
    r"""Return the function that runs `predict` on overlapping tiles and blends what comes out.

    .. math:: y(p) = \sum_i w(p - p_i)\, f(x_i)(p - p_i) \Big/ \sum_i w(p - p_i), \quad
        w(r, c) = \sin^2(\pi (r + 1/2) / h)\, \sin^2(\pi (c + 1/2) / w)

    The window falls to nearly zero at a tile's border, where a network knows least of the surroundings, so
    that no seam shows. Tiles are spread evenly and never reach over the border of the image; along an axis on
    which the image is no larger than a tile, there is one tile of the image's size. Beside the result, memory
    is that of `at_once` tiles, whatever the size of the image. Where every pixel is computed from itself
    alone, and where there is one tile, the result is `predict`'s own.

    A network that normalizes over the batch sees `at_once` tiles of one image in place of an image.

    Shapes: images ``(N, C, H, W)`` -> ``(N, K, H, W)``. Blend probabilities rather than logits where one tile
    may be much surer than another. No gradients are kept.

    Args:
        predict: the network with its weights filled in; as many pixels come out as go in.
        tile: its height and width.
        overlap: of neighbouring tiles, at least, relative to their size.
        at_once: how many tiles one call of `predict` gets.

    Raises:
        RecipeError: a size is not positive, or the overlap is not in [0, 1).

    Source: after Pielawski & Wählby 2020, "Introducing Hann windows for reducing edge-effects in patch-based
    image segmentation", PLOS ONE 15(3).

    Example:
        >>> image = torch.rand(1, 3, 50, 70)
        >>> blended = tiled(lambda x: 2 * x, tile=(16, 24))(image)
        >>> torch.allclose(blended, 2 * image)
        True
    """
    if min(*tile, at_once) < 1 or not 0 <= overlap < 1:
        raise RecipeError(
            f"expected a positive tile and at_once and an overlap in [0, 1), got tile={tile}, "
            f"at_once={at_once}, overlap={overlap}"
        )

    def blended(images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [_blended(predict, image, tile, overlap, at_once) for image in torch.split(images, 1)]
            )

    return blended


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Return where the tiles begin along one axis: the fewest, evenly spread, that overlap enough.

    Example:
        >>> tile_starts(100, 40, 0.25), tile_starts(30, 40, 0.25)
        ([0, 30, 60], [0])
    """
    if length <= tile:
        return [0]
    stride = max(1, math.floor(tile * (1 - overlap)))
    count = math.ceil((length - tile) / stride) + 1
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def window(height: int, width: int, like: Tensor) -> Tensor:
    """Return the blending window ``(height, width)``, positive everywhere."""
    rows, columns = (
        torch.sin(math.pi * (torch.arange(n, dtype=like.dtype, device=like.device) + 0.5) / n).square()
        for n in (height, width)
    )
    return rows[:, None] * columns


def _blended(predict: Predict, image: Tensor, tile: tuple[int, int], overlap: float, at_once: int) -> Tensor:
    """Blend the tiles of one image ``(1, C, H, W)``."""
    full_height, full_width = image.shape[-2:]
    height, width = min(tile[0], full_height), min(tile[1], full_width)
    corners = list(
        product(tile_starts(full_height, tile[0], overlap), tile_starts(full_width, tile[1], overlap))
    )
    if len(corners) == 1:
        return predict(image)
    weight = window(height, width, image)
    total = weight.new_zeros(full_height, full_width)
    result: Tensor | None = None
    for first in range(0, len(corners), at_once):
        part = corners[first : first + at_once]
        found = predict(torch.cat([image[..., r : r + height, c : c + width] for r, c in part]))
        if result is None:
            result = found.new_zeros(1, found.shape[1], full_height, full_width)
        for (row, column), one in zip(part, found, strict=True):
            result[0, :, row : row + height, column : column + width] += weight * one
            total[row : row + height, column : column + width] += weight
    assert result is not None
    return result / total
