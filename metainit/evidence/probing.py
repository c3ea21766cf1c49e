"""`probe`: which start is best for one given network and its data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metainit.errors import DataError
from metainit.evidence.curves import GRID_RATIO
from metainit.initialization import load

Batch = Sequence[Tensor]
"""``(inputs, targets)``."""
LossFunction = Callable[[Tensor, Tensor], Tensor]
STEP_SIZES = tuple(1e-3 * GRID_RATIO**i for i in range(6))
MAX_EXTENSIONS = 6


@dataclass(frozen=True)
class ProbeRow:
    """One source: its best step size, and its loss on unseen batches after each number of steps."""

    source: str
    step_size: float
    loss: dict[int, float]
    spread: dict[int, float]


@dataclass(frozen=True)
class ProbeReport:
    """What `probe` found, the best source first."""

    rows: list[ProbeRow]
    steps: list[int]
    seeds: int

    @property
    def best(self) -> str:
        """The source with the lowest loss after the last number of steps."""
        return self.rows[0].source

    def table(self) -> str:
        """Return the report as plain text."""
        width = max(len(row.source) for row in self.rows)
        lines = [f"{'start'.ljust(width)}  step size  " + "  ".join(f"{s:>5} steps" for s in self.steps)]
        for row in self.rows:
            cells = "  ".join(f"{row.loss[s]:11.4g}" for s in self.steps)
            lines.append(f"{row.source.ljust(width)}  {row.step_size:9.2g}  {cells}")
        lines.append(f"loss on batches that the steps did not see, mean of {self.seeds} draws")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return asdict(self)


def probe(
    network: nn.Module,
    sources: Sequence[str | Path],
    batches: Sequence[Batch],
    loss_fn: LossFunction,
    steps: Sequence[int] = (0, 10, 50),
    seeds: int = 3,
) -> ProbeReport:
    """Try several starts on a network and its data, and rank them by the loss on unseen batches.

    A third of the batches trains, a third chooses each start's step size (SGD with momentum 0.9, on a grid
    that grows until the best is not on its edge), the last third judges. The network itself is not changed.

    Args:
        network: any module; it is copied.
        sources: what `metainit.load` takes.
        batches: at least three pairs ``(inputs, targets)``.
        loss_fn: ``(outputs, targets)`` -> scalar.
        steps: numbers of steps to report; the last one ranks.
        seeds: draws of each random start.

    Raises:
        DataError: there are fewer than three batches.

    Example:
        >>> x = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> report = probe(nn.Linear(1, 1), ['default', 'kaiming'], [(x, 2 * x)] * 3,
        ...                nn.functional.mse_loss, steps=(0, 5))
        >>> sorted(row.source for row in report.rows)
        ['default', 'kaiming']
    """
    if len(batches) < 3:
        raise DataError(
            f"probe needs at least 3 batches (to train, to choose and to judge), got {len(batches)}"
        )
    steps = sorted(set(steps))
    third = len(batches) // 3
    train, choose, judge = batches[: -2 * third], batches[-2 * third : -third], batches[-third:]
    rows = []
    for source in sources:
        starts = [_filled(network, source, seed, batches[0][0]) for seed in range(seeds)]
        scores: dict[float, float] = {}

        def score(
            size: float, starts: Sequence[nn.Module] = starts, scores: dict[float, float] = scores
        ) -> None:
            scores[size] = float(
                np.mean([_run(s, size, train, choose, loss_fn, steps[-1:])[steps[-1]] for s in starts])
            )

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
        best = min(scores, key=lambda k: scores[k])
        runs = [_run(s, best, train, judge, loss_fn, steps) for s in starts]
        rows.append(
            ProbeRow(
                str(source),
                best,
                {s: float(np.mean([run[s] for run in runs])) for s in steps},
                {s: float(np.std([run[s] for run in runs])) for s in steps},
            )
        )
    rows.sort(key=lambda row: row.loss[steps[-1]])
    return ProbeReport(rows, list(steps), seeds)


def _filled(network: nn.Module, source: str | Path, seed: int, inputs: Tensor) -> nn.Module:
    return load(source).init_(copy.deepcopy(network), seed=seed, example_inputs=inputs)


def _run(
    start: nn.Module,
    step_size: float,
    train: Sequence[Batch],
    unseen: Sequence[Batch],
    loss_fn: LossFunction,
    steps: Sequence[int],
) -> Mapping[int, float]:
    network = copy.deepcopy(start)
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=step_size, momentum=0.9)
    found: dict[int, float] = {}
    for step in range(max(steps) + 1):
        if step in steps:
            network.eval()
            with torch.no_grad():
                losses = [float(loss_fn(network(x), y)) for x, y in unseen]
            network.train()
            value = float(np.mean(losses))
            found[step] = value if np.isfinite(value) else 1e30
        if step < max(steps):
            inputs, targets = train[step % len(train)]
            loss = loss_fn(network(inputs), targets)
            if not torch.isfinite(loss):
                return {s: found.get(s, 1e30) for s in steps}
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return found
