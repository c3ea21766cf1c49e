"""The denoiser over tokens: a transformer whose tokens have projections of their own."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from hypernets.generator.blocks import Levels, TransformerBlock, zeroed
from hypernets.generator.tokens import TokenLayout, gather


class TransformerDenoiser(nn.Module):
    """A transformer over a network's tokens, modulated by noise level and condition; zero before training.

    With a shared base every coordinate has a meaning of its own, so that one projection for all tokens is too
    weak: each ``token``, or each ``kind`` of tokens, has its own, in and out. Beside the transformer runs a
    linear map through `width` numbers, from all coordinates to all, which the noise level and the condition
    modulate.

    Example:
        >>> from hypernets.generator.flat import FlatLayout
        >>> from hypernets.generator.tokens import owned
        >>> network = nn.Linear(2, 3)
        >>> flat = FlatLayout.of(dict(network.named_parameters()))
        >>> tokens = TokenLayout.of(flat, owned(network), 'neuron', 8)
        >>> net = TransformerDenoiser(tokens, width=16, depth=1, heads=2, embedding=8)
        >>> net(torch.randn(4, 9), torch.zeros(4), torch.zeros(4, 8)).shape
        torch.Size([4, 9])
    """

    index: Tensor
    inverse: Tensor
    marks: Tensor

    def __init__(
        self,
        tokens: TokenLayout,
        width: int,
        depth: int,
        heads: int,
        embedding: int,
        projection: Literal["token", "kind"] = "token",
    ) -> None:
        super().__init__()
        own = torch.arange(len(tokens), device="cpu") if projection == "token" else tokens.kind
        self.register_buffer("index", tokens.index, persistent=False)
        self.register_buffer("inverse", tokens.inverse, persistent=False)
        # The projection, place, layer and kind of each token.
        marks = torch.stack([own, tokens.place, tokens.layer, tokens.kind])
        self.register_buffer("marks", marks, persistent=False)
        count, side = int(own.max()) + 1, tokens.index.shape[1]
        self.levels = Levels(embedding)
        self.into = nn.Parameter(torch.randn(count, side, width) * side**-0.5)
        self.out = nn.Parameter(torch.zeros(count, width, side))
        self.bias = nn.Parameter(torch.zeros(count, side))
        tables = [torch.randn(int(mark.max()) + 1, width) * 0.02 for mark in marks[1:]]
        self.embeddings = nn.ParameterList([nn.Parameter(table) for table in tables])
        self.condition = nn.Linear(embedding, width)
        self.blocks = nn.ModuleList([TransformerBlock(width, heads, embedding) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.skip_down = nn.Linear(tokens.size, width)
        self.skip_gate = nn.Linear(embedding, width)
        self.skip_up = zeroed(nn.Linear(width, tokens.size))

    def forward(self, values: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the denoiser's values (B, D)."""
        own, *places = self.marks
        embedded = self.levels(time, condition)
        tokens = gather(values, self.index)
        hidden = torch.einsum("bts,tsw->btw", tokens, self.into[own])
        for table, place in zip(self.embeddings, places, strict=True):
            hidden = hidden + table[place]
        hidden = hidden + self.condition(embedded).unsqueeze(1)
        for block in self.blocks:
            hidden = block(hidden, embedded)
        found = torch.einsum("btw,tws->bts", self.norm(hidden), self.out[own]) + self.bias[own]
        skipped: Tensor = self.skip_up(self.skip_down(values) * (1 + self.skip_gate(embedded)))
        return found.flatten(1)[:, self.inverse] + skipped
