"""A random space of small image classifiers: pure draws of network specs, and shifted spaces to test on."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from pydantic import Field, ValidationError, model_validator
from torch import nn

from hypernets.architecture.space_networks import (
    GROUP_WIDTH,
    MLP,
    Activation,
    Block,
    ConvArguments,
    ConvBlock,
    ConvNet,
    Head,
    Images,
    MLPArguments,
    Normalization,
    Pooling,
    TransformerArguments,
    VisionTransformer,
)
from metainit.card import Record, Spec, canonical_json
from metainit.domains.seeding import seed_of
from metainit.errors import RecipeError, suggestion

Split = Literal["train", "validation", "test"]
Family = Literal["cnn", "mlp", "vit"]
Range = tuple[int, int]
Combination = tuple[Block, Normalization, Activation]
SHARES: Mapping[Split, range] = MappingProxyType(
    {"train": range(0, 80), "validation": range(80, 90), "test": range(90, 100)}
)
"""The split of an architecture, by its hash modulo 100: whatever seed or space drew it."""
ATTEMPTS = 5000
HELD_OUT: tuple[Combination, ...] = (
    ("plain", "layer", "silu"),
    ("plain", "batch", "tanh"),
    ("residual", "group", "gelu"),
    ("residual", "none", "silu"),
    ("bottleneck", "batch", "silu"),
    ("bottleneck", "layer", "leaky_relu"),
    ("grouped", "layer", "relu"),
    ("dense", "group", "relu"),
    ("dense", "batch", "gelu"),
    ("separable", "batch", "relu"),
    ("separable", "none", "gelu"),
)
"""(block, normalization, activation) that the base space never draws."""
T = TypeVar("T")


class ConvRanges(Record):
    """What convolutional networks are drawn from; ranges include both ends."""

    depth: Range = (1, 4)
    width: Range = (8, 32)
    kernels: tuple[Literal[1, 3, 5, 7], ...] = (1, 3, 5)
    blocks: tuple[Block, ...] = ("plain", "residual", "bottleneck", "grouped", "dense", "separable")
    norms: tuple[Normalization, ...] = ("batch", "layer", "group", "none")
    schedules: tuple[Literal["constant", "doubling", "free", "regnet"], ...] = (
        "constant", "doubling", "free", "regnet",
    )  # fmt: skip
    poolings: tuple[Pooling, ...] = ("max", "average", "stride")
    heads: tuple[Head, ...] = ("average", "flatten")
    downsampling: float = Field(default=0.5, ge=0, le=1)
    gates: float = Field(default=0.2, ge=0, le=1)


class MLPRanges(Record):
    """What fully connected networks are drawn from."""

    depth: Range = (1, 3)
    width: Range = (16, 64)
    blocks: tuple[Literal["plain", "residual"], ...] = ("plain", "residual")
    norms: tuple[Normalization, ...] = ("batch", "layer", "group", "none")


class TransformerRanges(Record):
    """What vision transformers are drawn from; patches that do not divide the side are left out."""

    depth: Range = (1, 2)
    width: Range = (16, 48)
    patches: tuple[int, ...] = (2, 4, 7)
    heads: tuple[int, ...] = (2, 4)
    ratios: tuple[int, ...] = (1, 2)
    max_tokens: int = Field(default=64, ge=1)


class SpaceConfig(Record):
    """A space of architectures.

    `families`: how often each is drawn, relative to the others. `max_macs`: multiply-accumulate operations of
    one image's forward pass. `held_out`: combinations that are never drawn (`combinations` is ``known``), or
    of which every block is one (``held_out``; then of convolutional and fully connected networks alone).

    Example:
        >>> SpaceConfig(size=14).max_parameters
        200000
        >>> SpaceConfig(size=13)
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: ... no patch of (2, 4, 7) divides the side 13 ...
    """

    channels: int = Field(default=1, ge=1, le=16)
    size: int = Field(default=14, ge=2, le=512)
    classes: int = Field(default=10, ge=2)
    families: dict[Family, float] = {"cnn": 0.6, "mlp": 0.25, "vit": 0.15}
    activations: tuple[Activation, ...] = ("relu", "gelu", "silu", "tanh", "leaky_relu")
    cnn: ConvRanges = ConvRanges()
    mlp: MLPRanges = MLPRanges()
    vit: TransformerRanges = TransformerRanges()
    max_parameters: int = Field(default=200_000, ge=100)
    max_macs: int = Field(default=1_000_000, ge=100)
    held_out: tuple[Combination, ...] = HELD_OUT
    combinations: Literal["known", "held_out"] = "known"

    @model_validator(mode="after")
    def _can_be_drawn(self) -> SpaceConfig:
        ranges = {
            f"{n}.{k}": getattr(r, k)
            for n, r in (("cnn", self.cnn), ("mlp", self.mlp), ("vit", self.vit))
            for k in ("depth", "width")
        }
        for name, (low, high) in ranges.items():
            if not 1 <= low <= high:
                raise ValueError(f"{name} is ({low}, {high}), expected 1 <= low <= high")
        if not self.families or min(self.families.values()) < 0 or sum(self.families.values()) <= 0:
            raise ValueError(f"families are {self.families}: expected shares of at least 0, some above it")
        if self.cnn.width[0] < GROUP_WIDTH:
            raise ValueError(f"cnn.width begins at {self.cnn.width[0]}, expected at least {GROUP_WIDTH}")
        if self.families.get("vit", 0) > 0 and not patches_of(self):
            raise ValueError(
                f"no patch of {self.vit.patches} divides the side {self.size} into at most "
                f"{self.vit.max_tokens} tokens: name another one, or set the family 'vit' to 0"
            )
        if self.combinations == "held_out" and self.families.get("vit", 0) > 0:
            raise ValueError("no combination of 'vit' is held out: set that family to 0")
        return self


class Cost(NamedTuple):
    """Parameters of a network, and multiply-accumulate operations of one image's forward pass."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Maker:
    """A family's arguments, its module, and how its arguments are drawn."""

    arguments: type[Images]
    module: Callable[[Any], nn.Module]
    draw: Callable[[SpaceConfig, random.Random], Images]


def sample(config: SpaceConfig, seed: int, index: int, split: Split = "train") -> Spec:
    """Return the spec of one random architecture: a pure function of its arguments.

    The splits share no architecture, whatever the seeds: its hash says which one it belongs to.

    Raises:
        RecipeError: hardly anything in the space keeps to its limits on parameters and operations.

    Example:
        >>> sample(SpaceConfig(), 0, 3) == sample(SpaceConfig(), 0, 3)
        True
        >>> sample(SpaceConfig(), 0, 0).name in ('cnn', 'mlp', 'vit')
        True
    """
    rng = random.Random(seed_of("architecture", seed, index, split))
    family = _weighted(rng, config.families)
    for _ in range(ATTEMPTS):
        arguments = FAMILIES[family].draw(config, rng)
        spec = Spec(name=family, arguments=arguments.model_dump(mode="json"))
        if split_of(spec) != split:
            continue
        cost = cost_of(spec)
        if cost.parameters <= config.max_parameters and cost.macs <= config.max_macs:
            return spec
    raise RecipeError(
        f"none of {ATTEMPTS} draws of {family!r} has at most {config.max_parameters} parameters and "
        f"{config.max_macs} multiply-accumulate operations: raise max_parameters or max_macs, or "
        "narrow the space"
    )


def distinct(config: SpaceConfig, seed: int, count: int, split: Split) -> list[Spec]:
    """Return the first `count` different architectures of a seed's stream.

    Raises:
        RecipeError: the space does not hold that many.

    Example:
        >>> len({identity(spec) for spec in distinct(SpaceConfig(), 0, 5, 'test')})
        5
    """
    found: dict[str, Spec] = {}
    for index in range(10 * count + 100):
        if len(found) == count:
            break
        spec = sample(config, seed, index, split)
        found.setdefault(identity(spec), spec)
    if len(found) < count:
        raise RecipeError(f"the space gave {len(found)} different architectures, expected {count}: widen it")
    return list(found.values())


def identity(spec: Spec) -> str:
    """Return a short name of an architecture that no other one has: family and hash.

    Example:
        >>> identity(Spec(name='mlp'))
        'mlp-0358a04b29c9'
    """
    return f"{spec.name}-{_digest(spec)[:12]}"


def split_of(spec: Spec) -> Split:
    """Return the split that an architecture belongs to."""
    number = int(_digest(spec)[12:28], 16) % 100
    return next(split for split, numbers in SHARES.items() if number in numbers)


def build_architecture(spec: Spec, seed: int = 0) -> nn.Module:
    """Build a network of the space, with its framework-default weights drawn from `seed`.

    Raises:
        RecipeError: the spec names no family of the space, or has other arguments than that takes.

    Example:
        >>> network = build_architecture(sample(SpaceConfig(), 0, 0))
        >>> network(torch.rand(2, 1, 14, 14)).shape
        torch.Size([2, 10])
    """
    if spec.name not in FAMILIES:
        raise RecipeError(f"no family is called {spec.name!r}; {suggestion(spec.name, FAMILIES)}")
    maker = FAMILIES[spec.name]
    try:
        arguments = maker.arguments.model_validate(spec.arguments)
    except ValidationError as error:
        raise RecipeError(f"architecture {spec.name!r} cannot be built: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return maker.module(arguments)


def cost_of(spec: Spec) -> Cost:
    """Return what a network of the space costs, counted while it runs on one image.

    Example:
        >>> cost_of(Spec(name='mlp', arguments={'channels': 1, 'size': 2, 'classes': 2, 'block': 'plain',
        ...     'norm': 'none', 'activation': 'relu', 'widths': [3]}))
        Cost(parameters=23, macs=18)
    """
    network, macs = build_architecture(spec), 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d | nn.Linear):
            width = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            macs += output.numel() // width * module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    shape = [spec.arguments[name] for name in ("channels", "size", "size")]
    with torch.inference_mode():
        # In evaluation: batch normalization has no statistics of one value. Not on the meta device, where
        # such small networks take ten times as long.
        network.eval()(torch.zeros(1, *shape))
    return Cost(sum(p.numel() for p in network.parameters()), macs)


def larger(config: SpaceConfig) -> SpaceConfig:
    """Return the space whose networks are all deeper and wider than any of `config`.

    Example:
        >>> larger(SpaceConfig()).cnn.depth, larger(SpaceConfig()).cnn.width
        ((5, 6), (36, 64))
    """

    def above(ranges: ConvRanges | MLPRanges | TransformerRanges) -> dict[str, Range]:
        depth, width = ranges.depth[1], ranges.width[1]
        return {"depth": (depth + 1, depth + max(1, depth // 2)), "width": (width + 4, 2 * width)}

    return config.model_copy(
        update={
            "cnn": config.cnn.model_copy(update=above(config.cnn)),
            "mlp": config.mlp.model_copy(update=above(config.mlp)),
            "vit": config.vit.model_copy(update=above(config.vit)),
            "max_parameters": 8 * config.max_parameters,
            "max_macs": 4 * config.max_macs,
        }
    )


def recombined(config: SpaceConfig) -> SpaceConfig:
    """Return the space in which every block is a combination that `config` never draws.

    Raises:
        RecipeError: `config` holds no combination out.

    Example:
        >>> recombined(SpaceConfig()).combinations
        'held_out'
    """
    if not config.held_out:
        raise RecipeError("held_out is empty: name combinations of (block, normalization, activation)")
    families = {k: v for k, v in config.families.items() if k != "vit"}
    values = config.model_dump() | {"families": families, "combinations": "held_out"}
    return SpaceConfig.model_validate(values)


def combinations_of(spec: Spec) -> set[tuple[str, str, str]]:
    """Return the (block, normalization, activation) of a network's blocks; a transformer has none."""
    given = spec.arguments
    if spec.name == "cnn":
        return {(block["kind"], given["norm"], given["activation"]) for block in given["blocks"]}
    return {(given["block"], given["norm"], given["activation"])} if spec.name == "mlp" else set()


def patches_of(config: SpaceConfig) -> list[int]:
    """Return the patch sides that divide the image's side into few enough tokens."""
    sides = [p for p in config.vit.patches if config.size % p == 0]
    return [p for p in sides if (config.size // p) ** 2 <= config.vit.max_tokens]


def _digest(spec: Spec) -> str:
    return hashlib.sha256(canonical_json(spec.model_dump(mode="json")).encode()).hexdigest()


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    # `random()` alone gives the same numbers in every version of Python.
    return options[int(rng.random() * len(options))]


def _within(rng: random.Random, limits: Range, step: int = 1) -> int:
    """Return a multiple of `step` (counted from the lower end) inside the limits."""
    low, high = limits
    return low + step * int(rng.random() * ((high - low) // step + 1))


def _weighted(rng: random.Random, shares: Mapping[Family, float]) -> Family:
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


def _draw_cnn(config: SpaceConfig, rng: random.Random) -> ConvArguments:
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


def _draw_mlp(config: SpaceConfig, rng: random.Random) -> MLPArguments:
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


def _draw_vit(config: SpaceConfig, rng: random.Random) -> TransformerArguments:
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


FAMILIES: Mapping[str, Maker] = MappingProxyType(
    {
        "cnn": Maker(ConvArguments, ConvNet, _draw_cnn),
        "mlp": Maker(MLPArguments, MLP, _draw_mlp),
        "vit": Maker(TransformerArguments, VisionTransformer, _draw_vit),
    }
)
"""The families of the space."""
