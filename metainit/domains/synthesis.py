"""Segmentation tasks that need no data: random structures, looks and imaging faults.

A task is one structure. Its shape, size, colour and texture stay the same in all of the task's images, as do
the modality and what else there is to see; places, poses, details, light and noise vary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from metainit.domains.appearance import device, painted, palette, recorded
from metainit.domains.fields import coordinates, happens, number, smooth_noise, uniform, whole
from metainit.domains.seeding import generator_of
from metainit.domains.structures import KINDS, Canvas, Draw, Drawn, warped

MAX_DISTRACTORS = 3
ATTEMPTS = 6
LEAST_SHARE, MOST_SHARE = 0.006, 0.75
"""Of the image, that the structure may cover."""


@dataclass(frozen=True)
class Synthesised:
    """Images ``(n, channels, *size)`` float32 in [0, 1], labels ``(n, *size)`` int64, and what is shown."""

    images: Tensor
    labels: Tensor
    kind: str


def synthesise(
    parts: Sequence[int | str],
    count: int,
    size: Sequence[int],
    channels: int = 3,
    classes: int = 1,
    kinds: Sequence[str] = tuple(KINDS),
    further: int = 0,
) -> Synthesised:
    """Return the images of one task; a pure function of its arguments.

    Image i shows class ``i % classes``, and so does image i of the further ones: as many images as there are
    classes show them all.

    Source:
        After the data engine of Dey et al. 2024, Learning General-Purpose Biomedical Volume Representations
        using Randomized Synthesis, arXiv:2411.02372: ensembles of shapes, within a body or not, filled with
        a Gaussian mixture and smooth noise, then made worse by a bias field, blur, ringing, spikes and gamma.
        It deviates where a few-shot task needs it: shapes are drawn and not taken from a data set of organs;
        looks belong to a task and not to an image, since the support must tell what to look for.

    Args:
        parts: what seeds the task.
        count: number of images.
        size: of an image; two numbers, or three for volumes.
        channels: of an image.
        classes: number of structures that are labelled, 1, 2, ...
        kinds: names in `KINDS` to draw the structure from.
        further: number of images that follow; however many they are, the first `count` stay as they are.

    Example:
        >>> task = synthesise((0, 'train', 7), count=6, size=(32, 32))
        >>> task.images.shape, sorted(task.labels.unique().tolist())
        (torch.Size([6, 3, 32, 32]), [0, 1])
    """
    generator = generator_of("synthesis", *parts)
    name = kinds[whole(generator, 0, len(kinds) - 1)]
    scene = _scene(generator, len(size), name, classes)
    members = [region for own in scene.target for region in own]
    look = palette(generator, scene.regions, channels, members)
    if scene.dark_outside:
        look.colours[1] *= 0.1
        look.textures[1] *= 0.1
    made = device(generator)
    images, labels = [], []
    for number_of_images, part in ((count, "first"), (further, "further")):
        if number_of_images:
            own = generator_of("synthesis", *parts, part)
            regions, tint = scene.draw(number_of_images, tuple(size), own)
            images.append(recorded(painted(regions, tint, look, size, own), size, made, own))
            labels.append(_labelled(regions, scene.target))
    shape = (count + further, *size)
    return Synthesised(
        torch.cat(images).reshape(shape[0], channels, *size).contiguous(),
        torch.cat(labels).reshape(shape).contiguous(),
        name,
    )


def _labelled(regions: Tensor, target: Sequence[Sequence[int]]) -> Tensor:
    labels = torch.zeros_like(regions)
    for label, members in enumerate(target, 1):
        for region in members:
            labels[regions == region] = label
    return labels


@dataclass(frozen=True)
class _Scene:
    """What a task shows: a ground, things that lie about, the structure, things that lie on it.

    Regions are numbered: 0 is the ground, 1 what lies outside the body, 2 a second tissue of the ground, then
    come those of the draws, in the order they are painted in.
    """

    before: tuple[Draw, ...]
    structure: Draw
    after: tuple[Draw, ...]
    counts: tuple[int, ...]
    chosen: tuple[tuple[int, ...], ...]
    warp: float
    tissue: float
    body: float
    dark_outside: bool

    @property
    def regions(self) -> int:
        return 3 + sum(self.counts)

    @property
    def target(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of the regions that make up each class."""
        first = 3 + sum(self.counts[: len(self.before)])
        return tuple(tuple(first + region for region in members) for members in self.chosen)

    def draw(self, n: int, size: tuple[int, ...], generator: Generator) -> tuple[Tensor, Tensor]:
        """Return regions ``(n, pixels)`` and a tint of the same shape.

        Images in which the class whose turn it is is hardly to be seen, or fills the frame, are drawn again.
        """
        turns = torch.arange(n) % len(self.target)
        regions, tint = self._draw(n, size, generator)
        for _ in range(ATTEMPTS):
            bad = ~self._shows(regions, turns)
            if not bool(bad.any()):
                break
            again, other = self._draw(int(bad.sum()), size, generator)
            regions[bad], tint[bad] = again, other
        else:
            bad = ~self._shows(regions, turns)
            regions[bad] = self._disc(regions[bad], turns[bad], size, generator)
        return regions, tint

    def _shows(self, regions: Tensor, turns: Tensor) -> Tensor:
        classes = range(1, len(self.target) + 1)
        marked = _labelled(regions, self.target)
        shares = torch.stack([(marked == label).float().mean(1) for label in classes], dim=1)
        share = shares.gather(1, turns[:, None]).squeeze(1)
        return (share > LEAST_SHARE) & (share < MOST_SHARE)

    def _disc(self, regions: Tensor, turns: Tensor, size: tuple[int, ...], generator: Generator) -> Tensor:
        points = coordinates(size)
        centres = uniform(generator, -0.5, 0.5, len(regions), 1, len(size))
        shown = torch.tensor([members[0] for members in self.target])[turns][:, None]
        ground = torch.where(regions == shown, 0, regions)
        return torch.where((points - centres).norm(dim=-1) < 0.35, shown, ground)

    def _draw(self, n: int, size: tuple[int, ...], generator: Generator) -> tuple[Tensor, Tensor]:
        points = coordinates(size)
        amounts = self.warp * uniform(generator, 0.3, 1.5, n)
        canvas = Canvas(warped(points, size, amounts, generator), size)
        regions = torch.zeros(n, len(points), dtype=torch.long)
        tint = torch.zeros(n, len(points))
        if self.tissue:
            regions[canvas.noise(self.tissue, generator) > 0.3] = 2
        first = 3
        for draw, count in zip((*self.before, self.structure, *self.after), self.counts, strict=True):
            drawn = draw(canvas, generator)
            if drawn.tint is not None:
                tint = tint + drawn.tint
            for region, mask in enumerate(drawn.regions):
                regions[mask] = first + region
            first += count
        if self.body:
            centre = 0.1 * torch.randn(n, 1, points.shape[-1], generator=generator)
            reach = self.body * (1 + 0.08 * smooth_noise(size, torch.full((n,), 0.15), generator))
            regions[(canvas.points - centre).norm(dim=-1) > reach] = 1
        return regions, tint


def _scene(generator: Generator, dimensions: int, kind: str, classes: int) -> _Scene:
    structure = KINDS[kind](generator, dimensions)
    others = [_distractor(generator, dimensions) for _ in range(whole(generator, 0, MAX_DISTRACTORS))]
    split = whole(generator, 0, len(others))
    before, after = tuple(others[:split]), tuple(others[split:][:1])
    own = _count(structure, dimensions)
    while own < classes:
        # A class more than the structure has regions: one beside it.
        structure = _beside(structure, _distractor(generator, dimensions))
        own = _count(structure, dimensions)
    counts = (*(_count(d, dimensions) for d in before), own, *(_count(d, dimensions) for d in after))
    order = torch.randperm(own, generator=generator).tolist()
    chosen = tuple((region,) for region in order[:classes])
    if classes == 1 and happens(generator, 0.3):
        chosen = (tuple(order),)  # the thing as a whole, such as a cell with its nucleus
    return _Scene(
        before,
        structure,
        after,
        counts,
        chosen,
        warp=number(generator, 0.0, 0.12),
        tissue=number(generator, 0.08, 0.3) if happens(generator, 0.5) else 0.0,
        body=number(generator, 0.75, 1.05) if happens(generator, 0.2) else 0.0,
        dark_outside=happens(generator, 0.8),
    )


def _distractor(generator: Generator, dimensions: int) -> Draw:
    names = tuple(KINDS)
    return KINDS[names[whole(generator, 0, len(names) - 1)]](generator, dimensions)


def _beside(first: Draw, second: Draw) -> Draw:
    def draw(canvas: Canvas, generator: Generator) -> Drawn:
        a, b = first(canvas, generator), second(canvas, generator)
        tints = [t for t in (a.tint, b.tint) if t is not None]
        return Drawn(a.regions + b.regions, sum(tints[1:], tints[0]) if tints else None)

    return draw


def _count(draw: Draw, dimensions: int) -> int:
    """Return how many regions a structure has, by drawing a tiny one."""
    size = (4,) * dimensions
    tiny = Canvas(coordinates(size)[None], size)
    return len(draw(tiny, Generator().manual_seed(0)).regions)
