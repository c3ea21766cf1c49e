"""The low-rank decoder: a weight is the product of two thin factors, of just the size that it needs.

T parameters, D width, R rank, M rows of the tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypernets.architecture.graph import Parameter
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.layout import as_stored, is_vector


class LowRankDecoder(nn.Module):
    r"""Decodes a state into two mixing matrices of R x R, applied to learned tables of R numbers a channel.

    .. math:: W = (U_{:m}\, P)\,(V_{:n}\, Q)^\top / \sqrt{R},\qquad m = \text{out} \cdot \text{height},\
              n = \text{in} \cdot \text{width}

    U and V are tables (M, R), shared by all parameters: row i is what is known of channel (and kernel row) i.
    Rows beyond M begin again. A vector is the first column of such a product.

    Shapes:
        states (T, D), T parameters -> T tensors of the parameters' own shapes, not scaled.

    Source: LoGAH (Zhou et al. 2024, arXiv:2405.16287), section 3. Deviation: the layout is explicit, one row
    of a table for each channel, and only the rows that a parameter needs are multiplied.

    Example:
        >>> from hypernets.architecture.graph import Role
        >>> decoder = LowRankDecoder(GhnConfig(decoder='low_rank', rank=4, channels=64))
        >>> decoder(torch.zeros(1, 64), [Parameter('weight', (100, 20), Role.WEIGHT)])[0].shape
        torch.Size([100, 20])
    """

    def __init__(self, config: GhnConfig) -> None:
        super().__init__()
        width, self.rank = config.width, config.rank
        self.mixing = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.ReLU(),
            nn.Linear(4 * width, 8 * width),
            nn.ReLU(),
            nn.Linear(8 * width, 2 * self.rank**2),
        )
        self.left = nn.Parameter(torch.randn(config.channels, self.rank))
        self.right = nn.Parameter(torch.randn(config.channels, self.rank))

    def forward(self, states: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
        """Return the values of every parameter, in its own shape."""
        mixed = self.mixing(states).view(-1, 2, self.rank, self.rank)
        return [self._decoded(m, p) for m, p in zip(mixed, parameters, strict=True)]

    def _decoded(self, mixing: Tensor, parameter: Parameter) -> Tensor:
        out, inner, height, width = parameter.matrix
        left = _rows(self.left, out * height) @ mixing[0]
        if is_vector(parameter):
            return as_stored(left @ (mixing[1].sum(0) / self.rank), parameter)
        right = _rows(self.right, inner * width) @ mixing[1]
        values = left @ right.T / math.sqrt(self.rank)
        values = values.view(out, height, inner, width).transpose(1, 2)
        return as_stored(values, parameter)


def _rows(table: Tensor, count: int) -> Tensor:
    """Return the first rows of a table, which begins again after its last."""
    if count <= len(table):
        return table[:count]
    return table[torch.arange(count, device=table.device) % len(table)]
