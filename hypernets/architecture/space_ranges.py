"""What a random architecture space is: ranges, limits, and the spaces that are shifted away from one."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from hypernets.architecture.space_networks import (
    GROUP_WIDTH,
    Activation,
    Block,
    Head,
    Normalization,
    Pooling,
)  # fmt: skip
from metainit.card import Record
from metainit.errors import RecipeError

Family = Literal["cnn", "mlp", "vit"]
Range = tuple[int, int]
Combination = tuple[Block, Normalization, Activation]
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


def patches_of(config: SpaceConfig) -> list[int]:
    """Return the patch sides that divide the image's side into few enough tokens."""
    sides = [p for p in config.vit.patches if config.size % p == 0]
    return [p for p in sides if (config.size // p) ** 2 <= config.vit.max_tokens]
