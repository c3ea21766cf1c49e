"""What a published GHN-3 file leaves unsaid: its sizes, its vocabulary, and its tables of shapes.

Source: Knyazev et al. 2023, "Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models?",
arXiv:2303.04143. Trained weights fix the order of the words and of the tables' rows.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from types import MappingProxyType

from pydantic import Field, model_validator

from metainit.card import Record

PAPER = "Knyazev et al. 2023, arXiv:2303.04143"
VIRTUAL_EDGE_CUTOFF = 50
"""The longest way between two nodes that the network is told of."""
MAX_DEGREE = 100
MAX_INPUT_DISTANCE = 1000
EDGE_VALUES = 257
"""Rows of the table of edges: distances up to 255, shifted by 2."""

Shape4 = tuple[int, int, int, int]
"""Output channels, input channels, kernel height, kernel width."""


class Word(IntEnum):
    """What a node is; the value is its row of the embedding."""

    MAX_POOL = 0
    AVERAGE_POOL = 1
    GROUPED_CONV = 2
    DILATED_GROUPED_CONV = 3
    CONV = 4
    SOFTMAX = 5
    GATE = 6
    SUM = 7
    CONCAT = 8
    INPUT = 9
    BIAS = 10
    BATCH_NORM = 11
    LAYER_NORM = 12
    TABLE = 13
    GLOBAL_AVERAGE = 14


class Ghn3Config(Record):
    """The sizes of a GHN-3.

    `hidden`: width of the encoder. `channels` C and `kernel` s: the decoder makes blocks of
    C x C kernels of at most s x s. `classes`: outputs of the classifiers that it was trained on.
    `final_norm`: a layer normalization after the encoder. `weight_norm`: predicted weights are scaled by
    their fan-in. `virtual_edges`: nodes further apart than one step see their distance.

    Example:
        >>> SIZES['t'].hidden, SIZES['t'].rows_of_channels
        (64, 392)
        >>> Ghn3Config(hidden=64, heads=7)
        Traceback (most recent call last):
        ...
        pydantic_core._pydantic_core.ValidationError: 1 validation error for Ghn3Config
          Value error, hidden=64 is not a multiple of 4 and of heads=7 ...
    """

    hidden: int = Field(default=64, ge=4, le=8192)
    layers: int = Field(default=3, ge=1, le=256)
    heads: int = Field(default=8, ge=1, le=256)
    channels: int = Field(default=64, ge=1, le=4096)
    kernel: int = Field(default=16, ge=1, le=64)
    classes: int = Field(default=1000, ge=1, le=1_000_000)
    final_norm: bool = True
    weight_norm: bool = True
    virtual_edges: bool = True

    @model_validator(mode="after")
    def _widths_divide(self) -> Ghn3Config:
        if self.hidden % self.heads or self.hidden % 4:
            raise ValueError(f"hidden={self.hidden} is not a multiple of 4 and of heads={self.heads}")
        return self

    @property
    def rows_of_channels(self) -> int:
        """Rows of the table of channels, the last one for nodes without a shape."""
        return len(channel_values(self.classes)) + 1

    @property
    def rows_of_kernels(self) -> int:
        """Rows of the table of kernel sizes, the last one for nodes without a shape."""
        return len(kernel_values(self.kernel)) + 1

    def rows(self, shape: Shape4 | None) -> Shape4:
        """Return the rows of a shape: two in the table of channels, two in that of kernel sizes.

        Example:
            >>> SIZES['t'].rows((64, 3, 7, 7)), SIZES['t'].rows(None)
            ((9, 1, 3, 3), (391, 391, 10, 10))
        """
        if shape is None:
            return (self.rows_of_channels - 1,) * 2 + (self.rows_of_kernels - 1,) * 2
        out, inner, height, width = shape
        return (
            channel_row(out, self.classes),
            channel_row(inner, self.classes),
            kernel_row(height, self.kernel),
            kernel_row(width, self.kernel),
        )


SIZES: Mapping[str, Ghn3Config] = MappingProxyType(
    {
        "t": Ghn3Config(hidden=64, layers=3, heads=8, channels=64),
        "s": Ghn3Config(hidden=128, layers=5, heads=16, channels=128),
        "l": Ghn3Config(hidden=256, layers=12, heads=16, channels=256),
        "xl": Ghn3Config(hidden=384, layers=24, heads=16, channels=384),
    }
)
"""The sizes of the paper, for ImageNet."""


@lru_cache(maxsize=64)
def channel_values(classes: int) -> tuple[int, ...]:
    """Return the numbers of channels that have a row of their own."""
    return tuple(
        sorted({1, 3, classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}),
    )


@lru_cache(maxsize=64)
def kernel_values(largest: int) -> tuple[int, ...]:
    """Return the kernel sizes that have a row of their own; 14 and 16 are for tables of positions."""
    return tuple(sorted({*range(1, max(12, largest), 2), 14, 16}))


@lru_cache(maxsize=4096)
def channel_row(count: int, classes: int) -> int:
    """Return the row of a number of channels: the nearest one's, the smaller of two equally near.

    Example:
        >>> channel_values(1000)[channel_row(72, 1000)], channel_values(1000)[channel_row(5, 1000)]
        (64, 8)
    """
    values = channel_values(classes)
    # 4 to 7 count as 8, whatever is nearer.
    return _nearest(values, 8 if 4 <= count < 8 else min(count, 8192))


@lru_cache(maxsize=1024)
def kernel_row(size: int, largest: int) -> int:
    """Return the row of a kernel size: the nearest one's, but 3's for 2."""
    values = kernel_values(largest)
    return _nearest(values, 3 if size == 2 else min(size, values[-1]))


def _nearest(values: tuple[int, ...], value: int) -> int:
    right = min(bisect.bisect_left(values, value), len(values) - 1)
    left = max(right - 1, 0)
    return left if abs(values[left] - value) <= abs(values[right] - value) else right


def shape4(shape: tuple[int, ...]) -> Shape4:
    """Return a parameter's shape as the network sees it.

    A table of positions (1, n, d) counts as d channels on a square of side floor(sqrt(n)).

    Example:
        >>> shape4((10,)), shape4((10, 3)), shape4((1, 197, 768))
        ((10, 1, 1, 1), (10, 3, 1, 1), (1, 768, 14, 14))
    """
    if is_table_of_positions(shape):
        side = math.isqrt(shape[1])
        return 1, shape[2], side, side
    out, inner, height, width = (*shape, 1, 1, 1, 1)[:4]
    return out, inner, height, width


def is_table_of_positions(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (1, positions, width)."""
    return len(shape) == 3 and shape[0] == 1 and min(shape[1:]) > 1
