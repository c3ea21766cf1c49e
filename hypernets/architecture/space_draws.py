"""How the networks of a space are drawn: pure functions of the space and a stream of random numbers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeVar

from hypernets.architecture.space_networks import (
    GROUP_WIDTH,
    Activation,
    Block,
    ConvArguments,
    ConvBlock,
    MLPArguments,
    Normalization,
    TransformerArguments,
)  # fmt: skip
from hypernets.architecture.space_ranges import ConvRanges, Family, Range, SpaceConfig, patches_of
from metainit.errors import RecipeError

T = TypeVar("T")


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    # `random()` alone gives the same numbers in every version of Python.
    return options[int(rng.random() * len(options))]


def _within(rng: random.Random, limits: Range, step: int = 1) -> int:
    """Return a multiple of `step` (counted from the lower end) inside the limits."""
    low, high = limits
    return low + step * int(rng.random() * ((high - low) // step + 1))


def weighted(rng: random.Random, shares: Mapping[Family, float]) -> Family:
    """Return a family, drawn with the shares that each has."""
    level = rng.random() * sum(shares.values())
    for name in sorted(shares):
        level -= shares[name]
        if level < 0:
            return name
    return max(shares, key=lambda name: shares[name])


def _combination(
    config: SpaceConfig, rng: random.Random, blocks: Sequence[Block], norms: Sequence[Normalization]
) -> tuple[list[Block], Normalization, Activation]:
    """Return a normalization and an activation, and the blocks that may go with them."""
    inside = config.combinations == "held_out"
    allowed: dict[tuple[Normalization, Activation], list[Block]] = {}
    for norm in norms:
        for activation in config.activations:
            fitting = [b for b in blocks if ((b, norm, activation) in config.held_out) is inside]
            if fitting:
                allowed[norm, activation] = fitting
    if not allowed:
        raise RecipeError(
            f"of blocks {', '.join(blocks)} and normalizations {', '.join(norms)} no combination is "
            f"{'held out' if inside else 'left'}: change held_out"
        )
    norm, activation = _pick(rng, list(allowed))
    return allowed[norm, activation], norm, activation


def _widths(config: ConvRanges, depth: int, rng: random.Random, downsample: Sequence[bool]) -> list[int]:
    low, high = config.width
    first = _within(rng, config.width, GROUP_WIDTH)
    match _pick(rng, config.schedules):
        case "constant":
            return [first] * depth
        case "doubling":
            before = [sum(downsample[:i]) for i in range(depth)]
            return [min(first * 2**n, low + (high - low) // GROUP_WIDTH * GROUP_WIDTH) for n in before]
        case "free":
            return [_within(rng, config.width, GROUP_WIDTH) for _ in range(depth)]
        case "regnet":
            # Radosavovic et al. 2020, arXiv:2003.13678, equations 2-4: widths on a line, made discrete.
            slope, ratio = rng.random() * (high - low) / max(1, depth - 1), 1.5 + rng.random()
            exact = [(low + slope * i) / low for i in range(depth)]
            return [_on_grid(low * ratio ** _level(e, ratio), config.width) for e in exact]


def _level(multiple: float, ratio: float) -> int:
    level = 0
    while ratio ** (level + 0.5) < multiple:
        level += 1
    return level


def _on_grid(width: float, limits: Range) -> int:
    low, high = limits
    return low + min((high - low) // GROUP_WIDTH, round((width - low) / GROUP_WIDTH)) * GROUP_WIDTH


def draw_cnn(config: SpaceConfig, rng: random.Random) -> ConvArguments:
    """Return the arguments of a convolutional network."""
    ranges, side = config.cnn, config.size
    blocks, norm, activation = _combination(config, rng, ranges.blocks, ranges.norms)
    depth, downsample = _within(rng, ranges.depth), []
    for _ in range(depth):
        downsample.append(side >= 4 and rng.random() < ranges.downsampling)
        side = side // 2 if downsample[-1] else side
    widths = _widths(ranges, depth, rng, downsample)
    return ConvArguments(
        channels=config.channels,
        size=config.size,
        classes=config.classes,
        norm=norm,
        activation=activation,
        pooling=_pick(rng, ranges.poolings),
        head=_pick(rng, ranges.heads),
        blocks=tuple(
            ConvBlock(
                kind=_pick(rng, blocks),
                width=width,
                kernel=_pick(rng, ranges.kernels),
                downsample=down,
                gate=rng.random() < ranges.gates,
            )
            for width, down in zip(widths, downsample, strict=True)
        ),
    )


def draw_mlp(config: SpaceConfig, rng: random.Random) -> MLPArguments:
    """Return the arguments of a fully connected network."""
    blocks, norm, activation = _combination(config, rng, config.mlp.blocks, config.mlp.norms)
    return MLPArguments(
        channels=config.channels,
        size=config.size,
        classes=config.classes,
        block="residual" if _pick(rng, blocks) == "residual" else "plain",
        norm=norm,
        activation=activation,
        widths=tuple(_within(rng, config.mlp.width, 4) for _ in range(_within(rng, config.mlp.depth))),
    )


def draw_vit(config: SpaceConfig, rng: random.Random) -> TransformerArguments:
    """Return the arguments of a vision transformer."""
    ranges, heads = config.vit, _pick(rng, config.vit.heads)
    low, high = ranges.width
    return TransformerArguments(
        channels=config.channels,
        size=config.size,
        classes=config.classes,
        activation=_pick(rng, config.activations),
        patch=_pick(rng, patches_of(config)),
        width=heads * _within(rng, (-(-low // heads), high // heads)),
        depth=_within(rng, ranges.depth),
        heads=heads,
        ratio=_pick(rng, ranges.ratios),
        pool=_pick(rng, ("class", "mean")),
    )
