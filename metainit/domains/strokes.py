"""Draw written characters as strokes on a cluttered ground: a segmentation task of handwriting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Generator

from metainit.domains.fields import happens, log_uniform, number, smooth_noise, uniform, whole
from metainit.domains.images import Array, resized
from metainit.domains.masks import Mask

MAX_CLUTTER = 2
"""Largest number of other characters in an image."""


def on_clutter(
    glyph: Array, others: Sequence[Array], height: int, width: int, channels: int, generator: Generator
) -> tuple[Array, Mask]:
    """Draw a character on a textured ground among others, and return the mask of its strokes.

    Size, place, ink and ground vary; half of the other characters are written in the same ink, so that
    colour does not tell them apart.

    Args:
        glyph: ``(h, w)`` in [0, 1], ink is high.
        others: characters of other classes, from which the clutter is drawn.
        height: of the image.
        width: of the image.
        channels: of the image.
        generator: where everything is drawn.

    Returns:
        The image ``(height, width, channels)`` in [0, 1] and the mask ``(height, width)``.

    Example:
        >>> cross = np.eye(8, dtype=np.float32)
        >>> image, mask = on_clutter(cross, [], 32, 32, 3, torch.Generator().manual_seed(0))
        >>> image.shape, bool(mask.sum() > 8)
        ((32, 32, 3), True)
    """
    ground = _ground(height, width, channels, generator)
    ink = _ink(ground.mean((0, 1)), generator)
    for _ in range(whole(generator, 0, MAX_CLUTTER) if others else 0):
        other = others[whole(generator, 0, len(others) - 1)]
        own = ink if happens(generator, 0.5) else _ink(ground.mean((0, 1)), generator)
        cover = _placed(other, height, width, generator)
        ground = ground * (1 - cover) + own * cover
    cover = _placed(glyph, height, width, generator)
    image = ground * (1 - cover) + ink * cover
    noise = number(generator, 0, 0.06) * torch.randn(image.shape, generator=generator).numpy()
    return np.clip(image + noise, 0, 1).astype(np.float32), (cover[..., 0] > 0.5).astype(np.uint8)


def _placed(glyph: Array, height: int, width: int, generator: Generator) -> npt.NDArray[np.float32]:
    """Return how far each pixel is covered by ink, ``(height, width, 1)``."""
    side = round(min(height, width) * number(generator, 0.5, 0.9))
    top, left = whole(generator, 0, height - side), whole(generator, 0, width - side)
    cover = np.zeros((height, width, 1), dtype=np.float32)
    drawn = resized(glyph[..., None], side, side)
    cover[top : top + side, left : left + side] = drawn / max(float(drawn.max()), 1e-6)
    # A steeper edge, so that pen and mask have the same width at every size.
    return np.asarray(np.clip(3 * cover - 0.9, 0, 1), dtype=np.float32)


def _ground(height: int, width: int, channels: int, generator: Generator) -> npt.NDArray[np.float32]:
    lengths = log_uniform(generator, 0.01, 0.2, 2)
    fields = smooth_noise((height, width), lengths, generator).reshape(2, height, width, 1).numpy()
    strengths = (0.12 * torch.rand(2, channels, generator=generator)).numpy()
    colour = uniform(generator, 0.1, 0.9, channels).numpy()
    ground = colour + fields[0] * strengths[0] + fields[1] * strengths[1]
    return np.asarray(np.clip(ground, 0, 1), dtype=np.float32)


def _ink(ground: npt.NDArray[np.float32], generator: Generator) -> npt.NDArray[np.float32]:
    """Return a colour that differs from the ground's, darker or lighter on the whole."""
    colour: npt.NDArray[np.float32] = uniform(generator, 0, 1, len(ground)).numpy()
    shift = ground.mean() + (0.35 if ground.mean() < 0.5 else -0.35) - colour.mean()
    return np.asarray(np.clip(colour + shift, 0, 1), dtype=np.float32)
