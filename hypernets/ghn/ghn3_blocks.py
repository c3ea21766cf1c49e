"""Blocks for many parameters at once: what has the same shape, or shares a layer's pass, goes together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import shape4
from hypernets.ghn.ghn3_decoder import ConvDecoder, VectorDecoder, kernels
from hypernets.ghn.ghn3_graph import Form, Target

CHUNK_ELEMENTS = 1 << 22
"""Matrices are decoded so many elements at a time, to bound what a prediction needs beside its result."""


@dataclass(frozen=True, eq=False)
class Wanted:
    """A target of one of the graphs, and the vector ``(D,)`` of its node."""

    graph: int
    target: Target
    vector: Tensor


Block = tuple[Wanted, Tensor]
K = TypeVar("K")


def kernel_blocks(decoder: ConvDecoder, wanted: list[Wanted], scaled: bool) -> Iterator[Block]:
    """Decode convolutions, matrices and tables: blocks ``(out, inner, *kernel)``, at most C x C.

    The first layer runs once for each size of a kernel, the others once for each size of a matrix, over the
    positions of all kernels.
    """
    hidden: dict[Wanted, Tensor] = {}
    for (height, width), group in _grouped(wanted, lambda w: shape4(w.target.shape)[2:]):
        y = decoder.positions(torch.stack([w.vector for w in group]), height, width)
        hidden.update(zip(group, y.unbind(0), strict=True))
    for (out, inner), group in _grouped(wanted, lambda w: _rounded(w.target.shape, decoder.channels)):
        sizes = [hidden[w].shape[0] * hidden[w].shape[1] for w in group]
        for chunk in _chunks(sizes, CHUNK_ELEMENTS // (out * inner)):
            members = [group[i] for i in chunk]
            rows = decoder.matrices(torch.cat([hidden[w].flatten(0, 1) for w in members]), out, inner)
            if scaled:
                factors = rows.new_tensor([_scale(w.target) for w in members])
                counts = torch.tensor([sizes[i] for i in chunk], device=rows.device)
                # In place: the result of a linear layer, which its gradient does not need.
                rows.mul_(factors.repeat_interleave(counts)[:, None, None])
            for w, own in zip(members, torch.split(rows, [sizes[i] for i in chunk]), strict=True):
                y = hidden.pop(w)
                kernel = shape4(w.target.shape)[2:]
                yield w, _in_rank(kernels(own, (y.shape[0], y.shape[1]), kernel), w.target)


def class_blocks(decoder: ConvDecoder, wanted: list[Wanted], scaled: bool) -> Iterator[Block]:
    """Decode weights of classifiers: blocks ``(K, inner)``."""
    for inner, group in _grouped(wanted, lambda w: _rounded(w.target.shape, decoder.channels)[1]):
        blocks = decoder.classes(torch.stack([w.vector for w in group]), inner)
        if scaled:
            blocks = blocks * blocks.new_tensor([_scale(w.target) for w in group])[:, None, None]
        yield from ((w, _in_rank(b, w.target)) for w, b in zip(group, blocks.unbind(0), strict=True))


def vector_blocks(
    decoder: VectorDecoder, classes: nn.Module, wanted: list[Wanted], bounded: bool
) -> Iterator[Block]:
    r"""Decode vectors ``(C,)``, and ``(K,)`` for biases of classifiers.

    Bounded: weights of normalizations are :math:`2\sigma(x / 2)`, biases :math:`\tanh(x / 5)`.
    """
    for form, group in _grouped(wanted, lambda w: w.target.form):
        pair = decoder(torch.stack([w.vector for w in group]))
        if form is Form.NORM_WEIGHT:
            values = 2 * torch.sigmoid(0.5 * pair[:, 0]) if bounded else pair[:, 0]
        else:
            bias = classes(pair[:, 1]) if form is Form.CLASS_BIAS else pair[:, 1]
            values = torch.tanh(0.2 * bias) if bounded else bias
        yield from zip(group, values.unbind(0), strict=True)


def _grouped(wanted: list[Wanted], key: Callable[[Wanted], K]) -> Iterable[tuple[K, list[Wanted]]]:
    groups: dict[K, list[Wanted]] = defaultdict(list)
    for w in wanted:
        groups[key(w)].append(w)
    return groups.items()


def _rounded(shape: tuple[int, ...], most: int) -> tuple[int, int]:
    """Round channels up to powers of two: fewer groups, fewer passes over the last matrix and its gradient.

    Tiling cuts what is too much.
    """
    out, inner = (min(1 << (n - 1).bit_length(), most) for n in shape4(shape)[:2])
    return out, inner


def _chunks(sizes: list[int], most: int) -> Iterator[list[int]]:
    """Cut the numbers of things of some sizes into runs of at most a size, or of one thing."""
    run: list[int] = []
    total = 0
    for number, size in enumerate(sizes):
        if run and total + size > most:
            yield run
            run, total = [], 0
        run.append(number)
        total += size
    if run:
        yield run


def _scale(target: Target) -> float:
    r"""Return :math:`\sqrt{\beta / \text{fan-in}}`: :math:`\beta` is 2, and 1 for what no ReLU follows.

    The published rule takes depthwise kernels and those wider than high for that, and leaves tables of
    positions as they are.
    """
    shape = target.shape
    if target.form is Form.POSITIONS:
        return 1.0
    linear = len(shape) > 2 and (shape[1] == 1 or shape[2] < shape[3])
    return math.sqrt((1 if linear else 2) / math.prod(shape[1:]))


def _in_rank(block: Tensor, target: Target) -> Tensor:
    """Give a block as many dimensions as its target; tables of positions are turned later."""
    if target.form is Form.POSITIONS:
        return block
    return block.reshape(*block.shape[:2], *target.shape[2:])
