"""GHN-3: a graph hypernetwork whose parameters have the names and shapes of the published files.

Source: Knyazev et al. 2023, arXiv:2303.04143. The same weights give the same tensors as the published
implementation, to rounding. Deviations: the first row of a table of positions (a class token's) is drawn from
the caller's generator, where the published code draws it unseeded; kernels larger than the decoder's window
are interpolated however many there are; nothing is left out without a word.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import Ghn3Config, Shape4, Word, shape4
from hypernets.ghn.ghn3_decoder import ConvDecoder, VectorDecoder, positions, tile, tile_
from hypernets.ghn.ghn3_encoder import Encoder
from hypernets.ghn.ghn3_graph import Form, Ghn3Graph, Target
from metainit.errors import DivergenceError

CHUNK_ELEMENTS = 1 << 22
"""Blocks are decoded so many elements at a time, to bound what a prediction needs beside its result."""
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
        """Encode graphs together: a vector ``(N, D)`` for each node of each."""
        device = self.embed.weight.device
        sizes = [len(graph.words) for graph in graphs]
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
        """Decode the targets of all graphs, group by group: (number of the graph, target, its block)."""
        vectors = self.vectors(graphs)
        groups: dict[tuple[Form, Shape4], list[tuple[int, Target]]] = defaultdict(list)
        for n, graph in enumerate(graphs):
            for target in graph.targets:
                groups[target.form, self._block_shape(target)].append((n, target))
        for (form, shape), members in groups.items():
            size = max(1, CHUNK_ELEMENTS // max(1, shape[0] * shape[1] * shape[2] * shape[3]))
            for start in range(0, len(members), size):
                chunk = members[start : start + size]
                x = torch.stack([vectors[n][target.node] for n, target in chunk])
                blocks = self._blocks(form, shape, x, [target for _, target in chunk])
                for (n, target), block in zip(chunk, blocks.unbind(0), strict=True):
                    yield n, target, _in_rank(block, target)

    def _block_shape(self, target: Target) -> Shape4:
        """Return what is decoded at once: parameters of one kind whose blocks have the same shape."""
        most = self.config.channels
        out, inner, height, width = shape4(target.shape)
        match target.form:
            case Form.KERNELS | Form.POSITIONS:
                return min(out, most), min(inner, most), height, width
            case Form.CLASS_WEIGHT:
                return self.config.classes, min(inner, most), 1, 1
            case _:
                return most, 1, 1, 1

    def _blocks(self, form: Form, shape: Shape4, x: Tensor, targets: list[Target]) -> Tensor:
        _, inner, _, _ = shape
        match form:
            case Form.KERNELS:
                return self._scaled(self.decoder(x, shape), targets)
            case Form.CLASS_WEIGHT:
                return self._scaled(self.decoder.classes(x, inner), targets)
            case Form.POSITIONS:
                # Tables of positions are not scaled.
                return _tensor(self.decoder(x, shape))
            case Form.NORM_WEIGHT:
                weight = _tensor(self.decoder_1d(x))[:, 0]
                return 2 * torch.sigmoid(0.5 * weight) if self.config.weight_norm else weight
            case Form.BIAS | Form.CLASS_BIAS:
                bias = _tensor(self.decoder_1d(x))[:, 1]
                bias = self.bias_class(bias) if form is Form.CLASS_BIAS else bias
                return torch.tanh(0.2 * bias) if self.config.weight_norm else bias

    def _scaled(self, blocks: Tensor, targets: list[Target]) -> Tensor:
        if not self.config.weight_norm:
            return blocks
        scales = blocks.new_tensor([_scale(target.shape) for target in targets])
        # In place: the blocks are a linear layer's output, which its gradient does not need.
        return blocks.mul_(scales.view(-1, *[1] * (blocks.dim() - 1)))


def _scale(shape: tuple[int, ...]) -> float:
    r"""Return :math:`\sqrt{\beta / \text{fan-in}}`: :math:`\beta` is 2, and 1 for what no ReLU follows.

    The published rule takes depthwise kernels and those wider than high for that.
    """
    linear = len(shape) > 2 and (shape[1] == 1 or shape[2] < shape[3])
    return math.sqrt((1 if linear else 2) / math.prod(shape[1:]))


def _in_rank(block: Tensor, target: Target) -> Tensor:
    """Give a block as many dimensions as its target; tables of positions are turned later."""
    if target.form is Form.POSITIONS or len(target.shape) == 1:
        return block
    return block.reshape(*block.shape[:2], *target.shape[2:])


def _tensor(value: Tensor) -> Tensor:
    return value
