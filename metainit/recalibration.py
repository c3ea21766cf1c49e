"""Recalibrate batch normalization: the running statistics that a network's weights never had.

Predicted weights come without running statistics, so that in evaluation a network would be normalized with
those of no data at all. They follow from the weights and a few batches of training inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metainit.errors import DataError, DivergenceError


@dataclass(frozen=True)
class Recalibration:
    """What was done: the layers that got new statistics, and from how much."""

    layers: tuple[str, ...]
    batches: int
    inputs: int

    def __str__(self) -> str:
        """Say it in one line."""
        if not self.layers:
            return "no layer has running statistics; nothing was changed"
        return (
            f"running statistics of {len(self.layers)} layers ({', '.join(self.layers)}) from "
            f"{self.inputs} inputs in {self.batches} batches"
        )


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> Recalibration:
    r"""Replace the running statistics of all batch normalizations by the mean over the batches, in place.

    .. math:: \mu = \frac1B \sum_b \mu_b, \quad \sigma^2 = \frac1B \sum_b \sigma_b^2

    of each batch's mean and unbiased variance, as ``momentum=None`` has it: of one batch they are exactly its
    own. All other layers are in evaluation meanwhile; training flags and momenta are put back.

    Args:
        network: any module; nothing happens where no layer has running statistics.
        batches: inputs as the network takes them, best all of one size.

    Raises:
        DataError: there is no batch; nothing is changed.
        DivergenceError: statistics came out that are not finite; the old ones are kept.

    Source: PyTorch's `nn.BatchNorm2d` with ``momentum=None``; "precise" statistics: Wu & Johnson 2021,
    arXiv:2105.07576, section 3.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2))
        >>> done = recalibrate(network, [torch.tensor([[1.0, 0.0], [3.0, 0.0]])])
        >>> network[1].running_mean.tolist(), done.layers
        ([2.0, 0.0], ('1',))
    """
    layers = {name: layer for name, layer in network.named_modules() if _is_tracking(layer)}
    if not layers:
        return Recalibration((), 0, 0)
    flags = {module: module.training for module in network.modules()}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    before = {
        name: {key: value.clone() for key, value in layer.named_buffers()} for name, layer in layers.items()
    }
    seen, inputs, finished = 0, 0, False
    try:
        network.eval()
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
        with torch.no_grad():
            for batch in batches:
                network(batch)
                seen, inputs = seen + 1, inputs + len(batch)
        if not seen:
            raise DataError("recalibrate needs at least one batch of inputs, got none")
        infinite = [n for n, layer in layers.items() if not all(b.isfinite().all() for b in layer.buffers())]
        if infinite:
            raise DivergenceError(
                f"the activations that reach {', '.join(infinite)} are not finite: the old statistics are "
                "kept; use weights of a smaller scale, or another start"
            )
        finished = True
    finally:
        for name, layer in layers.items():
            layer.momentum = momenta[name]
            if not finished:
                for key, value in layer.named_buffers():
                    value.copy_(before[name][key])
        for module, flag in flags.items():
            module.training = flag
    return Recalibration(tuple(layers), seen, inputs)


def _is_tracking(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
