"""GHN-3: a graph hypernetwork whose parameters have the names and shapes of the published files.

Source: Knyazev et al. 2023, arXiv:2303.04143. The same weights give the same tensors as the published
implementation, to rounding. Deviations: the first row of a table of positions (a class token's) is drawn from
the caller's generator, where the published code draws it unseeded; kernels larger than the decoder's window
are interpolated however many there are; nothing is left out without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from hypernets.ghn.attention_room import require_room
from hypernets.ghn.ghn3_blocks import Wanted, class_blocks, kernel_blocks, vector_blocks
from hypernets.ghn.ghn3_config import Ghn3Config, Word
from hypernets.ghn.ghn3_decoder import ConvDecoder, VectorDecoder, positions, tile, tile_
from hypernets.ghn.ghn3_encoder import Encoder
from hypernets.ghn.ghn3_graph import Form, Ghn3Graph, Target
from metainit.errors import DivergenceError

TOKEN_STD = 0.02
"""Standard deviation of the row of a class token."""


class Ghn3(Encoder):
    """The encoder and the decoders.

    Example:
        >>> config = Ghn3Config(hidden=8, layers=1, heads=2, channels=8, kernel=11, classes=10)
        >>> ghn = Ghn3(config)
        >>> sorted(name for name in ghn.state_dict() if name.startswith('bias_class'))
        ['bias_class.1.bias', 'bias_class.1.weight']
    """

    def __init__(self, config: Ghn3Config) -> None:
        super().__init__(config, len(Word))
        self.config = config
        self.decoder = ConvDecoder(config)
        self.decoder_1d = VectorDecoder(config)
        self.bias_class = nn.Sequential(nn.ReLU(), nn.Linear(config.channels, config.classes))
        self._initialize()

    def _initialize(self) -> None:
        # Section 3 of the paper: small last layers and transformer embeddings keep early training finite.
        for layer in (self.decoder.conv[2], self.decoder.class_layer_predictor[1], self.decoder_1d.fc[2]):
            assert isinstance(layer, nn.Linear)
            with torch.no_grad():
                layer.weight.div_(5)
                layer.bias.zero_()
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)

    def vectors(self, graphs: Sequence[Ghn3Graph]) -> list[Tensor]:
        """Encode graphs together: a vector ``(N, D)`` for each node of each.

        Raises:
            GraphError: attention between all pairs of nodes would take too much memory; nothing is allocated.
        """
        device = self.embed.weight.device
        sizes = [len(graph.words) for graph in graphs]
        require_room(sizes, self.config.heads)
        shape = (len(graphs), max(sizes))
        words = torch.zeros(shape, dtype=torch.long)
        rows = torch.zeros(*shape, 4, dtype=torch.long)
        distances = torch.zeros(*shape, shape[1], dtype=torch.long)
        for n, (graph, size) in enumerate(zip(graphs, sizes, strict=True)):
            words[n, :size] = torch.tensor(graph.words)
            rows[n, :size] = torch.tensor([self.config.rows(s) for s in graph.shapes])
            distances[n, :size, :size] = graph.distances
        present = None
        if min(sizes) < shape[1]:
            present = (torch.arange(shape[1]) < torch.tensor(sizes)[:, None]).to(device)
        x = self.encode(words.to(device), rows.to(device), distances.to(device), present)
        return [x[n, :size] for n, size in enumerate(sizes)]

    def forward(
        self, graphs: Sequence[Ghn3Graph], generator: torch.Generator | None = None
    ) -> list[dict[str, Tensor]]:
        """Predict the targets of each graph; gradients flow to this network's parameters."""
        filled: list[dict[str, Tensor]] = [{} for _ in graphs]
        for n, target, block in self._decoded(graphs):
            filled[n][target.name] = self._whole(target, block, generator)
        return filled

    @torch.no_grad()
    def write_(
        self, graph: Ghn3Graph, tensors: dict[str, Tensor], generator: torch.Generator | None = None
    ) -> None:
        """Write the prediction into tensors of the targets' names and shapes: all of them, or none.

        Only the blocks are allocated beside them.

        Raises:
            DivergenceError: a block is not finite.
        """
        decoded = [(target, block) for _, target, block in self._decoded([graph])]
        bad = [target.name for target, block in decoded if not torch.isfinite(block).all()]
        if bad:
            raise DivergenceError(
                f"the hypernetwork gives numbers that are not finite for {', '.join(bad[:5])}; nothing was "
                "filled: check its weights"
            )
        for target, block in decoded:
            if target.form is Form.POSITIONS:
                tensors[target.name].copy_(self._whole(target, block, generator))
            else:
                tile_(tensors[target.name], block)

    def _whole(self, target: Target, block: Tensor, generator: torch.Generator | None) -> Tensor:
        if target.form is not Form.POSITIONS:
            return tile(block, target.shape)
        drawn = torch.randn(1, 1, target.shape[2], generator=generator) * TOKEN_STD
        return positions(block, target.shape, drawn.to(block))

    def _decoded(self, graphs: Sequence[Ghn3Graph]) -> Iterator[tuple[int, Target, Tensor]]:
        """Decode the targets of all graphs together: (number of the graph, target, its block)."""
        vectors = [x.unbind(0) for x in self.vectors(graphs)]
        groups: dict[Form, list[Wanted]] = {form: [] for form in Form}
        for n, graph in enumerate(graphs):
            for target in graph.targets:
                groups[target.form].append(Wanted(n, target, vectors[n][target.node]))
        norm = self.config.weight_norm
        kernels = groups[Form.KERNELS] + groups[Form.POSITIONS]
        rest = groups[Form.NORM_WEIGHT] + groups[Form.BIAS] + groups[Form.CLASS_BIAS]
        blocks = chain(
            kernel_blocks(self.decoder, kernels, norm),
            class_blocks(self.decoder, groups[Form.CLASS_WEIGHT], norm),
            vector_blocks(self.decoder_1d, self.bias_class, rest, norm),
        )
        return ((wanted.graph, wanted.target, block) for wanted, block in blocks)
