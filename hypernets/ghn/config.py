"""The sizes of a graph hypernetwork."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from metainit.card import Record


class GhnConfig(Record):
    """Sizes of the encoder, and which decoder turns node states into weights.

    `width`, `layers`, `heads`: of the encoder. `max_distance`: the longest path between two nodes that their
    attention knows of. `decoder`: ``tiled`` decodes a block of `block` x `block` channels and `kernel` x
    `kernel` positions, and repeats it where a parameter is larger; ``low_rank`` multiplies two factors of
    rank `rank`, for up to `channels` rows each.

    Example:
        >>> GhnConfig(width=32, heads=4).decoder
        'tiled'
    """

    width: int = Field(default=64, ge=4, le=4096)
    layers: int = Field(default=3, ge=1, le=64)
    heads: int = Field(default=8, ge=1, le=64)
    max_distance: int = Field(default=50, ge=1, le=1000)
    decoder: Literal["tiled", "low_rank"] = "tiled"
    block: int = Field(default=32, ge=1, le=1024)
    kernel: int = Field(default=7, ge=1, le=31)
    rank: int = Field(default=32, ge=1, le=1024)
    channels: int = Field(default=8192, ge=1, le=1_000_000)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> GhnConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of {self.heads} heads")
        return self
