"""Evaluate a network on more coordinates than its activations leave room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from metainit.domains.base import Predict

ROWS = 1 << 17
"""Coordinates at once: at width 256 and depth 5 about a gigabyte of activations."""


def in_chunks(
    function: Callable[[Mapping[str, Tensor]], Predict], rows: int = ROWS
) -> Callable[[Mapping[str, Tensor]], Predict]:
    """Return the same function with the memory of `rows` coordinates, however many there are.

    Values and gradients stay the same. With gradients on, the forward pass of each chunk is computed a second
    time in the backward pass, which costs a third more time; with at most `rows` coordinates nothing changes.
    The network must treat each coordinate on its own, and the call must not be under `vmap`.

    Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", section 4.

    Example:
        >>> double = in_chunks(lambda weights: lambda x: weights['w'] * x, rows=2)
        >>> double({'w': torch.tensor(2.0)})(torch.arange(5.0)).tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """

    def with_parameters(parameters: Mapping[str, Tensor]) -> Predict:
        predict = function(parameters)

        def chunked(inputs: Tensor) -> Tensor:
            if len(inputs) <= rows:
                return predict(inputs)
            parts = torch.split(inputs, rows)
            if not torch.is_grad_enabled():
                return torch.cat([predict(part) for part in parts])
            return torch.cat([_recomputed(predict, part) for part in parts])

        return chunked

    return with_parameters


def _recomputed(predict: Predict, part: Tensor) -> Tensor:
    # Nothing random happens in there, so the random state need not be kept.
    output: Tensor = checkpoint(predict, part, use_reentrant=False, preserve_rng_state=False)
    return output
