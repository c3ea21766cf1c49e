"""The encoder: a Graphormer whose attention knows how far two operations lie apart.

B graphs, N nodes of the largest, H heads, D width, T parameters of all graphs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch_geometric.data import Batch
from torch_geometric.utils import to_dense_adj, to_dense_batch

from hypernets.architecture.features import MAX_PLACE, NODE_SIZES, OPERATIONS, ROLES, TARGET_SIZES
from hypernets.ghn.config import GhnConfig

MAX_DEGREE = 100
EMBEDDING_SPREAD = 0.5
SIZE_SCALE = 8.0
"""Sizes are logarithms up to about this: unscaled they would drown what an operation is."""


class Encoder(nn.Module):
    """States of the parameters that a batch of graphs carries.

    A node starts as the sum of embeddings of its operation, its sizes, its degrees and its distances from
    input and output; pre-norm attention blocks follow, with a bias for each pair of nodes from the lengths of
    the shortest paths both ways. A parameter's state is its node's, plus embeddings of its role, place and
    sizes.

    Shapes:
        batch of graphs (`hypernets.architecture.features.to_data`) -> (T, D)

    Source: Graphormer (Ying et al. 2021, arXiv:2106.05234) as in GHN-3 (Knyazev et al. 2023,
    arXiv:2303.04143). Deviations: sizes enter as logarithms, not through tables, so that there is no size
    without an embedding; one node carries all parameters of an operation.

    Example:
        >>> from hypernets.architecture.features import to_data
        >>> from hypernets.architecture.graph import ArchitectureGraph, Node, Operation, Parameter, Role
        >>> layer = Node(Operation.LINEAR, (Parameter('weight', (3, 2), Role.WEIGHT),))
        >>> batch = Batch.from_data_list([to_data(ArchitectureGraph((layer,), ()), 50)])
        >>> Encoder(GhnConfig())(batch).shape
        torch.Size([1, 64])
    """

    def __init__(self, config: GhnConfig) -> None:
        super().__init__()
        width = config.width
        self.operation = nn.Embedding(len(OPERATIONS), width)
        self.sizes = nn.Sequential(nn.Linear(NODE_SIZES, width), nn.GELU(), nn.Linear(width, width))
        self.degree_in = nn.Embedding(MAX_DEGREE + 1, width)
        self.degree_out = nn.Embedding(MAX_DEGREE + 1, width)
        self.depth = nn.Embedding(config.max_distance + 1, width)
        self.height = nn.Embedding(config.max_distance + 1, width)
        self.distance = nn.Embedding(config.max_distance + 1, width)
        self.bias = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, config.heads))
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.role = nn.Embedding(len(ROLES), width)
        self.place = nn.Embedding(MAX_PLACE + 1, width)
        self.target_sizes = nn.Sequential(nn.Linear(TARGET_SIZES, width), nn.GELU(), nn.Linear(width, width))
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=EMBEDDING_SPREAD)

    def forward(self, batch: Batch) -> Tensor:
        """Return the states of all parameters, in the order of the graphs, ``(T, D)``."""
        distance = to_dense_adj(batch.edge_index, batch.batch, batch.distance, batch_size=batch.num_graphs)
        _, real = to_dense_batch(batch.operation, batch.batch, batch_size=batch.num_graphs)
        degree = batch.degree.clamp(max=MAX_DEGREE)
        # The longest of the shortest paths that reach a node: how deep it lies, and how far from the end.
        depth, height = distance.amax(1)[real], distance.amax(2)[real]
        nodes = (
            self.operation(batch.operation)
            + self.sizes(batch.sizes / SIZE_SCALE)
            + self.degree_in(degree[:, 0])
            + self.degree_out(degree[:, 1])
            + self.depth(depth)
            + self.height(height)
        )
        states, _ = to_dense_batch(nodes, batch.batch, batch_size=batch.num_graphs)
        bias = self._bias(distance).masked_fill(~real[:, None, None, :], -torch.inf)
        for block in self.blocks:
            states = block(states, bias)
        found = self.norm(states[real])[batch.target_index]
        parameters: Tensor = (
            found
            + self.role(batch.target_role)
            + self.place(batch.target_place)
            + self.target_sizes(batch.target_sizes / SIZE_SCALE)
        )
        return parameters

    def _bias(self, distance: Tensor) -> Tensor:
        """Return what attention adds for each pair, (B, H, N, N), from the distances both ways.

        A graph has no cycles, so that at most one of the two distances is not zero: a table of all cases is
        looked up.
        """
        limit = self.distance.num_embeddings - 1
        signed = torch.arange(-limit, limit + 1, device=distance.device)
        ways = torch.cat([self.distance(signed.clamp(min=0)), self.distance((-signed).clamp(min=0))], dim=1)
        cases = self.bias(ways)
        bias: Tensor = cases[distance - distance.transpose(1, 2) + limit].permute(0, 3, 1, 2)
        return bias


class Block(nn.Module):
    """A pre-norm transformer block: attention with a bias for each pair, then an MLP four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor, bias: Tensor) -> Tensor:
        """Return the next states, (B, N, D), given the bias, (B, H, N, N)."""
        split = self.qkv(self.norm_attention(states)).reshape(*states.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=bias)
        states = states + self.out(mixed.transpose(1, 2).flatten(-2))
        updated: Tensor = states + self.mlp(self.norm_mlp(states))
        return updated
