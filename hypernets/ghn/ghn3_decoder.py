"""The decoders of GHN-3: a node's vector -> a block of weights, which is tiled over the parameter.

The names of their parameters are those of the published files.

Shapes: `P` parameters of one group, `D` hidden width, `C` channels of a block, `s` largest kernel,
`K` classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import Ghn3Config, Shape4


class ConvDecoder(nn.Module):
    """Blocks of kernels: C x C of them, around the centre of an s x s window."""

    def __init__(self, config: Ghn3Config) -> None:
        super().__init__()
        hidden, channels, kernel = config.hidden, config.channels, config.kernel
        self.channels, self.kernel = channels, kernel
        self.fc = nn.Sequential(nn.Linear(hidden, 4 * hidden * kernel**2), nn.ReLU())
        self.conv = nn.Sequential(
            nn.Linear(4 * hidden, 8 * hidden), nn.ReLU(), nn.Linear(8 * hidden, channels**2)
        )
        self.class_layer_predictor = nn.Sequential(nn.ReLU(), nn.Linear(channels, config.classes))

    def forward(self, x: Tensor, shape: Shape4) -> Tensor:
        """Return blocks ``(P, out, inner, height, width)`` for vectors ``(P, D)``; out, inner at most C.

        Only the rows of the two large matrices that the block needs are multiplied. Kernels larger than s are
        interpolated bilinearly.
        """
        out, inner, height, width = shape
        y = self._positions(x, height, width)
        y = F.relu(_linear(self.conv[0], y))
        last = self.conv[2]
        assert isinstance(last, nn.Linear)
        c = self.channels
        weight = last.weight.view(c, c, -1)[:out, :inner].reshape(out * inner, -1)
        bias = last.bias.view(c, c)[:out, :inner].reshape(-1)
        blocks = F.linear(y, weight, bias).permute(0, 3, 1, 2).reshape(len(x), out, inner, *y.shape[1:3])
        if y.shape[1:3] == (height, width):
            return blocks
        flat = F.interpolate(blocks.flatten(0, 1), (height, width), mode="bilinear")
        return flat.view(len(x), out, inner, height, width)

    def classes(self, x: Tensor, inner: int) -> Tensor:
        """Return blocks ``(P, K, inner)`` for the weights of classifiers."""
        block = self(x, (self.channels, inner, 1, 1))[..., 0, 0]
        y: Tensor = self.class_layer_predictor(block.transpose(1, 2)).transpose(1, 2)
        return y

    def _positions(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return ``(P, height, width, 4 D)``: the first layer at the positions around the centre."""
        s = self.kernel
        rows, columns = _around_centre(height, s), _around_centre(width, s)
        first = self.fc[0]
        assert isinstance(first, nn.Linear)
        weight = first.weight.view(-1, s, s, first.in_features)[:, rows, columns].permute(1, 2, 0, 3)
        bias = first.bias.view(-1, s, s)[:, rows, columns].permute(1, 2, 0)
        y = F.relu(F.linear(x, weight.flatten(0, 2), bias.flatten()))
        return y.view(len(x), *bias.shape)


class VectorDecoder(nn.Module):
    """Pairs of vectors of width C: the first for weights of normalizations, the second for biases."""

    def __init__(self, config: Ghn3Config) -> None:
        super().__init__()
        hidden = config.hidden
        self.fc = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, 2 * config.channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(P, 2, C)``."""
        y: Tensor = self.fc(x)
        return y.view(len(x), 2, -1)


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = layer(x)
    return y


def _around_centre(size: int, largest: int) -> slice:
    centre = largest // 2
    return slice(max(0, centre - size // 2), centre + (size + 1) // 2)


def tile(block: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Repeat a block over its first two dimensions and cut to a shape.

    Example:
        >>> tile(torch.tensor([1, 2, 3]), (5,)).tolist()
        [1, 2, 3, 1, 2]
    """
    block = block[tuple(slice(n) for n in shape)]
    if len(shape) > 1:
        block = _repeat(block, shape[1], 1)
    return _repeat(block, shape[0], 0)


def _repeat(block: Tensor, length: int, dim: int) -> Tensor:
    # One pass over the result and nothing larger than it, where repeating and cutting takes two.
    times, rest = divmod(length, block.shape[dim])
    if times == 1 and rest == 0:
        return block
    pieces = [block] * times
    return torch.cat([*pieces, block.narrow(dim, 0, rest)] if rest else pieces, dim)


def tile_(target: Tensor, block: Tensor) -> None:
    """Write a tiled block into a tensor, without another tensor of its size."""
    block = block[tuple(slice(n) for n in target.shape)]
    if target.dim() > 1:
        block = _repeat(block, target.shape[1], 1)
    for start in range(0, len(target), len(block)):
        target[start : start + len(block)].copy_(block[: len(target) - start])


def positions(block: Tensor, shape: tuple[int, ...], first: Tensor) -> Tensor:
    """Turn a block ``(1, width, side, side)`` into a table ``(1, rows, width)`` whose first row is `first`.

    Rows beyond the square, which the published network has no answer to, repeat it.
    """
    _, rows, width = shape
    square = _repeat(block.flatten(2).transpose(1, 2)[..., :width], width, 2)
    table = torch.cat([first, square], dim=1)
    return _repeat(table[:, :rows], rows, 1)
