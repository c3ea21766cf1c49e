"""What both denoisers are made of: the embedding of the noise level, and blocks that it modulates."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

FREQUENCIES = 32


class Levels(nn.Module):
    """Embeds the noise level and adds the condition's embedding.

    Shapes: time (B) in [0, 1000] and condition (B, E) -> (B, E).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(width, width)

    def forward(self, time: Tensor, condition: Tensor) -> Tensor:
        """Return the embedding (B, E)."""
        scales = torch.arange(FREQUENCIES, device=time.device) * (-math.log(10_000) / FREQUENCIES)
        angles = time.to(condition.dtype)[:, None] * scales.exp()
        waves = torch.cat([angles.sin(), angles.cos()], -1)
        embedded: Tensor = self.time(waves) + self.condition(condition)
        return nn.functional.silu(embedded)


class Modulation(nn.Module):
    """Shift, scale and gate of `branches` branches, all zero before training: (B, E) -> of each (B, 1..., W).

    Source: adaLN-Zero, Peebles & Xie 2023, "Scalable Diffusion Models with Transformers", arXiv:2212.09748,
    section 3.2.
    """

    def __init__(self, embedding: int, width: int, branches: int) -> None:
        super().__init__()
        self.branches = branches
        self.linear = zeroed(nn.Linear(embedding, 3 * branches * width))

    def forward(self, embedded: Tensor, dims: int) -> tuple[Tensor, ...]:
        """Return shift, scale, gate of each branch, for values with `dims` axes."""
        values: Tensor = self.linear(embedded)
        parts = values.view(len(values), *[1] * (dims - 2), -1)
        return parts.chunk(3 * self.branches, -1)


class ResidualBlock(nn.Module):
    """A modulated hidden layer beside the identity: (B, W) -> (B, W)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(embedding, width, 1)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor, embedded: Tensor) -> Tensor:
        """Return the block's values (B, W)."""
        shift, scale, gate = self.modulation(embedded, 2)
        changed: Tensor = values + gate * self.hidden(self.norm(values) * (1 + scale) + shift)
        return changed


class TransformerBlock(nn.Module):
    """Modulated self-attention and a modulated hidden layer, beside the identity: (B, T, W) -> (B, T, W)."""

    def __init__(self, width: int, heads: int, embedding: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(embedding, width, 2)
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.hidden = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )

    def forward(self, values: Tensor, embedded: Tensor) -> Tensor:
        """Return the block's values (B, T, W)."""
        shift, scale, gate, shift_2, scale_2, gate_2 = self.modulation(embedded, 3)
        values = values + gate * self._attend(self.norm(values) * (1 + scale) + shift)
        changed: Tensor = values + gate_2 * self.hidden(self.norm(values) * (1 + scale_2) + shift_2)
        return changed

    def _attend(self, values: Tensor) -> Tensor:
        parts = self.into(values).unflatten(-1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return attended


def zeroed(linear: nn.Linear) -> nn.Linear:
    """Return a linear layer that gives zero."""
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
