"""Image metrics: peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor

from metainit.errors import DataError

MAX_PSNR = 100.0
"""Ceiling of `psnr` in dB: an error below it is rounding, and infinity does not go into JSON."""


def psnr(a: Tensor, b: Tensor) -> float:
    r"""Return the peak signal-to-noise ratio of two images in dB, at most `MAX_PSNR`.

    .. math:: -10 \log_{10} \operatorname{mean}((a - b)^2)

    for a data range of 1.

    Args:
        a: ``(height, width, channels)``, values in [0, 1].
        b: the same shape.

    Raises:
        DataError: the shapes differ.

    Example:
        >>> import torch
        >>> psnr(torch.zeros(8, 8, 1), torch.full((8, 8, 1), 0.1))
        20.0
    """
    _same_shape(a, b)
    error = float((a.detach().double() - b.detach().double()).square().mean())
    if math.isnan(error):
        return math.nan
    return round(min(-10 * math.log10(max(error, 1e-300)), MAX_PSNR), 6)


def ssim(a: Tensor, b: Tensor) -> float:
    """Return the mean structural similarity of two images, in [-1, 1].

    A Gaussian window of 11 x 11 (standard deviation 1.5), population statistics, data range 1, mean
    over channels. Images with a side below 11 lose less of their border to the window.

    Args:
        a: ``(height, width, channels)``, values in [0, 1].
        b: the same shape.

    Raises:
        DataError: the shapes differ.

    Source:
        Wang et al. 2004, Image quality assessment, section III; computed by scikit-image.

    Example:
        >>> import torch
        >>> image = torch.rand(16, 16, 1, generator=torch.Generator().manual_seed(0))
        >>> ssim(image, image)
        1.0
    """
    from skimage.metrics import structural_similarity

    _same_shape(a, b)
    side = min(a.shape[0], a.shape[1], 11)
    similarity: Callable[..., Any] = structural_similarity
    value = similarity(
        a.detach().cpu().double().numpy(),
        b.detach().cpu().double().numpy(),
        win_size=side - 1 + side % 2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        channel_axis=-1,
    )
    return float(value)


def _same_shape(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 3:
        raise DataError(
            "metrics: expected two images (height, width, channels) of one shape, came "
            f"{tuple(a.shape)} and {tuple(b.shape)}"
        )


METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = MappingProxyType({"psnr": psnr, "ssim": ssim})
"""The metrics of signals by name."""
