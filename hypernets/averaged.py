"""Training that keeps a moving average of its weights: the average's decay, and the state as tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from metainit.errors import CheckpointError

MODEL, AVERAGE, ADAM, STEP = "model", "average", "adam", "step"


class Saved(NamedTuple):
    """What a state holds: weights, their average, the step, and the optimizer's moments by number."""

    model: dict[str, Tensor]
    average: dict[str, Tensor]
    step: int
    moments: dict[int, dict[str, Tensor]]

    def load_into(self, optimizer: Optimizer) -> None:
        """Give an optimizer of the same parameters its moments back."""
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": self.moments, "param_groups": groups})


def decay_at(step: int, averaging: float) -> float:
    """Return the decay of the average after a step; it grows with the steps, so early weights are forgotten.

    Example:
        >>> decay_at(1, 0.99), decay_at(10_000, 0.99)
        (0.18181818181818182, 0.99)
    """
    return min(averaging, (1 + step) / (10 + step))


def state_of(
    model: Mapping[str, Tensor], average: Mapping[str, Tensor], step: int, optimizer: Optimizer
) -> dict[str, Tensor]:
    """Return everything that the next step depends on, as named tensors."""
    state = {f"{MODEL}.{k}": v for k, v in model.items()}
    state |= {f"{AVERAGE}.{k}": v for k, v in average.items()}
    state[STEP] = torch.tensor(step)
    for number, moments in optimizer.state_dict()["state"].items():
        state |= {f"{ADAM}.{key}.{number}": value for key, value in moments.items()}
    return state


def saved_in(state: Mapping[str, Tensor]) -> Saved:
    """Return what `state_of` put into a state.

    Raises:
        CheckpointError: the state is another one.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> state = state_of({'w': weight.detach()}, {'w': torch.zeros(1)}, 3, torch.optim.AdamW([weight]))
        >>> saved_in(state).step, saved_in(state).average
        (3, {'w': tensor([0.])})
    """
    if STEP not in state or not any(key.startswith(f"{MODEL}.") for key in state):
        raise CheckpointError(
            "the saved state is not one of this training, or of another version of metainit: remove the "
            "folder of the run to begin anew"
        )
    parts: dict[str, dict[str, Tensor]] = {MODEL: {}, AVERAGE: {}}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head == ADAM:
            kind, _, number = rest.rpartition(".")
            moments.setdefault(int(number), {})[kind] = value
        elif head in parts:
            parts[head][rest] = value
    average = {k: v.clone() for k, v in parts[AVERAGE].items()}
    return Saved(parts[MODEL], average, int(state[STEP]), moments)
