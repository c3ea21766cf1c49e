"""Random structures for synthesised tasks: what stays the same in all images of a task, and what varies.

A *kind* is called once a task and draws what makes its structure recognisable (a prototype shape, a size, a
roughness, a number of copies). It returns a function that draws the structure into images, each time with
other places, poses and details. Everything is written for points in any number of dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from metainit.domains.fields import (
    happens,
    log_number,
    number,
    rotations,
    smooth_noise,
    uniform,
    whole,
)


@dataclass(frozen=True)
class Canvas:
    """The points of some images: warped `points (n, pixels, dimensions)` of grids of one size."""

    points: Tensor
    size: tuple[int, ...]

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.points)

    @property
    def dimensions(self) -> int:
        """The number of dimensions."""
        return self.points.shape[-1]

    def noise(self, length: float, generator: Generator) -> Tensor:
        """Return one smooth field an image, ``(n, pixels)``."""
        return smooth_noise(self.size, torch.full((self.images,), length), generator)


@dataclass(frozen=True)
class Drawn:
    """Regions ``(n, pixels)`` of a structure in the order they are painted in.

    `tint` shifts the brightness of what lies beneath, such as one cell of a tissue against the next.
    """

    regions: tuple[Tensor, ...]
    tint: Tensor | None = None


Draw = Callable[[Canvas, Generator], Drawn]
Kind = Callable[[Generator, int], Draw]
"""Of a generator and the number of dimensions."""


@dataclass(frozen=True)
class Copies:
    """How many copies of a shape an image has, how large they are, and how they are turned."""

    most: int
    radius: float
    spread: float
    turned: bool
    reach: float

    def place(self, canvas: Canvas, generator: Generator) -> tuple[Tensor, Tensor]:
        """Return points in the frame of each copy ``(n, copies, pixels, dimensions)`` and which are there."""
        n, d = canvas.images, canvas.dimensions
        centres = uniform(generator, -self.reach, self.reach, n, self.most, d)
        radii = self.radius * torch.exp(self.spread * torch.randn(n, self.most, 1, 1, generator=generator))
        frames = rotations(generator, d, n, self.most) if self.turned else torch.eye(d).expand(n, 1, d, d)
        there = torch.rand(n, self.most, generator=generator) < 0.7
        there[:, 0] = True
        # frame (x - c) as one product and one shift: the points are many, the copies few.
        scaled = frames / radii
        local = canvas.points[:, None] @ scaled.mT - (centres[:, :, None] @ scaled.mT)
        return local, there


def _copies(generator: Generator, smallest: float = 0.1, largest: float = 0.55) -> Copies:
    radius = log_number(generator, smallest, largest)
    most = whole(generator, 1, max(1, min(10, round(0.5 / radius**1.5))))
    return Copies(
        most,
        radius,
        number(generator, 0.02, 0.3),
        happens(generator, 0.7),
        0.75 if most > 1 else number(generator, 0.1, 0.6),
    )


def _union(values: Tensor, there: Tensor) -> Tensor:
    """Return where any copy that is there has a negative value."""
    return ((values < 0) & there[..., None]).any(1)


def ellipsoids(generator: Generator, dimensions: int) -> Draw:
    """Ellipsoids of one elongation, with a smooth or a rough outline."""
    copies = _copies(generator)
    axes = torch.exp(0.45 * torch.randn(dimensions, generator=generator))
    rough = number(generator, 0, 0.35) if happens(generator, 0.6) else 0.0
    length = log_number(generator, 0.03, 0.15)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        local, there = copies.place(canvas, generator)
        values = (local / axes).norm(dim=-1) - 1
        return Drawn((_union(values + rough * canvas.noise(length, generator)[:, None], there),))

    return draw


def polytopes(generator: Generator, dimensions: int) -> Draw:
    """One prototype with flat faces, the union of up to three convex ones, at random places."""
    copies = _copies(generator, 0.15)
    parts, faces = whole(generator, 1, 3), whole(generator, dimensions + 1, dimensions + 4)
    normals = torch.nn.functional.normalize(
        torch.randn(parts, faces, dimensions, generator=generator), dim=-1
    )
    # Each part is closed: the faces of a simplex come first.
    corners = torch.cat((torch.eye(dimensions), -torch.ones(1, dimensions)))
    normals[:, : dimensions + 1] = torch.nn.functional.normalize(corners, dim=-1) @ rotations(
        generator, dimensions, parts
    )
    offsets = uniform(generator, 0.4, 1.0, parts, faces)
    shifts = uniform(generator, -0.5, 0.5, parts, dimensions)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        local, there = copies.place(canvas, generator)
        inside = torch.zeros(local.shape[:-1], dtype=torch.bool)
        for own, limits, shift in zip(normals, offsets, shifts, strict=True):
            inside |= (local @ own.T <= limits + own @ shift).all(-1)
        return Drawn((_union(-inside.float(), there),))

    return draw


def metaballs(generator: Generator, dimensions: int) -> Draw:
    """One lobed prototype, the level set of a few balls that melt into each other, at random places."""
    copies = _copies(generator, 0.15)
    lobes = whole(generator, 2, 5)
    centres = 0.55 * torch.randn(lobes, dimensions, generator=generator)
    widths = uniform(generator, 0.3, 0.7, lobes)
    wobble = number(generator, 0, 0.15)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        local, there = copies.place(canvas, generator)
        moved = centres + wobble * torch.randn(
            canvas.images, copies.most, lobes, dimensions, generator=generator
        )
        return Drawn((_union(0.6 - _potential(local, moved, widths), there),))

    return draw


def _potential(local: Tensor, centres: Tensor, widths: Tensor) -> Tensor:
    """Return the sum of Gaussian balls at points ``(..., pixels, d)`` for centres ``(..., lobes, d)``."""
    distance = (
        local.square().sum(-1, keepdim=True) - 2 * local @ centres.mT + centres.square().sum(-1).unsqueeze(-2)
    )
    return torch.exp(-distance / widths.square()).sum(-1)


def shells(generator: Generator, dimensions: int) -> Draw:
    """Closed walls of one thickness around a cavity: vessels cut across, ventricles, follicles."""
    copies = _copies(generator, 0.2)
    axes = torch.exp(0.3 * torch.randn(dimensions, generator=generator))
    wall, rough = number(generator, 0.12, 0.45), number(generator, 0, 0.15)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        local, there = copies.place(canvas, generator)
        values = (local / axes).norm(dim=-1) - 1 + rough * canvas.noise(0.08, generator)[:, None]
        cavity = _union(values + wall, there)
        return Drawn((_union(values, there) & ~cavity, cavity))

    return draw


def cells(generator: Generator, dimensions: int) -> Draw:
    """Cells with a body and a nucleus of one to four lobes; one large cell, or a cluster."""
    crowded = happens(generator, 0.6)
    radius = log_number(generator, 0.14, 0.28) if crowded else log_number(generator, 0.3, 0.7)
    copies = Copies(
        whole(generator, 4, 14) if crowded else whole(generator, 1, 2),
        radius,
        number(generator, 0.03, 0.2),
        True,
        0.9 if crowded else 0.35,
    )
    lobes = whole(generator, 1, 4)
    share, lobe = number(generator, 0.35, 0.75), number(generator, 0.4, 0.8)
    rough = number(generator, 0.02, 0.18)
    squeeze = torch.exp(0.15 * torch.randn(dimensions, generator=generator))

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        local, there = copies.place(canvas, generator)
        outline = (local / squeeze).norm(dim=-1) - 1 + rough * canvas.noise(0.06, generator)[:, None]
        body = _union(outline, there)
        apart = torch.randn(canvas.images, copies.most, lobes, dimensions, generator=generator)
        centres = apart * (0.0 if lobes == 1 else 0.4) * share + 0.12 * apart[:, :, :1]
        widths = torch.full((lobes,), share * (1 if lobes == 1 else lobe))
        nucleus = _union(0.4 - _potential(local, centres, widths), there) & body
        return Drawn((body, nucleus))

    return draw


def tubes(generator: Generator, dimensions: int) -> Draw:
    """Curved tubes of one width and one waviness, some of which branch off from the first."""
    curves, steps = whole(generator, 1, 4), 10
    width = log_number(generator, 0.03, 0.13)
    taper = number(generator, 0.3, 1.0)
    turn = number(generator, 0.1, 0.6)
    step = number(generator, 0.12, 0.28)
    branching = happens(generator, 0.5)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        n, d = canvas.images, canvas.dimensions
        drift = torch.randn(n, curves, 1, d, generator=generator)
        bends = torch.randn(n, curves, steps, d, generator=generator).cumsum(2)
        headings = torch.nn.functional.normalize(drift + turn * bends, dim=-1)
        start = uniform(generator, -0.9, 0.9, n, curves, 1, d)
        path = torch.cat((start, start + step * headings.cumsum(2)), 2)
        # Through the middle of the image more often than out of it.
        path = path - 0.7 * path.mean(2, keepdim=True)
        if branching and curves > 1:
            forks = torch.randint(2, steps, (curves - 1,), generator=generator)
            path[:, 1:] += (path[:, 0, forks] - path[:, 1:, 0]).unsqueeze(2)
        widths = width * torch.linspace(1, taper, steps)
        near = _to_segments(canvas.points, path[:, :, :-1].flatten(1, 2), path[:, :, 1:].flatten(1, 2))
        return Drawn(((near < widths.repeat(curves).square()).any(-1),))

    return draw


def _to_segments(points: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Return squared distances ``(n, pixels, segments)`` of points to segments ``(n, segments, d)``."""
    along = end - start
    length = along.square().sum(-1).unsqueeze(1)
    reached = points @ along.mT - (start * along).sum(-1).unsqueeze(1)
    share = (reached / length).clamp(0, 1)
    away = points.square().sum(-1, keepdim=True) - 2 * points @ start.mT + start.square().sum(-1).unsqueeze(1)
    return away - 2 * share * reached + share.square() * length


def level_sets(generator: Generator, dimensions: int) -> Draw:
    """Where a smooth field is high: patches of tissue, lesions, clouds."""
    length = log_number(generator, 0.04, 0.2)
    detail = number(generator, 0, 0.5)
    share, spread = number(generator, 0.08, 0.45), number(generator, 0.0, 0.05)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        field = canvas.noise(length, generator) + detail * canvas.noise(length / 4, generator)
        shares = (share + spread * torch.randn(canvas.images, generator=generator)).clamp(0.04, 0.6)
        ranks = (shares * field.shape[1]).long().clamp(min=1)
        limits = field.sort(1, descending=True).values.gather(1, ranks[:, None])
        return Drawn((field > limits,))

    return draw


def layers(generator: Generator, dimensions: int) -> Draw:
    """Bands across the image, once or again and again: skin, retina, muscle."""
    thickness = log_number(generator, 0.1, 0.5)
    period = thickness * number(generator, 1.8, 4) if happens(generator, 0.5) else 20.0
    wave, length = number(generator, 0, 0.25), number(generator, 0.12, 0.4)
    direction = torch.nn.functional.normalize(torch.randn(dimensions, generator=generator), dim=0)
    swing = number(generator, 0, 0.5)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        heading = direction + swing * torch.randn(canvas.images, 1, dimensions, generator=generator)
        height = (canvas.points * torch.nn.functional.normalize(heading, dim=-1)).sum(-1)
        height = height + wave * canvas.noise(length, generator)
        offset = uniform(generator, -0.6, 0.6, canvas.images, 1)
        return Drawn((((height - offset + period / 2) % period - period / 2).abs() < thickness / 2,))

    return draw


def membranes(generator: Generator, dimensions: int) -> Draw:
    """Thin walls between the cells of a tissue, and organelles within: the cells of Voronoi, bent."""
    count = whole(generator, 6, 32)
    width = log_number(generator, 0.03, 0.12)
    organelles = whole(generator, 0, 10)
    size, contrast = log_number(generator, 0.05, 0.14), number(generator, 0, 0.12)

    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        n, d = canvas.images, canvas.dimensions
        extent = torch.tensor([side / min(canvas.size) for side in canvas.size])
        seeds = 1.2 * extent * uniform(generator, -1, 1, n, count, d)
        near, which = torch.cdist(canvas.points, seeds).topk(2, largest=False)
        thick = width * (1 + 0.35 * canvas.noise(0.05, generator))
        walls = near[..., 1] - near[..., 0] < thick
        tint = contrast * torch.randn(n, count, generator=generator).gather(1, which[..., 0])
        if not organelles:
            return Drawn((walls,), tint)
        centres = uniform(generator, -1, 1, n, organelles, d)
        radii = size * torch.exp(0.4 * torch.randn(n, 1, organelles, generator=generator))
        inside = (torch.cdist(canvas.points, centres) < radii).any(-1)
        return Drawn((inside & ~walls, walls), tint)

    return draw


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "ellipsoids": ellipsoids,
        "polytopes": polytopes,
        "metaballs": metaballs,
        "shells": shells,
        "cells": cells,
        "tubes": tubes,
        "level_sets": level_sets,
        "layers": layers,
        "membranes": membranes,
    }
)
"""The kinds of structure by name."""


def warped(points: Tensor, size: Sequence[int], amounts: Tensor, generator: Generator) -> Tensor:
    """Return points bent by a smooth displacement of some amount an image.

    Args:
        points: ``(pixels, dimensions)``.
        size: of the grid.
        amounts: ``(n,)``, standard deviation of the displacement in half sides.
        generator: source of the displacement.

    Returns:
        ``(n, pixels, dimensions)``.
    """
    n, d = len(amounts), points.shape[-1]
    fields = smooth_noise(size, torch.full((n * d,), 0.18), generator).reshape(n, d, -1)
    return points + (amounts[:, None, None] * fields).movedim(1, -1)
