"""Parallel-beam projections as a differentiable, batched torch operation.

One `grid_sample` gives all views of all images; its adjoint is written out as a second operation,
so that derivatives of any order exist (torch itself cannot differentiate `grid_sample` twice).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from metainit.errors import DataError

_broadcast: Callable[..., torch.Size] = torch.broadcast_shapes


@dataclass(frozen=True)
class _Geometry:
    """Where the rays run, in pixels of an image of `height` x `width`."""

    height: int
    width: int
    field: int
    """Width of the detector and length of the rays, in pixels."""
    detectors: int


def radon(images: Tensor, angles: Tensor, *, circle: bool = True, detectors: int | None = None) -> Tensor:
    r"""Return the parallel-beam projections of images, linear in the image.

    .. math::
        p(\theta, s) = \sum_t
            f(x_c + s \cos\theta + t \sin\theta,\; y_c - s \sin\theta + t \cos\theta)

    with bilinear interpolation and zero outside of the image; the centre :math:`(x_c, y_c)` is the
    pixel ``(width // 2, height // 2)`` and both s and t run over integers. These are the
    conventions of `skimage.transform.radon`, to floating point precision (with views before
    detectors).

    Works under `torch.func.vmap`, `grad` and `jvp`, and can be differentiated any number of times
    with respect to the images; the angles are constants. On a GPU the backward pass adds in no
    fixed order, so its last bits can differ between runs.

    Args:
        images: ``(..., height, width)``, any floating dtype and device.
        angles: degrees, ``(views,)`` for all images, or ``(..., views)`` whose leading dimensions
            broadcast with those of `images` (each task its own angles).
        circle: the detector is as wide as the shorter side, and the image is cropped to the central
            square; what lies outside the inscribed circle is missed by some views. False: as wide
            as the diagonal, ``ceil(sqrt(2) * max(height, width))``, so that every view sees the
            whole image.
        detectors: number of detector bins over that width; by default one a pixel.

    Returns:
        ``(..., views, detectors)`` in pixel units: divide by the image width for a line integral
        over the unit square.

    Raises:
        DataError: `images` is not a floating tensor of at least two dimensions, there is no angle,
            or the leading dimensions do not broadcast.

    Source:
        Kak and Slaney, Principles of Computerized Tomographic Imaging (1988), chapter 3.1.

    Example:
        >>> square = torch.zeros(8, 8)
        >>> square[3:6, 3:6] = 1
        >>> radon(square, torch.tensor([0.0]))[0].tolist()
        [0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 0.0, 0.0]
    """
    _check(images, angles, detectors)
    if circle:
        images = _central_square(images)
    height, width = images.shape[-2:]
    field = height if circle else math.ceil(math.sqrt(2) * max(height, width))
    geometry = _Geometry(height, width, field, detectors or field)
    dtype = images.dtype
    work = torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
    batch = images.shape[:-2]
    if angles.ndim == 1:
        flat = images.reshape(1, -1, height, width)
        turned = angles.reshape(1, -1)
    else:
        try:
            batch = _broadcast(batch, angles.shape[:-1])
        except RuntimeError as error:
            raise DataError(
                f"radon: images {tuple(images.shape)} and angles {tuple(angles.shape)} have "
                "leading dimensions that do not broadcast; give angles (views,), or one row of "
                "angles for each image"
            ) from error
        flat = images.expand(*batch, height, width).reshape(-1, 1, height, width)
        turned = angles.expand(*batch, -1).reshape(-1, angles.shape[-1])
    sinogram = _apply(_Project, flat.to(work), turned.to(work), geometry)
    return sinogram.reshape(*batch, angles.shape[-1], geometry.detectors).to(dtype)


def _check(images: Tensor, angles: Tensor, detectors: int | None) -> None:
    if images.ndim < 2 or not images.is_floating_point():
        raise DataError(
            "radon: expected a floating tensor (..., height, width) for images, came "
            f"{tuple(images.shape)} of {images.dtype}"
        )
    if angles.ndim < 1 or angles.shape[-1] < 1:
        raise DataError(f"radon: expected at least one angle (..., views), came {tuple(angles.shape)}")
    if detectors is not None and detectors < 1:
        raise DataError(f"radon: expected at least one detector, came {detectors}")


def _central_square(images: Tensor) -> Tensor:
    side = min(images.shape[-2:])
    top, left = (math.ceil((length - side) / 2) for length in images.shape[-2:])
    return images[..., top : top + side, left : left + side]


def _sampling_grid(angles: Tensor, geometry: _Geometry) -> Tensor:
    """Return where to sample, ``(batch, views * samples, detectors, 2)`` in grid_sample's units."""
    g = geometry
    bins = torch.arange(g.detectors, dtype=angles.dtype, device=angles.device)
    s = (bins + 0.5) * (g.field / g.detectors) - 0.5 - g.field // 2
    t = torch.arange(g.field, dtype=angles.dtype, device=angles.device)[:, None] - g.field // 2
    radians = torch.deg2rad(angles)[..., None, None]
    cosine, sine = torch.cos(radians), torch.sin(radians)
    x = cosine * s + sine * t + g.width // 2
    y = cosine * t - sine * s + g.height // 2
    grid = torch.stack(((2 * x + 1) / g.width - 1, (2 * y + 1) / g.height - 1), dim=-1)
    return grid.flatten(1, 2)


def _project(images: Tensor, angles: Tensor, geometry: _Geometry) -> Tensor:
    """Images ``(batch, channels, height, width)`` -> ``(batch, channels, views, detectors)``."""
    grid = _sampling_grid(angles, geometry)
    rays = functional.grid_sample(images, grid, "bilinear", "zeros", align_corners=False)
    return rays.reshape(*images.shape[:2], angles.shape[-1], geometry.field, -1).sum(dim=3)


def _backproject(sinogram: Tensor, angles: Tensor, geometry: _Geometry) -> Tensor:
    """Apply the exact adjoint: ``(batch, channels, views, detectors)`` -> images."""
    grid = _sampling_grid(angles, geometry)
    views, field = angles.shape[-1], geometry.field
    rays = (
        sinogram.unsqueeze(3)
        .expand(-1, -1, -1, field, -1)
        .reshape(*sinogram.shape[:2], views * field, geometry.detectors)
    )
    like = sinogram.new_zeros(1).expand(*sinogram.shape[:2], geometry.height, geometry.width)
    bilinear, zeros = 0, 0
    images, _ = torch.ops.aten.grid_sampler_2d_backward(
        rays, like, grid, bilinear, zeros, False, (True, False)
    )
    return cast(Tensor, images)


def _apply(
    operation: type[torch.autograd.Function], values: Tensor, angles: Tensor, geometry: _Geometry
) -> Tensor:
    return cast(Tensor, operation.apply(values, angles, geometry))  # type: ignore[no-untyped-call]


def _vmap(
    operation: type[torch.autograd.Function],
    in_dims: tuple[int | None, ...],
    values: Tensor,
    angles: Tensor,
    geometry: _Geometry,
) -> tuple[Tensor, int]:
    """Fold the mapped dimension into the batch (own angles) or the channels (shared angles)."""
    values_dim, angles_dim = in_dims[0], in_dims[1]
    if angles_dim is None:
        folded = values.movedim(values_dim or 0, 1)
        size, channels = folded.shape[1:3]
        out = _apply(operation, folded.flatten(1, 2), angles, geometry)
        return out.reshape(len(out), size, channels, *out.shape[2:]), 1
    angles = angles.movedim(angles_dim, 0)
    size, batch = angles.shape[:2]
    if values_dim is None:
        values = values.expand(size, *values.shape)
    else:
        values = values.movedim(values_dim, 0)
    out = _apply(operation, values.flatten(0, 1), angles.flatten(0, 1), geometry)
    return out.reshape(size, batch, *out.shape[1:]), 0


def _remember(ctx: Any, inputs: tuple[Any, ...]) -> None:
    _, angles, ctx.geometry = inputs
    ctx.save_for_backward(angles)
    ctx.save_for_forward(angles)


class _Project(torch.autograd.Function):
    """Projection; its derivative is `_Backproject`."""

    @staticmethod
    def forward(images: Tensor, angles: Tensor, geometry: _Geometry) -> Tensor:
        return _project(images, angles, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _remember(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _apply(_Backproject, grads[0], ctx.saved_tensors[0], ctx.geometry), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _apply(_Project, tangents[0], ctx.saved_tensors[0], ctx.geometry)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        return _vmap(_Project, in_dims, *args)


class _Backproject(torch.autograd.Function):
    """Adjoint of `_Project`; its derivative is `_Project`."""

    @staticmethod
    def forward(sinogram: Tensor, angles: Tensor, geometry: _Geometry) -> Tensor:
        return _backproject(sinogram, angles, geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _remember(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _apply(_Project, grads[0], ctx.saved_tensors[0], ctx.geometry), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _apply(_Backproject, tangents[0], ctx.saved_tensors[0], ctx.geometry)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        return _vmap(_Backproject, in_dims, *args)
