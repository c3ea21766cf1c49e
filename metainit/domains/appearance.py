"""How synthesised scenes look: colours, textures and the faults of an imaging device.

What makes the look of a task (its palette, textures, modality, kinds of fault) is drawn once a task; its
images differ by a jitter whose size is drawn as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metainit.domains.fields import (
    coordinates,
    frequencies,
    happens,
    log_number,
    number,
    smooth_noise,
    uniform,
)

TEXTURES = 4


@dataclass(frozen=True)
class Palette:
    """Colours and textures of the regions of a task."""

    colours: Tensor
    """``(regions, channels)`` in [0, 1]."""
    textures: Tensor
    """``(regions, TEXTURES)``, the share of each texture."""
    jitter: float
    """How far the colour of a region moves from image to image."""
    rim: Tensor
    """``(regions,)``, how much brighter the edge of a region is than its middle."""


def palette(generator: Generator, regions: int, channels: int, target: Sequence[int]) -> Palette:
    r"""Draw colours and textures for regions, those in `target` apart from the background, region 0.

    A third of the palettes are grey, a third are of stains that absorb light on a bright ground (the colour
    is :math:`\exp(-a d)` for amounts a of two dyes of optical density d, as in histology), a third are of
    any colours.
    """
    style = number(generator, 0, 1)
    if channels != 3 or style < 0.34:
        colours = uniform(generator, 0.05, 0.95, regions, 1).expand(-1, channels).clone()
        if channels != 3 and channels > 1:
            colours = uniform(generator, 0.05, 0.95, regions, channels)
    elif style < 0.67:
        amounts = uniform(generator, 0, 1.5, regions, 2)
        amounts[0] *= 0.15
        colours = torch.exp(-amounts @ uniform(generator, 0.1, 1.3, 2, channels))
    else:
        colours = uniform(generator, 0.05, 0.95, regions, channels)
    contrast = log_number(generator, 0.08, 0.5)
    for region in target:
        colours[region] = _apart(colours[region], colours[0], contrast)
    if regions > 2 and happens(generator, 0.2):
        # Told by shape or texture alone: something else has the colour of the target.
        others = [r for r in range(1, regions) if r not in target]
        for region in others[:1]:
            colours[region] = colours[target[0]]
    strength = log_number(generator, 0.01, 0.2) * torch.rand(regions, 1, generator=generator)
    textures = strength * torch.rand(regions, TEXTURES, generator=generator).square()
    rim = 0.25 * torch.randn(regions, generator=generator) * (torch.rand(regions, generator=generator) < 0.25)
    jitter = log_number(generator, 0.005, 0.08)
    return Palette(colours, textures, jitter, rim)


def _apart(colour: Tensor, ground: Tensor, contrast: float) -> Tensor:
    """Move a colour away from another until they differ by `contrast` in the mean over the channels."""
    difference = colour - ground
    distance = float(difference.abs().mean())
    if distance >= contrast:
        return colour
    away = difference / max(distance, 1e-6) if distance > 1e-3 else torch.ones_like(colour)
    moved = ground + contrast * away
    # Where there is no room on this side there is some on the other.
    outside = bool(((moved < 0) | (moved > 1)).any())
    return (ground - contrast * away if outside else moved).clamp(0, 1)


def painted(
    regions: Tensor, tint: Tensor, look: Palette, size: Sequence[int], generator: Generator
) -> Tensor:
    """Return images ``(n, channels, pixels)`` of a map of regions ``(n, pixels)``.

    Paper: as the Gaussian mixtures with smooth multiplicative noise of Dey et al. 2024, arXiv:2411.02372,
    here with textures that differ from region to region.
    """
    n, count = len(regions), len(look.colours)
    means = look.colours + look.jitter * torch.randn(n, count, 1, generator=generator)
    means = means + 0.5 * look.jitter * torch.randn(n, count, look.colours.shape[1], generator=generator)
    rows = torch.arange(n)[:, None]
    image = means[rows, regions]
    shares = look.textures[regions]
    textures = torch.stack(_textures(n, size, generator), dim=-1)
    brightness = (shares * textures).sum(-1) + tint + look.rim[regions] * _edges(regions, size)
    return (image * (1 + brightness[..., None]) + 0.5 * brightness[..., None]).movedim(-1, 1)


def _textures(n: int, size: Sequence[int], generator: Generator) -> list[Tensor]:
    fine, middle, coarse = (smooth_noise(size, torch.full((n,), s), generator) for s in (0.008, 0.03, 0.1))
    heading = torch.nn.functional.normalize(torch.randn(n, 1, len(size), generator=generator), dim=-1)
    waves = uniform(generator, 10, 40, n, 1)
    stripes = torch.sin(waves * (coordinates(size) * heading).sum(-1) + coarse)
    return [fine, middle, coarse, stripes]


def _edges(regions: Tensor, size: Sequence[int]) -> Tensor:
    """Return 1 where a neighbour along any axis belongs to another region, 0 elsewhere."""
    grid = regions.reshape(len(regions), *size)
    edge = torch.zeros_like(grid, dtype=torch.bool)
    for axis in range(1, grid.ndim):
        edge |= (grid != grid.roll(1, axis)) | (grid != grid.roll(-1, axis))
    return edge.flatten(1).float()


@dataclass(frozen=True)
class Device:
    """The faults of an imaging device: how often an image has each, and how strong it is."""

    shading: float
    blur: float
    noise: float
    speckle: float
    ringing: float
    spikes: float
    gamma: float
    exposure: float
    marks: float


def device(generator: Generator) -> Device:
    """Draw a device; most have a few of the faults."""

    def sometimes(probability: float, low: float, high: float) -> float:
        strength = log_number(generator, low, high)
        return strength if happens(generator, probability) else 0.0

    return Device(
        shading=sometimes(0.6, 0.03, 0.35),
        blur=sometimes(0.8, 0.3, 1.5),
        noise=sometimes(0.8, 0.005, 0.1),
        speckle=sometimes(0.25, 0.03, 0.25),
        ringing=sometimes(0.15, 0.1, 0.5),
        spikes=sometimes(0.1, 0.02, 0.1),
        gamma=sometimes(0.5, 0.05, 0.4),
        exposure=sometimes(0.7, 0.01, 0.12),
        marks=sometimes(0.2, 0.2, 0.8),
    )


def recorded(images: Tensor, size: Sequence[int], made: Device, generator: Generator) -> Tensor:
    """Return images ``(n, channels, pixels)`` as a device records them, in [0, 1].

    In the order of nature: light falls unevenly, the lens blurs, the sensor adds noise, the display bends the
    curve, and dirt lies on top. Blur, ringing and spikes are one product in the frequency domain.
    """
    n, channels, _ = images.shape
    images = images.clamp(0, 1.2)
    if made.shading:
        field = smooth_noise(size, torch.full((n,), 0.3), generator)[:, None]
        ramp = torch.randn(n, 1, len(size), generator=generator) @ coordinates(size).T
        images = images * (1 + made.shading * (0.6 * field + 0.4 * ramp))
    if made.blur or made.ringing or made.spikes:
        images = _through_lens(images, size, made, generator)
    if made.speckle:
        images = images * (1 + made.speckle * smooth_noise(size, torch.full((n,), 0.006), generator)[:, None])
    if made.noise:
        levels = made.noise * uniform(generator, 0.5, 1.5, n, 1, 1)
        images = images + levels * torch.randn(images.shape, generator=generator)
    if made.exposure:
        gains = 1 + made.exposure * torch.randn(n, channels + 1, 1, generator=generator)
        offsets = 0.5 * made.exposure * torch.randn(n, 1, 1, generator=generator)
        # The first gain is of the light, the others of the channels, whose balance moves less.
        images = images * gains[:, :1] * (0.7 + 0.3 * gains[:, 1:]) + offsets
    images = images.clamp(0, 1)
    if made.gamma:
        images = images ** torch.exp(made.gamma * torch.randn(n, 1, 1, generator=generator))
    if made.marks:
        images = _marked(images, size, made.marks, generator)
    return images


def _through_lens(images: Tensor, size: Sequence[int], made: Device, generator: Generator) -> Tensor:
    n = len(images)
    dims = tuple(range(-len(size), 0))
    ones = [1] * (len(size) + 1)
    k = frequencies(size)
    blur = made.blur * uniform(generator, 0.6, 1.4, n).reshape(n, *ones)
    transfer = torch.exp(-2 * math.pi**2 * (blur * k.norm(dim=-1)).square())
    if made.ringing:
        # A box in the frequency domain, as where a scanner stops sampling.
        transfer = transfer * (k.abs().amax(-1) <= 0.5 * (1 - made.ringing))
    spectrum = torch.fft.rfftn(images.reshape(*images.shape[:2], *size), dim=dims) * transfer
    if made.spikes:
        flat = spectrum.flatten(2)
        place = torch.randint(flat.shape[-1], (n, 1, 1), generator=generator)
        spike = torch.zeros_like(flat).scatter_(2, place.expand(-1, flat.shape[1], -1), 1)
        spectrum = spectrum + (made.spikes * math.prod(size) / 2 * spike).reshape(spectrum.shape)
    through: Tensor = torch.fft.irfftn(spectrum, s=tuple(size), dim=dims)
    return through.flatten(2)


def _marked(images: Tensor, size: Sequence[int], strength: float, generator: Generator) -> Tensor:
    """Lay a scratch and a few specks over half of the images."""
    n = len(images)
    points = coordinates(size)
    normal = torch.nn.functional.normalize(torch.randn(n, 1, len(size), generator=generator), dim=-1)
    offset = uniform(generator, -0.8, 0.8, n, 1)
    scratch = ((points * normal).sum(-1) - offset).abs() < 1.2 / min(size)
    centres = uniform(generator, -1, 1, 1, 5, len(size)) * torch.ones(n, 1, 1)
    centres = centres + 0.5 * torch.randn(centres.shape, generator=generator)
    specks = (torch.cdist(points.expand(n, -1, -1), centres) < uniform(generator, 0.01, 0.07, n, 1, 5)).any(
        -1
    )
    chosen = torch.rand(n, 1, generator=generator) < 0.5
    where = ((scratch | specks) & chosen)[:, None].float() * strength
    value = (torch.rand(n, 1, 1, generator=generator) < 0.5).float()
    return images * (1 - where) + value * where
