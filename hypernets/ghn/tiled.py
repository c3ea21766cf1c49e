"""The tiled decoder: one block of channels and positions for each parameter, repeated where it is larger.

T parameters of one kernel size, D width, C channels of a block, k its kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear

from hypernets.architecture.graph import Parameter
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.layout import from_grid, grid, is_vector


class TiledDecoder(nn.Module):
    """Decodes a state into a block of C x C channels and k x k positions, cut or repeated to size.

    A kernel smaller than k is the middle of it; a larger one is interpolated. Only the positions and channels
    that some parameter of a group needs are computed.

    Shapes:
        states (T, D), T parameters -> T tensors of the parameters' own shapes, not scaled.

    Source: GHN-3 (Knyazev et al. 2023, arXiv:2303.04143), after GHN-2. Deviations: vectors are decoded by a
    head of their own for every role, and classifiers by no head of their own.

    Example:
        >>> from hypernets.architecture.graph import Role
        >>> decoder = TiledDecoder(GhnConfig(block=4, kernel=3))
        >>> decoder(torch.zeros(1, 64), [Parameter('weight', (6, 2, 5, 5), Role.WEIGHT)])[0].shape
        torch.Size([6, 2, 5, 5])
    """

    def __init__(self, config: GhnConfig) -> None:
        super().__init__()
        width, self.block, self.kernel = config.width, config.block, config.kernel
        self.positions = nn.Linear(width, 4 * width * self.kernel**2)
        self.hidden = nn.Linear(4 * width, 8 * width)
        self.channels = nn.Linear(8 * width, self.block**2)
        self.vector = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, self.block))

    def forward(self, states: Tensor, parameters: Sequence[Parameter]) -> list[Tensor]:
        """Return the values of every parameter, in its own shape."""
        found: dict[int, Tensor] = {}
        for kernel, places in self.groups(parameters):
            group = [grid(parameters[i]) for i in places]
            if kernel == (0, 0):
                values = self.vector(states[places])
                decoded = [_repeated(v, (m[0],)) for v, m in zip(values, group, strict=True)]
            else:
                out = min(self.block, max(m[0] for m in group))
                inner = min(self.block, max(m[1] for m in group))
                blocks = self._blocks(states[places], out, inner, kernel)
                decoded = [_repeated(b, m[:2]) for b, m in zip(blocks, group, strict=True)]
            found |= {i: from_grid(v, parameters[i]) for i, v in zip(places, decoded, strict=True)}
        return [found[i] for i in range(len(parameters))]

    def groups(self, parameters: Sequence[Parameter]) -> Iterator[tuple[tuple[int, int], list[int]]]:
        """Yield a kernel size ((0, 0) for vectors), and the numbers of the parameters that have it."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, parameter in enumerate(parameters):
            kernel = (0, 0) if is_vector(parameter) else grid(parameter)[2:]
            groups.setdefault(kernel, []).append(i)
        yield from groups.items()

    def _blocks(self, states: Tensor, out: int, inner: int, kernel: tuple[int, int]) -> Tensor:
        """Return blocks (T, out, inner, height, width) of at most C channels each way."""
        size, width = self.kernel, self.hidden.in_features
        cut = tuple(min(k, size) for k in kernel)
        top, left = (size - cut[0]) // 2, (size - cut[1]) // 2
        weight = self.positions.weight.view(width, size, size, -1)
        weight = weight[:, top : top + cut[0], left : left + cut[1]].permute(1, 2, 0, 3)
        bias = self.positions.bias.view(width, size, size)
        bias = bias[:, top : top + cut[0], left : left + cut[1]].permute(1, 2, 0)
        at = torch.relu(linear(states, weight.flatten(0, 2), bias.flatten()).view(-1, *cut, width))
        at = torch.relu(self.hidden(at))
        rows = self.channels.weight.view(self.block, self.block, -1)[:out, :inner].flatten(0, 1)
        offset = self.channels.bias.view(self.block, self.block)[:out, :inner].flatten()
        values = linear(at, rows, offset).permute(0, 3, 1, 2)
        if cut != kernel:
            values = interpolate(values, kernel, mode="bilinear", align_corners=False)
        blocks: Tensor = values.reshape(len(states), out, inner, *kernel)
        return blocks


def _repeated(block: Tensor, size: Sequence[int]) -> Tensor:
    """Return a block cut or repeated along its first dimensions to a size."""
    for dimension, wanted in enumerate(size):
        times = math.ceil(wanted / block.shape[dimension])
        if times > 1:
            repeats = [1] * block.dim()
            repeats[dimension] = times
            block = block.repeat(repeats)
        block = block.narrow(dimension, 0, wanted)
    return block
