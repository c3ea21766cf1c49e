"""Smooth random fields and coordinates on a grid of any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def coordinates(size: Sequence[int]) -> Tensor:
    """Return the centres of the pixels, with the origin in the middle and the shorter side from -1 to 1.

    Returns:
        ``(pixels, dimensions)``, the last axis of the grid running fastest.

    Example:
        >>> coordinates((2, 4)).tolist()[:2]
        [[-0.5, -1.5], [-0.5, -0.5]]
    """
    half = min(size) / 2
    axes = [(torch.arange(side) + 0.5 - side / 2) / half for side in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)


def frequencies(size: Sequence[int]) -> Tensor:
    """Return the frequencies of `torch.fft.rfftn` in cycles a pixel, ``(*half spectrum, dimensions)``."""
    axes = [torch.fft.fftfreq(side) for side in size[:-1]] + [torch.fft.rfftfreq(size[-1])]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def smooth_noise(size: Sequence[int], lengths: Tensor, generator: torch.Generator) -> Tensor:
    r"""Return Gaussian fields with a Gaussian spectrum: periodic, of mean 0 and standard deviation 1.

    White noise is multiplied in the frequency domain by :math:`\exp(-2 \pi^2 |\ell k|^2)`, a blur of standard
    deviation :math:`\ell`. Unlike noise that is drawn on a coarse grid and interpolated, it has no creases
    along that grid, which thresholds and warps would show.

    Args:
        size: of the grid, such as ``(height, width)``.
        lengths: ``(n,)`` or ``(n, dimensions)``, in units of the shorter side.
        generator: source of the noise.

    Returns:
        ``(n, pixels)``.

    Example:
        >>> field = smooth_noise((8, 8), torch.tensor([0.1, 0.3]), torch.Generator().manual_seed(0))
        >>> field.shape, bool(field.mean(1).abs().max() < 1e-5)
        (torch.Size([2, 64]), True)
    """
    dims = tuple(range(-len(size), 0))
    spectrum = torch.fft.rfftn(torch.randn(len(lengths), *size, generator=generator), dim=dims)
    pixels = (lengths if lengths.ndim == 2 else lengths[:, None]) * min(size)
    scaled = frequencies(size) * pixels.reshape(len(lengths), *(1 for _ in size), -1)
    shaped = spectrum * torch.exp(-2 * math.pi**2 * scaled.square().sum(-1))
    grid: Tensor = torch.fft.irfftn(shaped, s=tuple(size), dim=dims)
    field = grid.flatten(1)
    field = field - field.mean(1, keepdim=True)
    return field / field.std(1, keepdim=True).clamp(min=1e-12)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Return uniform numbers between two bounds."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def log_uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    """Return numbers whose logarithm is uniform between two bounds."""
    return uniform(generator, math.log(low), math.log(high), *shape).exp()


def number(generator: torch.Generator, low: float, high: float) -> float:
    """Return one uniform number."""
    return float(uniform(generator, low, high))


def log_number(generator: torch.Generator, low: float, high: float) -> float:
    """Return one number whose logarithm is uniform."""
    return float(log_uniform(generator, low, high))


def whole(generator: torch.Generator, low: int, high: int) -> int:
    """Return one whole number between two bounds, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def happens(generator: torch.Generator, probability: float) -> bool:
    """Return whether something of this probability happens."""
    return number(generator, 0, 1) < probability


def rotations(generator: torch.Generator, dimensions: int, *shape: int) -> Tensor:
    """Return random orthogonal matrices ``(*shape, dimensions, dimensions)``, mirrorings included.

    Example:
        >>> turn = rotations(torch.Generator().manual_seed(0), 3, 5)
        >>> bool(torch.allclose(turn @ turn.mT, torch.eye(3), atol=1e-5))
        True
    """
    normal = torch.randn(*shape, dimensions, dimensions, generator=generator)
    parts: tuple[Tensor, Tensor] = torch.linalg.qr(normal)
    orthogonal, upper = parts
    # Uniform over the group only with the signs of the diagonal fixed (Mezzadri 2007).
    return orthogonal * upper.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)
