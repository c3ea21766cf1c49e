"""Trials of a start on a network and its data: what loss short runs reach on batches they do not see."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from metainit.domains.seeding import seed_of
from metainit.errors import DivergenceError
from metainit.evidence.curves import GRID_RATIO
from metainit.evidence.statistics import Values
from metainit.recalibration import recalibrate

Batch = Sequence[Tensor]
"""``(inputs, targets)``."""
LossFunction = Callable[[Tensor, Tensor], Tensor]
STEP_SIZES = tuple(1e-3 * GRID_RATIO**i for i in range(6))
MAX_EXTENSIONS = 6
MOMENTUM = 0.9
DIVERGED = 1e30
"""The loss of a run that left the finite numbers."""
CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Thirds:
    """Batches to train on, to choose step sizes on, and to judge on."""

    train: Sequence[Batch]
    choose: Sequence[Batch]
    judge: Sequence[Batch]


@dataclass
class Budget:
    """What trials have used so far."""

    gradients: int = 0


def chosen_step_size(
    starts: Sequence[nn.Module], data: Thirds, loss_fn: LossFunction, steps: int, budget: Budget
) -> float:
    """Return the step size with the lowest mean loss on `data.choose`; the grid grows beyond its edges."""
    scores: dict[float, float] = {}

    def score(size: float) -> None:
        runs = [
            run(start, size, data.train, data.choose, loss_fn, [steps], number, budget)
            for number, start in enumerate(starts)
        ]
        scores[size] = float(np.mean(runs))

    for size in STEP_SIZES:
        score(size)
    for _ in range(MAX_EXTENSIONS):
        best = min(scores, key=lambda k: scores[k])
        if best == min(scores):
            score(best / GRID_RATIO)
        elif best == max(scores):
            score(best * GRID_RATIO)
        else:
            break
    return min(scores, key=lambda k: scores[k])


def run(
    start: nn.Module,
    step_size: float,
    train: Sequence[Batch],
    unseen: Sequence[Batch],
    loss_fn: LossFunction,
    steps: Sequence[int],
    seed: int,
    budget: Budget,
) -> Values:
    """Train a copy of the start with SGD and return its loss ``(len(steps), len(unseen))``.

    Batch normalization's running statistics are recalibrated on training batches whenever it is judged. A run
    that leaves the finite numbers scores `DIVERGED` from there on. The global random state is put back; what
    the network draws from it (dropout) follows from `seed`.
    """
    network = copy.deepcopy(start).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=step_size, momentum=MOMENTUM)
    found = np.full((len(steps), len(unseen)), DIVERGED)
    with own_random_state(network, seed_of("trial", seed)):
        try:
            for step in range(max(steps) + 1):
                if step in steps:
                    found[steps.index(step)] = _judged(network, train, unseen, loss_fn)
                if step == max(steps):
                    break
                inputs, targets = train[step % len(train)]
                loss = loss_fn(network(inputs), targets)
                if not torch.isfinite(loss):
                    break
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
                budget.gradients += 1
        except DivergenceError:
            pass
    return found


def calibrate(network: nn.Module, train: Sequence[Batch]) -> None:
    """Give batch normalization the running statistics of the training batches.

    Raises:
        DivergenceError: they are not finite.
    """
    recalibrate(network, [batch[0] for batch in train[:CALIBRATION_BATCHES]])


@contextmanager
def own_random_state(network: nn.Module, seed: int) -> Iterator[None]:
    """Seed the global random state of the network's device, and put it back afterwards."""
    device = next(iter(network.state_dict().values()), torch.empty(0)).device
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            yield
        return
    with torch.random.fork_rng(devices=[device], device_type=device.type):
        torch.manual_seed(seed)
        yield


def _judged(
    network: nn.Module, train: Sequence[Batch], unseen: Sequence[Batch], loss_fn: LossFunction
) -> list[float]:
    calibrate(network, train)
    network.eval()
    with torch.no_grad():
        losses = [float(loss_fn(network(inputs), targets)) for inputs, targets in unseen]
    network.train()
    return [min(loss, DIVERGED) if math.isfinite(loss) else DIVERGED for loss in losses]
