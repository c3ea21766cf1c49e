"""Fine-tuning from given starts: curves of accuracy against the step, and the search for step sizes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional

from hypernets.ghn.starts import Start
from metainit.card import Record, Spec
from metainit.domains.base import Split
from metainit.domains.labelled_images import LabelledImages
from metainit.errors import DivergenceError
from metainit.evidence.curves import GRID_RATIO
from metainit.evidence.statistics import Values
from metainit.recalibration import recalibrate

Build = Callable[[Spec, int], nn.Module]
"""(spec, seed) -> the network that the spec describes."""
Progress = Callable[[str], None]
WORST = 0.0
"""The accuracy of a run that left the finite numbers."""
RECALIBRATION_CHUNK = 512
EVALUATION_CHUNK = 200


class FineTuning(Record):
    """How networks are fine-tuned: SGD with momentum on cross-entropy.

    `steps`: where the accuracy is taken. `grid`: the step sizes that are tried first, at least 5, in
    ascending order. `extensions`: how many times it may grow by a factor of the square root of 10 on a side.
    `recalibration`: training images that batch normalization's running statistics come from, whenever the
    accuracy is taken, for every start alike.
    """

    steps: tuple[int, ...] = (0, 10, 50)
    batch: int = Field(default=64, ge=2)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    grid: tuple[float, ...] = tuple(float(f"{1e-3 * GRID_RATIO**i:.3g}") for i in range(5))
    extensions: int = Field(default=4, ge=0)
    recalibration: int = Field(default=512, ge=2)

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not steps or list(steps) != sorted(set(steps)) or steps[0] < 0:
            raise ValueError(f"steps are {steps}, expected different numbers from 0 on in ascending order")
        return steps

    @field_validator("grid")
    @classmethod
    def _wide_enough(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if len(grid) < 5 or list(grid) != sorted(set(grid)) or grid[0] <= 0:
            raise ValueError(f"grid is {grid}, expected at least 5 positive step sizes in ascending order")
        return grid

    @property
    def horizons(self) -> tuple[int, ...]:
        """The numbers of steps that a step size can be chosen for."""
        return tuple(s for s in self.steps if s > 0)


@dataclass(frozen=True)
class Choice:
    """The step size of each number of steps, and every one that was tried with its mean accuracy."""

    step_sizes: Mapping[int, float]
    tried: Mapping[float, Mapping[int, float]]

    @property
    def inside(self) -> bool:
        """Whether, for each number of steps, no edge of what was tried is better than all inside."""
        return all(_is_inside({r: v[h] for r, v in self.tried.items()}) for h in self.step_sizes)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is that of their label, in evaluation; NaN is wrong.

    Example:
        >>> accuracy(nn.Identity(), torch.eye(4), torch.tensor([0, 1, 2, 0]))
        0.75
    """
    training = network.training
    network.eval()
    # In chunks that stay in the cache: measured 1.5 times as fast as all at once.
    logits = torch.cat([network(chunk) for chunk in torch.split(images, EVALUATION_CHUNK)])
    network.train(training)
    right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    return int(right.sum()) / len(labels)


def finetune(
    network: nn.Module,
    data: LabelledImages,
    step_size: float,
    how: FineTuning,
    seed: int = 0,
    split: Split = "test",
    steps: Sequence[int] | None = None,
) -> list[float]:
    """Fine-tune a copy of the network and return its accuracy after each number of steps.

    Batches are those of `data.batch(seed, step, ...)`: the same for every start. A run that leaves the finite
    numbers scores `WORST` from there on.

    Args:
        network: filled with the start; not changed.
        data: the images to train on and to judge on.
        step_size: of SGD with momentum.
        how: the rest of the protocol.
        seed: of the batches.
        split: what judges: `validation` to choose, `test` to report.
        steps: where the accuracy is taken; the protocol's numbers unless given.
    """
    wanted = how.steps if steps is None else steps
    tuned = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(tuned.parameters(), lr=step_size, momentum=how.momentum)
    count = min(how.recalibration, len(data.parts["train"].labels))
    calibration = torch.split(data.batch(seed, 0, count).images, RECALIBRATION_CHUNK)
    found: list[float] = []
    try:
        for step in range(max(wanted) + 1):
            if step in wanted:
                recalibrate(tuned, calibration)
                found.append(accuracy(tuned, *data.parts[split]))
            if step == max(wanted):
                break
            images, labels = data.batch(seed, 1 + step, how.batch)
            loss = functional.cross_entropy(tuned(images), labels)
            if not math.isfinite(loss.item()):
                break
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    except DivergenceError:
        pass
    return found + [WORST] * (len(wanted) - len(found))


def choose_step_sizes(
    start: Start,
    architectures: Sequence[Spec],
    data: LabelledImages,
    how: FineTuning,
    build: Build,
    seed: int = 0,
    progress: Progress | None = None,
) -> Choice:
    """Choose a start's step size for each number of steps by the mean validation accuracy.

    The grid grows until no best value lies on its edge. Of equally good ones the smallest is taken that is
    not on an edge.

    Args:
        start: how the networks are filled.
        architectures: what judges: neither those that a predictor was trained on nor the reported ones.
        data: trains with its training part and judges with its validation part.
        how: the protocol.
        build: makes a network of a spec.
        seed: of the start's draws and of the batches.
        progress: told about each step size.
    """
    networks = [filled(start, build(spec, seed), seed) for spec in architectures]
    tried: dict[float, dict[int, float]] = {}
    wanted = set(how.grid)
    limit = len(how.grid) + 2 * how.extensions
    while how.horizons and wanted and len(tried) < limit:
        for rate in sorted(wanted):
            if progress is not None:
                progress(f"{start.name}: step size {rate:.3g} on {len(networks)} networks")
            curves = [finetune(n, data, rate, how, seed, "validation", how.horizons) for n in networks]
            tried[rate] = dict(zip(how.horizons, np.mean(curves, axis=0).tolist(), strict=True))
        scores = [{rate: curve[h] for rate, curve in tried.items()} for h in how.horizons]
        wanted = set().union(*map(_beyond, scores))
    low, *inside, high = sorted(tried) if tried else [0.0, 0.0]
    best = {h: max([*inside, low, high], key=lambda rate: tried[rate][h]) for h in how.horizons}
    return Choice(best, tried)


def tuned_curves(
    start: Start,
    choice: Choice,
    architectures: Sequence[Spec],
    data: LabelledImages,
    how: FineTuning,
    build: Build,
    seed: int = 0,
    progress: Progress | None = None,
) -> Values:
    """Return test accuracy ``(architectures, steps)``, each number of steps with its own step size."""
    # Numbers of steps that share a step size share the run; the untouched start comes with the first.
    runs: dict[float, list[int]] = {}
    for horizon, rate in choice.step_sizes.items():
        runs.setdefault(rate, []).append(horizon)
    untouched = [s for s in how.steps if s == 0]
    rows = []
    for number, spec in enumerate(architectures):
        if progress is not None:
            progress(f"{start.name}, seed {seed}: network {number + 1} of {len(architectures)}")
        network = filled(start, build(spec, seed), seed)
        values: dict[int, float] = {}
        for position, (rate, horizons) in enumerate(runs.items() or [(0.0, [])]):
            wanted = horizons if position else untouched + horizons
            values |= zip(wanted, finetune(network, data, rate, how, seed, "test", wanted), strict=True)
        rows.append([values[s] for s in how.steps])
    return np.array(rows)


def filled(start: Start, network: nn.Module, seed: int) -> nn.Module:
    """Return the network, filled in place."""
    start.fill(network, seed)
    return network


def _beyond(scores: Mapping[float, float]) -> set[float]:
    """Return the step sizes next to the edges on which a best value lies.

    Ties count: where nothing has been learned yet, an edge may be as good as all inside by chance.
    """
    low, high, best = min(scores), max(scores), max(scores.values())
    # Where all runs diverged, smaller steps alone may help.
    down = {_rounded(low / GRID_RATIO)} if scores[low] >= best else set()
    up = {_rounded(high * GRID_RATIO)} if scores[high] >= best > WORST else set()
    return down | up


def _is_inside(scores: Mapping[float, float]) -> bool:
    """Return whether some value inside is as good as those on the edges."""
    _, *inside, _ = sorted(scores)
    return max(scores[rate] for rate in inside) >= max(scores.values())


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
