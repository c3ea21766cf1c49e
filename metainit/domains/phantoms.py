"""Randomised Shepp-Logan phantoms, drawn on the fly.

Every phantom has a skull and a brain of random axes, position and tilt; inside, the structures of
the modified Shepp-Logan phantom with jittered position, axes, tilt and intensity, and a few
ellipses more.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metainit.domains.grid import pixel_grid
from metainit.domains.seeding import generator_of

# Intensity, semi-axes a and b, centre x and y, tilt in degrees: the modified phantom of Toft 1996.
_SKULL = (1.0, 0.69, 0.92, 0.0, 0.0, 0.0)
_BRAIN = (-0.8, 0.6624, 0.8740, 0.0, -0.0184, 0.0)
_INNER = (
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)
_EXTRA = 4
_DRAWS = (2 + len(_INNER) + _EXTRA, 6)


def phantoms(seed: int, indices: Sequence[int], size: int) -> Tensor:
    r"""Return randomised phantoms; phantom i depends on the seed and on its own index alone.

    An ellipse e with centre c, semi-axes (a, b) and tilt :math:`\phi` adds its intensity where
    :math:`(u/a)^2 + (v/b)^2 \le 1`, with (u, v) the pixel turned into its frame. Edge pixels get
    the share of their area that lies inside, to first order, so phantoms of different size show the
    same object.

    Args:
        seed: of the family; families with different seeds share no phantom.
        indices: of the phantoms, any integers.
        size: height and width in pixels.

    Returns:
        ``(len(indices), size, size)``, float32 in [0, 1]; zero outside the skull, which lies within
        the inscribed circle.

    Source:
        The table is the modified phantom of Toft, The Radon Transform (1996), after Shepp and Logan
        (1974); the idea of randomising it is Tancik et al. 2021 (arXiv 2012.02189), section 4.2.

    Example:
        >>> pair = phantoms(0, [3, 4], 32)
        >>> tuple(pair.shape), bool((pair[1] == phantoms(0, [4], 32)[0]).all())
        ((2, 32, 32), True)
    """
    if not indices:
        return torch.zeros(0, size, size)
    draws = [torch.rand(_DRAWS, generator=generator_of("phantom", seed, index)) for index in indices]
    return _rasterise(*_randomise(torch.stack(draws)), size)


def shepp_logan(size: int) -> Tensor:
    """Return the modified Shepp-Logan phantom itself, ``(size, size)`` in [0, 1].

    Example:
        >>> round(float(shepp_logan(64)[32, 32]), 3)
        0.2
    """
    inner = torch.tensor(_INNER)
    head = torch.tensor([_SKULL, _BRAIN])
    return _rasterise(head[None], inner[None], size)[0]


def _randomise(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Turn uniform ``(T, n + 2, 6)`` into head ``(T, 2, 6)`` and inner ellipses ``(T, n, 6)``."""
    signed = 2 * uniform - 1
    count = len(uniform)
    skull = torch.tensor(_SKULL).repeat(count, 1)
    a, b = 0.69 + 0.12 * signed[:, 0, 1], 0.85 + 0.07 * signed[:, 0, 2]
    shift, tilt = 0.02 * signed[:, 0, 3:5], 20 * signed[:, 0, 5]
    skull[:, 1], skull[:, 2], skull[:, 3:5], skull[:, 5] = a, b, shift, tilt
    thickness = 0.05 + 0.03 * signed[:, 1, 1]
    brain = skull.clone()
    brain[:, 0] = -0.8 + 0.1 * signed[:, 1, 0]
    brain[:, 1], brain[:, 2] = a - thickness, b - thickness
    known = torch.tensor(_INNER).repeat(count, 1, 1)
    move = signed[:, 2 : 2 + len(_INNER)]
    known[..., 0] *= 1 + 0.9 * move[..., 0]
    known[..., 1:3] *= torch.exp(0.5 * move[..., 1:3])
    known[..., 3:5] += 0.12 * move[..., 3:5]
    known[..., 5] += 30 * move[..., 5]
    free, sign = uniform[:, 2 + len(_INNER) :], signed[:, 2 + len(_INNER) :]
    radius, turn = 0.6 * torch.sqrt(free[..., 3]), 2 * torch.pi * free[..., 4]
    extra = torch.stack(
        (
            0.3 * sign[..., 0],
            0.03 + 0.17 * free[..., 1],
            0.03 + 0.17 * free[..., 2],
            radius * torch.cos(turn),
            radius * torch.sin(turn),
            180 * free[..., 5],
        ),
        dim=-1,
    )
    inner = torch.cat((known, extra), dim=1)
    return torch.stack((skull, brain), dim=1), _place(inner, a, b, shift, tilt)


def _place(inner: Tensor, a: Tensor, b: Tensor, shift: Tensor, tilt: Tensor) -> Tensor:
    """Scale, turn and move inner ellipses with their head."""
    radians = torch.deg2rad(tilt)[:, None]
    x, y = inner[..., 3] * a[:, None] / 0.69, inner[..., 4] * b[:, None] / 0.92
    placed = inner.clone()
    placed[..., 3] = x * torch.cos(radians) - y * torch.sin(radians) + shift[:, :1]
    placed[..., 4] = x * torch.sin(radians) + y * torch.cos(radians) + shift[:, 1:]
    placed[..., 5] = inner[..., 5] + tilt[:, None]
    return placed


def _rasterise(head: Tensor, inner: Tensor, size: int) -> Tensor:
    grid = pixel_grid(size, size)
    x, y = grid[:, 1], -grid[:, 0]
    skull = head[:, 0, :1] * _coverage(head[:, 0], x, y, size)
    inside = _coverage(head[:, 1], x, y, size)
    values = head[:, 1, :1].expand_as(inside).clone()
    for ellipse in inner.unbind(1):
        values += ellipse[:, :1] * _coverage(ellipse, x, y, size)
    image = (skull + inside * values).clamp(0, 1)
    return image.reshape(-1, size, size)


def _coverage(ellipse: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Return the share of each pixel inside ellipses ``(T, 6)``, as ``(T, pixels)``."""
    _, a, b, x0, y0, tilt = (column[:, None] for column in ellipse.unbind(1))
    cosine, sine = torch.cos(torch.deg2rad(tilt)), torch.sin(torch.deg2rad(tilt))
    u = ((x - x0) * cosine + (y - y0) * sine) / a
    v = ((y - y0) * cosine - (x - x0) * sine) / b
    slope = 2 * torch.sqrt((u / a) ** 2 + (v / b) ** 2).clamp_min(1e-12)
    distance = (u**2 + v**2 - 1) / slope
    return (0.5 - distance * (size / 2)).clamp(0, 1)
