"""A network's parameters as tokens, and back, bit by bit: rows of neurons, or equal blocks of a layer.

Letters: `D` numbers of the flat vector, `T` tokens, `S` numbers of a token.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

from hypernets.generator.description import Layers
from hypernets.generator.flat import FlatLayout
from metainit.errors import MismatchError

TokenKind = Literal["neuron", "block"]
MOST = 1 << 28
"""Numbers of all tokens of a network, padding included."""


def owned(network: nn.Module) -> Layers:
    """Return the names of the parameters of each module that has any of its own; a shared one comes once.

    Example:
        >>> owned(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)))
        (('0.weight', '0.bias'), ('2.weight',))
    """
    names = {id(value): name for name, value in network.named_parameters()}
    layers = []
    for module in network.modules():
        own = [names.pop(id(value)) for value in module.parameters(recurse=False) if id(value) in names]
        if own:
            layers.append(tuple(own))
    return tuple(layers)


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """Which number of the flat vector lies where in which token.

    `index`: (T, S) int64 into the flat vector; padding points at `size`, one past its end. Of each token:
    `layer`, the number of the module that owns it; `place`, its row or block in the layer; `kind`, which
    tells the tokens apart whose columns mean different things (T) int64. `size`: D.

    Example:
        >>> network = nn.Linear(2, 3)
        >>> flat = FlatLayout.of(dict(network.named_parameters()))
        >>> tokens = TokenLayout.of(flat, owned(network), 'neuron', 16)
        >>> tokens.index.tolist()  # of each neuron the row of its weight, and its bias
        [[0, 1, 6], [2, 3, 7], [4, 5, 8]]
    """

    index: Tensor
    layer: Tensor
    place: Tensor
    kind: Tensor
    size: int

    @classmethod
    def of(cls, flat: FlatLayout, layers: Layers, kind: TokenKind, size: int) -> TokenLayout:
        """Return the tokens of some parameters.

        Args:
            flat: the parameters, in the order of the vector.
            layers: which of them belong together.
            kind: ``neuron``: what a module's parameters that share a leading size have in a row lies side by
                side, weights and bias of a neuron; a longer row than `size` is cut into equal pieces.
                ``block``: all numbers of a layer in their order, cut into equal blocks.
            size: the most numbers of a token.

        Raises:
            MismatchError: the layers have other parameters than the vector, or there is none; or the tokens
                are nearly all padding, and too many.
        """
        if sorted(name for layer in layers for name in layer) != sorted(flat.names) or not flat.names:
            raise MismatchError(
                f"the layers {layers} are not made of the parameters {', '.join(flat.names) or '(none)'}, "
                "each once"
            )
        pieces: list[Tensor] = []
        marks: list[tuple[int, int, int]] = []
        kinds = 0
        numbers = flat.unflatten(torch.arange(flat.size, device="cpu"))
        for number, layer in enumerate(layers):
            for rows in GROUPINGS[kind]([numbers[name] for name in layer], size):
                pieces += list(rows)
                marks += [(number, place, kinds) for place in range(len(rows))]
                kinds += 1
        width = max(len(piece) for piece in pieces)
        if len(pieces) * width > MOST:
            raise MismatchError(
                f"{len(pieces)} tokens of up to {width} numbers are more than {MOST} with their padding: "
                "lower generator.token_size, or choose generator.tokens=block"
            )
        index = torch.full((len(pieces), width), flat.size, dtype=torch.int64, device="cpu")
        for row, piece in zip(index, pieces, strict=True):
            row[: len(piece)] = piece
        layer_of, place, kind_of = torch.tensor(marks, device="cpu").unbind(-1)
        return cls(index, layer_of, place, kind_of, flat.size)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def mask(self) -> Tensor:
        """Where a token has a number and no padding, (T, S)."""
        return self.index < self.size

    @cached_property
    def inverse(self) -> Tensor:
        """Where in the tokens, laid end to end, each number of the vector lies, (D) int64."""
        places = torch.empty(self.size + 1, dtype=torch.int64, device="cpu")
        places[self.index.flatten()] = torch.arange(self.index.numel(), device="cpu")
        return places[:-1]

    def encode(self, vectors: Tensor) -> Tensor:
        """Return vectors ``(..., D)`` as tokens ``(..., T, S)``, zero where there is padding."""
        return gather(vectors, self.index.to(vectors.device))

    def decode(self, tokens: Tensor) -> Tensor:
        """Return tokens ``(..., T, S)`` as vectors ``(..., D)``."""
        return tokens.flatten(-2)[..., self.inverse.to(tokens.device)]


def gather(vectors: Tensor, index: Tensor) -> Tensor:
    """Return the numbers of vectors ``(..., D)`` at an index ``(T, S)``, zero where it is D."""
    zero = vectors.new_zeros(*vectors.shape[:-1], 1)
    return torch.cat([vectors, zero], -1)[..., index]


def _neurons(values: Sequence[Tensor], size: int) -> list[Tensor]:
    """Return rows ``(neurons, piece)`` of values that share a leading size, cut into pieces."""
    grouped: dict[int, list[Tensor]] = {}
    for value in filter(Tensor.numel, values):
        rows = value.reshape(value.shape[0] if value.dim() else 1, -1)
        grouped.setdefault(len(rows), []).append(rows)
    return [piece for group in grouped.values() for piece in _cut(torch.cat(group, -1), size)]


def _blocks(values: Sequence[Tensor], size: int) -> list[Tensor]:
    """Return all numbers as equal blocks ``(blocks, size)``, and the shorter last one, if any, by itself."""
    numbers = torch.cat([value.flatten() for value in values])
    whole = len(numbers) // size * size
    parts = [numbers[:whole].view(-1, size), numbers[whole:].view(1, -1)]
    return [part for part in parts if part.numel()]


def _cut(rows: Tensor, size: int) -> Sequence[Tensor]:
    """Return rows ``(n, length)`` in as few pieces of at most `size` as there must be, about equally long."""
    pieces = -(-rows.shape[-1] // size)
    return rows.tensor_split(pieces, -1) if pieces else ()


GROUPINGS = MappingProxyType({"neuron": _neurons, "block": _blocks})
"""Kind -> the tokens of a layer's parameters, those of one kind in one tensor."""


def layers_with(layers: Layers, names: Container[str]) -> Layers:
    """Return the layers with some of their parameters alone.

    Example:
        >>> layers_with((('a', 'b'), ('c',)), ['b'])
        (('b',),)
    """
    kept = (tuple(name for name in layer if name in names) for layer in layers)
    return tuple(layer for layer in kept if layer)
