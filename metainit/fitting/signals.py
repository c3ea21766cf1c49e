"""Fit one network to each signal, from one start: a file, or a folder of thousands."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import skimage.io
import torch
from torch import Tensor

from metainit import checkpoint
from metainit.adaptation import require_finite, trajectory
from metainit.card import Card, Method, Provenance
from metainit.errors import DataError, DivergenceError
from metainit.fitting.base import REPORT_FILE, WEIGHTS_FILE, Prepared, Request, prepare_start, write_report
from metainit.meta.engine import choose, task_threads
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import function_of
from metainit.networks.chunks import ROWS, in_chunks
from metainit.signals import GEOMETRY, Signal, content_of, read_signal, signal_paths, together

RENDERING_FILE = "fitted.png"
AT_ONCE = 64
"""How many files a GPU fits at once."""


@dataclass(frozen=True)
class FittedSignal:
    """The result of one fit."""

    path: Path
    weights: Parameters
    rendered: Tensor
    metrics: dict[str, float]
    loss: float


def fit_signals(request: Request) -> dict[str, Any]:
    """Fit every signal at a path and write weights, rendering and a report for each.

    Files that are done are skipped when the same command runs again; a file that fails is named in the
    report and does not stop the others. On a CPU narrow networks run one file a thread; on a GPU files of the
    same size are fitted at once.

    Raises:
        DataError: there is nothing to fit, or a truth is given beside the signals, which are their own.
        SourceError: the start has no routine and none is given, or names no network.
    """
    if request.truth is not None:
        raise DataError(f"--truth {request.truth}: signals are their own truth; leave it out")
    prepared = prepare_start(
        request.start, request.steps, request.routine, request.network, request.seed, request.device
    )
    path, out = request.path, request.out
    # Results below the folder that is fitted are no signals of the next run.
    todo = [p for p in signal_paths(path) if out.resolve() not in p.resolve().parents]
    job = _Job(prepared, path if path.is_dir() else path.parent, out)
    done: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for number, (name, result) in enumerate(job.run(todo), 1):
        if isinstance(result, str):
            failed[name] = result
        else:
            done[name] = result
        request.tell(number, name, {} if isinstance(result, str) else result)
    report = {**prepared.settings, "fitted": done, "failed": failed, "files": len(todo)}
    write_report(report, out / REPORT_FILE)
    return report


def fit_together(prepared: Prepared, signals: list[Signal], batched: bool) -> list[FittedSignal]:
    """Fit signals of one form: one alone, or several at once with a task axis.

    Raises:
        DivergenceError: the loss is not finite.
    """
    weights = {k: v.detach() for k, v in prepared.network.named_parameters()}
    like = next(iter(weights.values()))
    batch = together(signals).to(like.device, like.dtype)
    domain = signals[0].domain
    function = function_of(prepared.network)
    losses = TaskLosses(domain, function if batched else in_chunks(function), batch, batched)
    *_, last = trajectory(losses, weights, prepared.routine, prepared.step_sizes, prepared.steps)
    require_finite(last, prepared.routine, prepared.steps)
    return [
        _result(prepared, s, {k: v[i] if batched else v for k, v in last.items()})
        for i, s in enumerate(signals)
    ]


def _result(prepared: Prepared, signal: Signal, weights: Parameters) -> FittedSignal:
    like = next(iter(weights.values()))
    batch = signal.batch.to(like.device, like.dtype)
    query = {k: v[0] for k, v in batch.query.items()}
    function = in_chunks(function_of(prepared.network))
    losses = TaskLosses(signal.domain, function, batch, batched=False)
    with torch.no_grad():
        rendered = signal.domain.render(function(weights), query, batch.shared)
        loss = float(losses.support(weights))
    if not math.isfinite(loss):
        raise DivergenceError(
            f"after {prepared.steps} steps the loss is {loss}; lower the step size (now "
            f"{prepared.routine.step_size:g})"
        )
    metrics = dict(signal.domain.metrics(rendered, query)) if query else {}
    return FittedSignal(signal.path, {k: v.cpu() for k, v in weights.items()}, rendered.cpu(), metrics, loss)


Answer = tuple[str, dict[str, Any] | str]
"""A file's name, and its metrics or why it failed."""


@dataclass(frozen=True)
class _Job:
    """Files on their way through a fit."""

    prepared: Prepared
    root: Path
    out: Path

    def run(self, todo: Sequence[Path]) -> Iterator[Answer]:
        weights = dict(self.prepared.network.named_parameters())
        how = choose("auto", {k: v.detach() for k, v in weights.items()}, max(4, len(todo)))
        if how == "vmap":
            for first in range(0, len(todo), AT_ONCE):
                yield from self._chunk(todo[first : first + AT_ONCE])
            return
        threaded = how == "threads" and len(todo) > 1
        with task_threads(torch.get_num_threads()) if threaded else nullcontext() as pool:
            yield from pool.map(self._one, todo) if pool else map(self._one, todo)

    def _one(self, path: Path) -> Answer:
        (answer,) = self._chunk([path], batched=False)
        return answer

    def _chunk(self, paths: Sequence[Path], batched: bool = True) -> Iterator[Answer]:
        """Read some files, fit those of one form together, and write the results."""
        forms: dict[Any, list[Signal]] = {}
        for path in paths:
            name = self._name(path)
            try:
                kept = self._finished(path)
                if kept is not None:
                    yield name, kept
                    continue
                signal = self._read(path)
            except DataError as error:
                yield name, str(error)
            else:
                forms.setdefault(signal.form, []).append(signal)
        for signals in forms.values():
            at_once = max(1, ROWS // signals[0].points) if batched else 1
            for first in range(0, len(signals), at_once):
                yield from self._fitted(signals[first : first + at_once], batched and at_once > 1)

    def _fitted(self, signals: list[Signal], batched: bool) -> Iterator[Answer]:
        """Fit signals of one form; where one of several diverges, each is fitted alone."""
        try:
            fits = fit_together(self.prepared, signals, batched)
        except DivergenceError as error:
            if len(signals) > 1:
                for signal in signals:
                    yield from self._fitted([signal], batched)
                return
            name = self._name(signals[0].path)
            yield name, f"{name}: {error}"
        else:
            for fit in fits:
                yield self._name(fit.path), self._write(fit)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _read(self, path: Path) -> Signal:
        like = next(self.prepared.network.parameters())
        channels = self.prepared.network(like.new_zeros(1, 2)).shape[-1]
        domain = self.prepared.start.card.domain
        known = domain.arguments if domain is not None else {}
        return read_signal(path, channels, {k: known[k] for k in GEOMETRY if k in known})

    def _finished(self, path: Path) -> dict[str, Any] | None:
        """Return the metrics of an earlier run with the same settings, if it got as far as this file."""
        report = self.out / self._name(path) / REPORT_FILE
        if not report.is_file():
            return None
        kept: dict[str, Any] = json.loads(report.read_text())
        same = kept["settings"] == self.prepared.settings and kept.get("content") == content_of(path)
        return kept["metrics"] if same else None

    def _write(self, result: FittedSignal) -> dict[str, Any]:
        """Write one fit; the report comes last, so that its presence means that all is there."""
        prepared, folder = self.prepared, self.out / self._name(result.path)
        pixels = (result.rendered.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        folder.mkdir(parents=True, exist_ok=True)
        shown = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
        skimage.io.imsave(folder / RENDERING_FILE, shown, check_contrast=False)
        card = Card(
            kind="weights",
            name="fit",
            method=Method(name=f"fit from {prepared.start.card.name}"),
            network=prepared.spec,
            provenance=Provenance(seeds=[prepared.seed]),
        )
        buffers = dict(prepared.network.named_buffers())
        checkpoint.save(folder / WEIGHTS_FILE, {**buffers, **result.weights}, card)
        metrics = {**{k: round(v, 4) for k, v in result.metrics.items()}, "loss": result.loss}
        content = content_of(result.path)
        report = {"settings": prepared.settings, "content": content, "metrics": metrics}
        write_report(report, folder / REPORT_FILE)
        return metrics
