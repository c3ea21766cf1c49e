"""The training function of every family: plain Python, run by Ray on many workers or by a test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from metainit import checkpoint
from metainit.errors import DivergenceError, MetainitError
from metainit.versions import code_version
from pipelines.families import Prepared, family_of
from pipelines.folder import RunFolder, read_state
from pipelines.learner import Learner, added_up
from pipelines.pace import Pace
from pipelines.preparation import prepare
from pipelines.recipe import Recipe
from pipelines.tracking import Sink
from pipelines.world import Alone, World

Progress = Callable[[int, int, float, float], None]
"""Called after each step with the step, the number of steps, the loss and the seconds left."""


@dataclass(frozen=True)
class Result:
    """What a run ends with: the checkpoint, and the last value of each metric."""

    checkpoint: Path
    metrics: dict[str, float] = field(default_factory=dict)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    sink: Sink,
    world: World | None = None,
    progress: Progress | None = None,
    prepared: Prepared | None = None,
) -> Result:
    """Learn what a recipe says, or go on where a run in `folder` was interrupted.

    Every worker takes its share of each step. Only the first worker writes files, validates and reports.

    Args:
        recipe: what to do.
        folder: where states and the checkpoint go; a finished run there is not repeated.
        sink: where metrics go; left open.
        world: the workers; one process where it is None.
        progress: told about each step, on the first worker.
        prepared: the prepared recipe, where the caller has it already.

    Raises:
        RecipeError: parts of the recipe do not fit each other, or the folder holds another recipe's run.
        DataError: the data cannot be used.
        DivergenceError: the loss left the finite numbers; the last good weights are kept.
        CheckpointError: the disk is full; what was saved before is kept.

    Example:
        >>> import tempfile
        >>> from pipelines.recipe import load_recipe
        >>> from pipelines.tracking import ListSink
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = train(load_recipe('ct-phantoms-debug'), folder, sink=ListSink())
        ...     result.checkpoint.name
        'checkpoint.safetensors'
    """
    return _Run(prepared or prepare(recipe), Path(folder), sink, world or Alone(), progress).result()


class _Run:
    """One worker's part in a run."""

    def __init__(
        self, prepared: Prepared, path: Path, sink: Sink, world: World, progress: Progress | None
    ) -> None:
        self.prepared = prepared
        self.recipe = prepared.recipe
        self.folder = RunFolder(path, prepared.recipe, prepared.source)
        self.sink, self.world, self.progress = sink, world, progress
        self.learner = self._new_learner()
        self.metrics: dict[str, float] = {}
        self.pace = Pace()
        self.failure: MetainitError | None = None

    @property
    def first(self) -> bool:
        """Whether this worker writes and reports."""
        return self.world.rank == 0

    def result(self) -> Result:
        """Run to the end."""
        if self._take_up():
            return Result(self.folder.checkpoint, self.metrics)
        learner = self.learner
        began, done_before = time.monotonic(), learner.step
        with learner.working():
            while learner.step < learner.steps:
                self._step()
                self.pace.done(learner.step)
                if learner.step == done_before + 1:
                    began = time.monotonic()  # the first step warms caches up, and is no measure
                if self.first:
                    self._report(began, learner.step - done_before - 1)
        if self.failure is not None:
            raise self.failure
        if self.first:
            self._write(self.folder.checkpoint, learner)
            self.sink.flush()
        return Result(self.folder.checkpoint, self.metrics)

    def _new_learner(self) -> Learner:
        return family_of(self.recipe.family).learner(self.prepared, self.world)

    def _take_up(self) -> bool:
        """Go on from the newest saved state; return whether the run has finished already."""
        message: bytes | None = None
        if self.first:
            self.folder.begin()
            message = b"finished" if self.folder.finished() else self.folder.newest_state()
        message = self.world.from_first(message)
        if message == b"finished":
            return True
        if message is not None:
            saved = read_state(message)
            self.metrics["loss"] = float(saved.pop("loss"))
            self.learner.restore(saved)
        return False

    def _step(self) -> None:
        gradient, failed = added_up(self.learner.gradient(), self.world, self.failure is not None)
        if failed:
            raise self.failure or MetainitError("the first worker has stopped; its error says why")
        try:
            self.metrics["loss"] = self.learner.apply(gradient)
        except DivergenceError as error:
            raise self._rescue(error) from error

    def _report(self, began: float, measured: int) -> None:
        """Report, validate and save on the first worker; an error stops all of them at the next step."""
        step, steps, recipe = self.learner.step, self.learner.steps, self.recipe
        last = step == steps
        news = {"loss": self.metrics["loss"]}
        try:
            if last or step % recipe.validate_every == 0:
                news |= self.learner.validate()
            if last or step % recipe.checkpoint_every == 0:
                self._save()
        except DivergenceError as error:
            self.failure = self._rescue(error)
        except MetainitError as error:
            self.failure = error
        self.metrics |= news
        seconds = (time.monotonic() - began) / measured if measured else math.nan
        if measured and (last or step % recipe.checkpoint_every == 0):
            news["seconds_per_step"] = seconds
        self.sink.log_metrics(news, step)
        if self.progress is not None:
            self.progress(step, steps, news["loss"], self.pace.left(steps))

    def _save(self) -> None:
        state = self.learner.state() | {"loss": torch.tensor(self.metrics["loss"], dtype=torch.float64)}
        self.folder.save_state(self.learner.step, state, code_version())
        self.sink.flush()

    def _rescue(self, error: DivergenceError) -> DivergenceError:
        """Write the last saved weights as a checkpoint, and return an error that says where they are."""
        if not self.first:
            return error
        content = self.folder.newest_state()
        if content is None:
            return DivergenceError(f"{error}; no state was saved before, so there are no weights to keep")
        state = read_state(content)
        state.pop("loss")
        kept = self._new_learner()  # of its own: the other workers count the steps of this one
        kept.restore(state)
        self._write(self.folder.last_good, kept)
        return DivergenceError(
            f"{error}; the weights after step {kept.step} are kept in {self.folder.last_good}"
        )

    def _write(self, path: Path, learner: Learner) -> None:
        tensors, card = learner.result(self.folder.provenance(code_version()))
        checkpoint.save(path, tensors, card)
