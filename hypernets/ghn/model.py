"""The graph hypernetwork: an encoder of architecture graphs and a decoder of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from hypernets.architecture.features import to_data
from hypernets.architecture.graph import ArchitectureGraph
from hypernets.ghn.attention_room import require_room
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.encoder import Encoder
from hypernets.ghn.low_rank import LowRankDecoder
from hypernets.ghn.scale import scaled
from hypernets.ghn.tiled import TiledDecoder

DECODERS: Mapping[str, Callable[[GhnConfig], nn.Module]] = MappingProxyType(
    {"tiled": TiledDecoder, "low_rank": LowRankDecoder}
)


class Ghn(nn.Module):
    """Predicts all parameters of networks from their graphs.

    Source: GHN-3 (Knyazev et al. 2023, arXiv:2303.04143) with its tiled decoder, or LoGAH's low-rank one
    (Zhou et al. 2024, arXiv:2405.16287).

    Example:
        >>> from hypernets.architecture.graph import Node, Operation, Parameter, Role
        >>> layer = Node(Operation.LINEAR, (Parameter('weight', (3, 2), Role.WEIGHT),))
        >>> ghn = Ghn(GhnConfig(width=16, heads=2, block=4))
        >>> ghn([ArchitectureGraph((layer,), ())])[0]['weight'].shape
        torch.Size([3, 2])
    """

    def __init__(self, config: GhnConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = DECODERS[config.decoder](config)

    def states(self, graphs: Sequence[ArchitectureGraph], data: Sequence[Data] | None = None) -> Tensor:
        """Return the states of all parameters of all graphs, (T, D).

        `data`: what `features` gives for the graphs, where the caller keeps it.

        Raises:
            GraphError: attention between all pairs of nodes would take too much memory; nothing is allocated.
        """
        require_room([len(graph.nodes) for graph in graphs], self.config.heads)
        batch = Batch.from_data_list(list(data) if data is not None else [self.features(g) for g in graphs])
        states: Tensor = self.encoder(batch.to(self.device))
        return states

    def features(self, graph: ArchitectureGraph) -> Data:
        """Return what the encoder reads of a graph; worth keeping where a graph is used again."""
        return to_data(graph, self.config.max_distance)

    def forward(
        self, graphs: Sequence[ArchitectureGraph], data: Sequence[Data] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return the parameters of every graph by name, differentiable, each graph as if it were alone."""
        parameters = [p for graph in graphs for p in graph.parameters]
        raw = self.decoder(self.states(graphs, data), parameters)
        values = iter([scaled(r, p) for r, p in zip(raw, parameters, strict=True)])
        return [{p.name: next(values) for p in graph.parameters} for graph in graphs]

    @property
    def device(self) -> torch.device:
        """Where the weights of the hypernetwork lie."""
        return next(self.parameters()).device
