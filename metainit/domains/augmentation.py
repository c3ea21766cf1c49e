"""Augmentation of labelled images: image and label move together, and the light on the image changes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from metainit.card import Record
from metainit.domains.base import Tensors


class AugmentationConfig(Record):
    """How far an augmented image may move from the one it was made of.

    `flips`: axes that may be mirrored; leave the vertical one out where up and down differ, and both where
    left and right do as well. Angles are in degrees; `scale` and `gamma` are the largest factors.
    """

    flips: tuple[Literal["horizontal", "vertical"], ...] = ("horizontal", "vertical")
    angle: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=1.15, ge=1, le=4)
    shift: float = Field(default=0.05, ge=0, le=0.5)
    brightness: float = Field(default=0.1, ge=0, le=1)
    contrast: float = Field(default=0.2, ge=0, le=1)
    gamma: float = Field(default=1.2, ge=1, le=4)
    noise: float = Field(default=0.03, ge=0, le=1)


def augmented(
    observed: Tensors,
    generator: Generator,
    probability: float = 0.5,
    config: AugmentationConfig | None = None,
) -> Tensors:
    """Return labelled images of which each was changed with some probability.

    Images are resampled linearly and labels to the nearest pixel, with the picture mirrored at its border, so
    that a label stays the label of what it lies on and none is made up. Light (brightness, contrast, gamma,
    noise) changes the image alone.

    Args:
        observed: ``images (..., channels, height, width)`` in [0, 1] and ``labels (..., height, width)``; the
            support or query of a task, or of a batch of them.
        generator: where the changes are drawn; the result is a function of it and of the other arguments.
        probability: that an image is changed.
        config: how far.

    Source:
        Hendryx et al. 2019 (arXiv:1912.06290) augment half of the images of the inner loop with mirroring,
        translation, rotation, noise, exposure and erased rectangles; here without the rectangles.

    Example:
        >>> observed = {'images': torch.rand(2, 3, 8, 8), 'labels': torch.zeros(2, 8, 8, dtype=torch.long)}
        >>> changed = augmented(observed, torch.Generator().manual_seed(0))
        >>> changed['images'].shape, changed['labels'].dtype
        (torch.Size([2, 3, 8, 8]), torch.int64)
    """
    config = config or AugmentationConfig()
    images, labels = observed["images"], observed["labels"]
    flat = images.reshape(-1, *images.shape[-3:])
    marks = labels.reshape(-1, *labels.shape[-2:])
    chosen = torch.rand(len(flat), generator=generator) < probability
    grid = _sampling_grid(len(flat), flat.shape[-2], flat.shape[-1], config, generator).to(flat)
    moved = torch.nn.functional.grid_sample(flat, grid, padding_mode="reflection", align_corners=False)
    lit = _relit(moved, config, generator)
    moved_marks = torch.nn.functional.grid_sample(
        marks[:, None].to(flat.dtype), grid, mode="nearest", padding_mode="reflection", align_corners=False
    )
    here = chosen.to(flat.device)[:, None, None]
    return {
        **observed,
        "images": torch.where(here[:, None], lit, flat).reshape(images.shape),
        "labels": torch.where(here, moved_marks[:, 0].round().to(labels.dtype), marks).reshape(labels.shape),
    }


def _sampling_grid(
    n: int, height: int, width: int, config: AugmentationConfig, generator: Generator
) -> Tensor:
    """Return where each pixel of the result is taken from, ``(n, height, width, 2)``."""

    def signed() -> Tensor:
        return 2 * torch.rand(n, generator=generator) - 1

    turn = math.radians(config.angle) * signed()
    scale = torch.exp(math.log(config.scale) * signed())
    mirror = torch.stack(
        [
            torch.where((torch.rand(n, generator=generator) < 0.5) & (axis in config.flips), -1.0, 1.0)
            for axis in ("horizontal", "vertical")
        ],
        dim=-1,
    )
    aspect = width / height
    cosine, sine = torch.cos(turn) * scale, torch.sin(turn) * scale
    # Coordinates run from -1 to 1 along both sides: turning a frame that is no square needs its aspect.
    matrix = torch.stack(
        [
            torch.stack([cosine, -sine / aspect], -1) * mirror,
            torch.stack([sine * aspect, cosine], -1) * mirror,
        ],
        dim=1,
    )
    offset = 2 * config.shift * torch.stack([signed(), signed()], dim=-1)
    theta = torch.cat([matrix, offset[..., None]], dim=-1)
    return torch.nn.functional.affine_grid(theta, [n, 1, height, width], align_corners=False)


def _relit(images: Tensor, config: AugmentationConfig, generator: Generator) -> Tensor:
    n = len(images)

    def signed() -> Tensor:
        return (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1).to(images)

    middle = images.mean((-3, -2, -1), keepdim=True)
    lit = middle + (images - middle) * (1 + config.contrast * signed()) + config.brightness * signed()
    lit = lit.clamp(0, 1) ** torch.exp(math.log(config.gamma) * signed())
    strength = config.noise * torch.rand(n, 1, 1, 1, generator=generator).to(images)
    return (lit + strength * torch.randn(lit.shape, generator=generator).to(images)).clamp(0, 1)


def recoloured(observed: Tensors, generator: Generator) -> Tensors:
    """Return a task under another light: one change for all of its images, which makes it another task.

    Channels are permuted, some inverted, and the curve is bent. What a class looks like then has to be read
    off the support, and cannot be remembered from earlier tasks.

    Source:
        Rajendran et al. 2020, Meta-Learning Requires Meta-Augmentation, arXiv:2007.05549, here for images.

    Example:
        >>> task = {'images': torch.rand(2, 3, 4, 4), 'labels': torch.zeros(2, 4, 4)}
        >>> recoloured(task, torch.Generator().manual_seed(0))['images'].shape
        torch.Size([2, 3, 4, 4])
    """
    images = observed["images"]
    order = torch.randperm(images.shape[-3], generator=generator).to(images.device)
    inverted = (torch.rand(images.shape[-3], 1, 1, generator=generator) < 0.3).to(images)
    bend = torch.exp(0.4 * torch.randn(images.shape[-3], 1, 1, generator=generator)).to(images)
    changed = images.index_select(-3, order)
    return {**observed, "images": (changed + inverted * (1 - 2 * changed)).clamp(0, 1) ** bend}
