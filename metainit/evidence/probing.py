"""`probe`: which start is best for a network and its data, and whether it is better than the default."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from metainit.domains.seeding import seed_of
from metainit.errors import DataError, DivergenceError
from metainit.evidence.statistics import CONFIDENCE, Values, paired_bootstrap
from metainit.evidence.trials import (
    Batch,
    Budget,
    LossFunction,
    Thirds,
    calibrate,
    chosen_step_size,
    own_random_state,
    run,
)
from metainit.fill import fill
from metainit.initialization import Initialization, load

BASELINE = "default"
"""What a start has to beat: the framework's own weights."""


@dataclass(frozen=True)
class ProbeRow:
    """One source: its best step size, and its loss on unseen batches after each number of steps.

    `gain`: by how much its loss after the last step is below the baseline's, with an interval from `low` to
    `high` over draws and batches; None where there is no baseline, and of the baseline itself. `seconds` and
    `gradients`: what the trials of this source took.
    """

    source: str
    step_size: float
    loss: dict[int, float]
    spread: dict[int, float]
    gain: float | None
    low: float | None
    high: float | None
    seconds: float
    gradients: int


@dataclass(frozen=True)
class ProbeReport:
    """What `probe` found, the best source first.

    `baseline`: the source that the others are held against, None where it was not among them. `kept`: the
    source to use: the best of those that are better than the baseline beyond noise, or else the baseline.
    """

    rows: list[ProbeRow]
    steps: list[int]
    seeds: int
    baseline: str | None
    kept: str
    weights: dict[str, Tensor] = field(repr=False, compare=False)

    @property
    def best(self) -> str:
        """The source with the lowest loss after the last number of steps, be it by chance."""
        return self.rows[0].source

    @property
    def seconds(self) -> float:
        """How long all trials took."""
        return sum(row.seconds for row in self.rows)

    @property
    def gradients(self) -> int:
        """How many gradients all trials took: what the probe costs beside the training that follows."""
        return sum(row.gradients for row in self.rows)

    @property
    def step_size(self) -> float:
        """The step size that suits the kept start."""
        return next(row.step_size for row in self.rows if row.source == self.kept)

    def init_(self, network: nn.Module) -> nn.Module:
        """Fill the network with the kept start's first draw, in place.

        Running statistics of batch normalization are those of that start on the probe's training batches.

        Raises:
            MismatchError: it is not a network like the probed one; nothing is changed.
        """
        return fill(network, self.weights, f"start {self.kept!r}")

    def table(self) -> str:
        """Return the report as plain text."""
        width = max(len(row.source) for row in self.rows)
        heads = "  ".join(f"{s:>5} steps" for s in self.steps)
        lines = [f"{'start'.ljust(width)}  step size  {heads}  gain [interval]"]
        for row in self.rows:
            cells = "  ".join(f"{row.loss[s]:11.4g}" for s in self.steps)
            gain = "-" if row.gain is None else f"{row.gain:+.3g} [{row.low:+.3g}, {row.high:+.3g}]"
            lines.append(f"{row.source.ljust(width)}  {row.step_size:9.2g}  {cells}  {gain}")
        why = "" if self.baseline is None else f", gain over {self.baseline!r} after {self.steps[-1]} steps"
        lines.append(f"kept: {self.kept}; the probe took {self.gradients} gradients, {self.seconds:.1f} s")
        lines.append(f"loss on batches that the steps did not see{why}, mean of {self.seeds} draws")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, without weights."""
        rows = [{f.name: getattr(row, f.name) for f in fields(row)} for row in self.rows]
        return {
            "rows": rows,
            "steps": list(self.steps),
            "seeds": self.seeds,
            "baseline": self.baseline,
            "kept": self.kept,
        }


@dataclass(frozen=True)
class _Tried:
    """A source's trials: losses ``(draws, batches, steps)``, and the first draw to fill a network with."""

    name: str
    step_size: float
    losses: Values
    first: nn.Module
    seconds: float
    gradients: int


def probe(
    network: nn.Module,
    sources: Sequence[str | Path | Initialization],
    batches: Sequence[Batch],
    loss_fn: LossFunction,
    steps: Sequence[int] = (0, 10, 50),
    seeds: int = 3,
) -> ProbeReport:
    """Try several starts on a network and its data, and keep one only if it beats the framework's default.

    A third of the batches trains, a third chooses each start's step size (SGD with momentum 0.9, on a grid
    that grows until the best is not on its edge), the last third judges. Where ``default`` is among the
    sources, a start counts as better only if the interval of its gain, over draws and batches and widened for
    the number of starts (Bonferroni), lies above 0. Batch normalization is judged with recalibrated
    statistics. The network itself and the global random state are not changed.

    Args:
        network: any module; it is copied.
        sources: what `metainit.load` takes, or what it returned.
        batches: at least three pairs ``(inputs, targets)``.
        loss_fn: ``(outputs, targets)`` -> scalar.
        steps: numbers of steps to report; the last one ranks.
        seeds: draws of each random start.

    Raises:
        DataError: there are fewer than three batches, no sources, steps or seeds, or steps below 0.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1, 1, 32).reshape(-1, 1)
        >>> report = probe(nn.Linear(1, 1), ['default', 'kaiming'], [(x, 2 * x)] * 3,
        ...                nn.functional.mse_loss, steps=(0, 5))
        >>> sorted(row.source for row in report.rows)
        ['default', 'kaiming']
        >>> network = report.init_(nn.Linear(1, 1))
    """
    if len(batches) < 3:
        raise DataError(
            f"probe needs at least 3 batches (to train, to choose and to judge), got {len(batches)}"
        )
    if not sources or not steps or min(steps) < 0 or seeds < 1:
        raise DataError(
            f"probe needs sources, steps from 0 on and seeds, got {len(sources)} sources, steps "
            f"{list(steps)} and {seeds} seeds"
        )
    ordered = sorted(set(steps))
    third = len(batches) // 3
    data = Thirds(batches[: -2 * third], batches[-2 * third : -third], batches[-third:])
    tried = [
        _tried(network, name, start, data, loss_fn, ordered, seeds) for name, start in _named(sources).items()
    ]
    baseline = next((t for t in tried if t.name == BASELINE), None)
    rows = [_row(t, baseline, ordered, others=len(tried) - 1) for t in tried]
    rows.sort(key=lambda row: row.loss[ordered[-1]])
    kept = _kept(rows, baseline)
    return ProbeReport(
        rows,
        ordered,
        seeds,
        None if baseline is None else BASELINE,
        kept,
        _weights(next(t for t in tried if t.name == kept).first, data),
    )


def _named(sources: Sequence[str | Path | Initialization]) -> dict[str, Initialization]:
    """Return the starts by name; of equal names the later ones are numbered."""
    found: dict[str, Initialization] = {}
    for source in sources:
        loaded = load(source) if isinstance(source, str | Path) else source
        name = own = str(source) if isinstance(source, str | Path) else loaded.card.name
        number = 2
        while name in found:
            name, number = f"{own} ({number})", number + 1
        found[name] = loaded
    return found


def _tried(
    network: nn.Module,
    name: str,
    start: Initialization,
    data: Thirds,
    loss_fn: LossFunction,
    steps: Sequence[int],
    seeds: int,
) -> _Tried:
    began, budget, example = time.perf_counter(), Budget(), data.train[0][0]
    drawn = []
    for seed in range(seeds):
        with own_random_state(network, seed_of("start", seed)):
            drawn.append(start.init_(_untrained(network), seed=seed, example_inputs=example))
    size = chosen_step_size(drawn, data, loss_fn, steps[-1], budget)
    runs = [
        run(own, size, data.train, data.judge, loss_fn, steps, seed, budget) for seed, own in enumerate(drawn)
    ]
    losses = np.stack(runs).transpose(0, 2, 1)
    return _Tried(name, size, losses, drawn[0], time.perf_counter() - began, budget.gradients)


def _untrained(network: nn.Module) -> nn.Module:
    """Return a copy without traces of training, which some starts refuse to overwrite; a copy may be."""
    copied = copy.deepcopy(network)
    copied.zero_grad(set_to_none=True)
    for module in copied.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.reset_running_stats()
    return copied


def _row(tried: _Tried, baseline: _Tried | None, steps: Sequence[int], others: int) -> ProbeRow:
    draws, gain = tried.losses.mean(1), None
    if baseline is not None and tried is not baseline:
        confidence = 1 - (1 - CONFIDENCE) / max(1, others)
        gain = paired_bootstrap(baseline.losses[:, :, -1], tried.losses[:, :, -1], confidence=confidence)
    return ProbeRow(
        source=tried.name,
        step_size=tried.step_size,
        loss={s: float(draws[:, i].mean()) for i, s in enumerate(steps)},
        spread={s: float(draws[:, i].std()) for i, s in enumerate(steps)},
        gain=None if gain is None else gain.mean,
        low=None if gain is None else gain.low,
        high=None if gain is None else gain.high,
        seconds=tried.seconds,
        gradients=tried.gradients,
    )


def _kept(rows: Sequence[ProbeRow], baseline: _Tried | None) -> str:
    if baseline is None:
        return rows[0].source
    # One draw on one batch has no interval, so nothing is beyond its noise.
    told = baseline.losses[:, :, -1].size > 1
    better = [row for row in rows if row.low is not None and row.low > 0]
    return better[0].source if told and better else BASELINE


def _weights(first: nn.Module, data: Thirds) -> dict[str, Tensor]:
    try:
        calibrate(first, data.train)
    except DivergenceError:
        pass  # such a start is kept only where nothing else is: its statistics stay those it came with
    return {name: value.detach().clone() for name, value in first.state_dict().items()}
