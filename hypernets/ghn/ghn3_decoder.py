"""The decoders of GHN-3: a node's vector -> a block of weights, which is tiled over the parameter.

The names of their parameters are those of the published files.

Shapes: `P` parameters of one group, `D` hidden width, `C` channels of a block, `s` largest kernel,
`K` classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypernets.ghn.ghn3_config import Ghn3Config


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

    def positions(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return ``(P, height, width, 4 D)`` for vectors ``(P, D)``: the first layer around the centre.

        At most s x s positions.
        """
        s = self.kernel
        rows, columns = _around_centre(height, s), _around_centre(width, s)
        first = self.fc[0]
        assert isinstance(first, nn.Linear)
        # What is not needed costs less than a copy of the matrix's other rows, or than their gradient.
        if torch.is_grad_enabled() or 4 * height * width > s * s:
            whole = F.relu(first(x)).view(len(x), -1, s, s)
            return whole[:, :, rows, columns].permute(0, 2, 3, 1)
        weight = first.weight.view(-1, s, s, first.in_features)[:, rows, columns].permute(1, 2, 0, 3)
        bias = first.bias.view(-1, s, s)[:, rows, columns].permute(1, 2, 0)
        y = F.relu(F.linear(x, weight.flatten(0, 2), bias.flatten()))
        return y.view(len(x), *bias.shape)

    def matrices(self, y: Tensor, out: int, inner: int) -> Tensor:
        """Return ``(R, out, inner)`` for R positions ``(R, 4 D)``: the upper left of C x C matrices."""
        c = self.channels
        y = F.relu(self.conv[0](y))
        last = self.conv[2]
        assert isinstance(last, nn.Linear)
        if out == inner == c:
            return F.linear(y, last.weight, last.bias).view(-1, c, c)
        rows = (torch.arange(out)[:, None] * c + torch.arange(inner)).flatten().to(y.device)
        return F.linear(y, last.weight[rows], last.bias[rows]).view(-1, out, inner)

    def classes(self, x: Tensor, inner: int) -> Tensor:
        """Return blocks ``(P, K, inner)`` for the weights of classifiers."""
        block = self.matrices(self.positions(x, 1, 1).flatten(0, 2), self.channels, inner)
        y: Tensor = self.class_layer_predictor(block.transpose(1, 2)).transpose(1, 2)
        return y


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


def kernels(rows: Tensor, window: tuple[int, int], kernel: tuple[int, int]) -> Tensor:
    """Turn matrices at the positions of a window ``(h * w, out, inner)`` into ``(out, inner, *kernel)``.

    A kernel larger than the window is interpolated bilinearly.
    """
    block = rows.permute(1, 2, 0).reshape(*rows.shape[1:], *window)
    return block if window == kernel else F.interpolate(block, kernel, mode="bilinear")


def positions(block: Tensor, shape: tuple[int, ...], first: Tensor) -> Tensor:
    """Turn a block ``(1, width, side, side)`` into a table ``(1, rows, width)`` whose first row is `first`.

    Rows beyond the square, which the published network has no answer to, repeat it.
    """
    _, rows, width = shape
    square = _repeat(block.flatten(2).transpose(1, 2)[..., :width], width, 2)
    table = torch.cat([first, square], dim=1)
    return _repeat(table[:, :rows], rows, 1)
