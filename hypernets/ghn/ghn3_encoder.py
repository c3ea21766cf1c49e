"""The encoder of GHN-3: a Graphormer whose nodes are the operations of the network to be filled.

The names of its parameters are those of the published files.

Shapes: `B` graphs, `N` nodes (padded), `D` hidden width, `H` heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import EDGE_VALUES, MAX_DEGREE, MAX_INPUT_DISTANCE, Ghn3Config

PADDED = -(2.0**15)
"""Added to the attention logits of padded nodes; half precision still holds it."""


class ShapeEncoding(nn.Module):
    """Two numbers of channels and two kernel sizes, each a quarter of the width."""

    def __init__(self, config: Ghn3Config) -> None:
        super().__init__()
        quarter = config.hidden // 4
        self.embed_spatial = nn.Embedding(config.rows_of_kernels, quarter)
        self.embed_channel = nn.Embedding(config.rows_of_channels, quarter)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the encoding ``(..., D)`` of rows ``(..., 4)``."""
        channels, kernels = self.embed_channel(rows[..., :2]), self.embed_spatial(rows[..., 2:])
        return torch.cat([channels.flatten(-2), kernels.flatten(-2)], dim=-1)


class EdgeEmbedding(nn.Module):
    """A row for each distance."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(EDGE_VALUES, hidden)


class Attention(nn.Module):
    """Self-attention over nodes; the first layer's also turns distances into a bias for all layers."""

    def __init__(self, hidden: int, heads: int, edges: bool) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(hidden, 3 * hidden, bias=False)
        self.to_out = nn.Sequential(nn.Linear(hidden, hidden))
        if edges:
            self.edge_embed = EdgeEmbedding(hidden)
            self.proj_e = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, heads))

    def edge_bias(self, distances: Tensor) -> Tensor:
        """Return what distances ``(B, N, N)`` add to the logits, ``(B, H, N, N)``.

        A pair of nodes is told apart by its distance there and back. Few such pairs of distances occur, so
        the small network runs once for each of them and not for each pair of nodes.
        """
        back = distances.transpose(1, 2)
        pairs, place = torch.unique(distances * EDGE_VALUES + back, return_inverse=True)
        both = torch.stack([pairs // EDGE_VALUES, pairs % EDGE_VALUES], dim=-1) + 2
        bias: Tensor = self.proj_e(self.edge_embed.embed(both).flatten(1))
        return bias.t()[:, place].transpose(0, 1)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Mix nodes ``(B, N, D)`` under a bias ``(B, H, N, N)``."""
        batch, nodes, hidden = x.shape
        qkv = self.to_qkv(x).reshape(batch, nodes, 3, self.heads, hidden // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        y: Tensor = self.to_out(mixed.transpose(1, 2).reshape(batch, nodes, hidden))
        return y


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        # The empty places are dropout's in the published files.
        self.net = nn.Sequential(
            nn.Linear(hidden, 4 * hidden),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(4 * hidden, hidden),
            nn.Identity(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, N, D)``."""
        y: Tensor = self.net(x)
        return y


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind a layer normalization."""

    def __init__(self, hidden: int, heads: int, edges: bool) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(hidden)
        self.attn = Attention(hidden, heads, edges)
        self.ln2 = nn.LayerNorm(hidden)
        self.ff = FeedForward(hidden)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return ``(B, N, D)``."""
        x = x + self.attn(self.ln1(x), bias)
        y: Tensor = x + self.ff(self.ln2(x))
        return y


class Encoder(nn.Module):
    """Nodes and their distances -> a vector for each node (source: arXiv:2303.04143, section 3)."""

    def __init__(self, config: Ghn3Config, words: int) -> None:
        super().__init__()
        hidden = config.hidden
        self.embed = nn.Embedding(words, hidden)
        self.shape_enc = ShapeEncoding(config)
        self.gnn = nn.ModuleList(Layer(hidden, config.heads, n == 0) for n in range(config.layers))
        self.centrality_embed_in = nn.Embedding(MAX_DEGREE + 1, hidden)
        self.centrality_embed_out = nn.Embedding(MAX_DEGREE + 1, hidden)
        self.input_dist_embed = nn.Embedding(MAX_INPUT_DISTANCE + 1, hidden)
        if config.final_norm:
            self.ln = nn.LayerNorm(hidden)

    def encode(self, words: Tensor, rows: Tensor, distances: Tensor, present: Tensor | None) -> Tensor:
        """Encode graphs.

        Args:
            words: ``(B, N)``.
            rows: of shapes, ``(B, N, 4)``.
            distances: ``(B, N, N)``, from row to column along the data's way: 1 an edge, more a distance,
                0 no way.
            present: ``(B, N)``, False for padding; None where nothing is padded.

        Returns:
            ``(B, N, D)``.
        """
        edges = distances == 1
        x = (
            self.embed(words)
            + self.shape_enc(rows)
            + self.centrality_embed_in(edges.sum(1).clamp(max=MAX_DEGREE))
            + self.centrality_embed_out(edges.sum(2).clamp(max=MAX_DEGREE))
            + self.input_dist_embed(distances[:, 0].clamp(max=MAX_INPUT_DISTANCE))
        )
        first = self.gnn[0]
        assert isinstance(first, Layer)
        bias = first.attn.edge_bias(distances)
        if present is not None:
            bias = bias.masked_fill(~present[:, None, None, :], PADDED)
        for layer in self.gnn:
            x = layer(x, bias)
        return self._last(x)

    def _last(self, x: Tensor) -> Tensor:
        y: Tensor = self.ln(x) if "ln" in self._modules else x
        return y
