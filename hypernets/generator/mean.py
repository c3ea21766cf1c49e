"""What is predicted from the condition alone: the mean of the weights, and the scale of a delta.

Letters: `B` tasks, `D` numbers of a delta.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hypernets.generator.blocks import zeroed
from hypernets.generator.conditions import Conditioner, Conditions
from hypernets.generator.config import ConditionConfig

TaskLoss = Callable[[Tensor, Tensor], Tensor]
"""Deltas (B, D) and the members that they are for (B) int64 -> the loss of each on that member's task (B).

It has to be differentiable in the deltas: the network runs with base plus delta.
"""


class Regressor(nn.Module):
    """A perceptron with a linear path, over an embedding of the condition that is its own; zero at first.

    Shapes: `Conditions` of B tasks -> (B, outputs).

    Example:
        >>> from hypernets.generator.conditions import conditions_of
        >>> config = ConditionConfig(classes=3)
        >>> regressor = Regressor(config, embedding=8, width=16, depth=1, outputs=5)
        >>> regressor(conditions_of(config, 2)).shape
        torch.Size([2, 5])
    """

    def __init__(self, config: ConditionConfig, embedding: int, width: int, depth: int, outputs: int) -> None:
        super().__init__()
        self.conditioner = Conditioner(config, embedding)
        layers: list[nn.Module] = []
        for inputs in [embedding, *[width] * (depth - 1)][:depth]:
            layers += [nn.Linear(inputs, width), nn.SiLU()]
        self.hidden = nn.Sequential(*layers)
        self.linear = zeroed(nn.Linear(embedding, outputs))
        self.out = zeroed(nn.Linear(width if depth else embedding, outputs))

    def forward(self, conditions: Conditions) -> Tensor:
        """Return the prediction (B, outputs)."""
        embedded = self.conditioner(conditions)
        predicted: Tensor = self.linear(embedded) + self.out(self.hidden(embedded))
        return predicted


class Scale(nn.Module):
    r"""The deviation of a delta's own numbers, which OCD predicts from the condition: (B, 1).

    The regressor works on standardized logarithms of :math:`s = \sqrt{\overline{\delta^2}}`; their mean and
    deviation are stored.

    Source: Lutati & Wolf 2022, arXiv:2210.00471, section 3.2 (the scale estimation module); theirs is the
    standard deviation, which differs where a delta's numbers have a mean.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, config: ConditionConfig, embedding: int, width: int, depth: int) -> None:
        super().__init__()
        self.regressor = Regressor(config, embedding, width, depth, 1)
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    @staticmethod
    def of(deltas: Tensor) -> Tensor:
        """Return the scale of deltas ``(..., D)``, ``(..., 1)``; never zero."""
        return deltas.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-12)

    def fit(self, deltas: Tensor) -> None:
        """Take mean and deviation of the logarithms of the scales of deltas (n, D)."""
        logarithms = self.of(deltas).log()
        self.center.copy_(logarithms.mean())
        self.spread.copy_(logarithms.std().nan_to_num(0.0).clamp_min(1e-6))

    def standardized(self, deltas: Tensor) -> Tensor:
        """Return what the regressor should give for deltas (B, D), (B, 1)."""
        return (self.of(deltas).log() - self.center) / self.spread

    def forward(self, conditions: Conditions) -> Tensor:
        """Return the predicted scales (B, 1)."""
        scales: Tensor = (self.regressor(conditions) * self.spread + self.center).exp()
        return scales
