"""The denoiser over the flat vector: a residual multilayer perceptron."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from hypernets.generator.blocks import Levels, ResidualBlock, zeroed


class Denoiser(Protocol):
    """Maps noisy standardized values (B, D), time (B) and condition (B, E) to (B, D)."""

    def __call__(self, values: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the denoiser's values (B, D)."""
        ...


class MlpDenoiser(nn.Module):
    """A perceptron over all numbers at once, modulated by noise level and condition; zero before training.

    It suits networks of up to some thousand parameters: with a shared base every coordinate has a meaning of
    its own, and here every coordinate has weights of its own.

    Example:
        >>> import torch
        >>> net = MlpDenoiser(size=5, width=16, depth=2, embedding=8)
        >>> net(torch.randn(3, 5), torch.zeros(3), torch.zeros(3, 8)).abs().sum().item()
        0.0
    """

    def __init__(self, size: int, width: int, depth: int, embedding: int) -> None:
        super().__init__()
        self.levels = Levels(embedding)
        self.into = nn.Linear(size, width)
        self.condition = nn.Linear(embedding, width)
        self.blocks = nn.ModuleList([ResidualBlock(width, embedding) for _ in range(depth)])
        self.out = zeroed(nn.Linear(width, size))

    def forward(self, values: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the denoiser's values (B, D)."""
        embedded = self.levels(time, condition)
        hidden = self.into(values) + self.condition(embedded)
        for block in self.blocks:
            hidden = block(hidden, embedded)
        denoised: Tensor = self.out(hidden)
        return denoised
