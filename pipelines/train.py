"""The training function: plain Python, run by Ray on many workers or by a test in its own process."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metainit
from metainit import checkpoint
from metainit.adaptation import trajectory
from metainit.card import Card, Method
from metainit.domains.base import TaskBatch
from metainit.domains.registry import without_places
from metainit.domains.seeding import seed_of
from metainit.errors import DivergenceError, MetainitError
from metainit.meta.engine import choose, task_threads
from metainit.meta.outer import OuterLoop, initial_meta_parameters, routine_of
from metainit.meta.registry import RULES, gradient_evaluations, rule_for
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, Rule, TaskLosses, zeros_like
from metainit.networks.registry import function_of
from pipelines.folder import RunFolder, read_state
from pipelines.preparation import Prepared, prepare
from pipelines.recipe import Recipe
from pipelines.tracking import Sink
from pipelines.world import Alone, World, share

ENGINES = {"metainit": "metainit.meta.engine", "learn2learn": "metainit.meta.learn2learn_engine"}
"""Engine -> the module whose `meta_gradient` it is; imported when a recipe asks for it."""

Progress = Callable[[int, int, float, float], None]
"""Called after each outer step with the step, the number of steps, the loss and the seconds left."""


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
    """Learn a prior as a recipe says, or go on where a run in `folder` was interrupted.

    Every worker draws the same batch of tasks, which is a pure function of seed and step, and takes its
    share of it. Only the first worker writes files, validates and reports.

    Args:
        recipe: what to do.
        folder: where states and the checkpoint go; a finished run there is not repeated.
        sink: where metrics go; left open.
        world: the workers; one process where it is None.
        progress: told about each outer step, on the first worker.
        prepared: the recipe's domain and network, where the caller has built them already.

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
        self.recipe = recipe = prepared.recipe
        self.folder = RunFolder(path, recipe, prepared.source)
        self.sink, self.world, self.progress = sink, world, progress
        self.function = function_of(prepared.network, recipe.algorithm.memory_format)
        self.rule = rule_for(recipe.algorithm)
        self.inner = recipe.algorithm.inner(prepared.network)
        self.loop = OuterLoop(
            initial_meta_parameters(prepared.network, recipe.algorithm), recipe.outer, recipe.algorithm
        )
        self.metrics: dict[str, float] = {}
        self.failure: MetainitError | None = None

    @property
    def first(self) -> bool:
        """Whether this worker writes and reports."""
        return self.world.rank == 0

    def result(self) -> Result:
        """Run to the end."""
        if self._take_up():
            return Result(self.folder.checkpoint, self.metrics)
        began, done_before = time.monotonic(), self.loop.step
        with self._pool() as pool:
            while self.loop.step < self.recipe.outer.steps:
                self._step(pool)
                if self.loop.step == done_before + 1:
                    began = time.monotonic()  # the first step warms caches up, and is no measure
                if self.first:
                    self._report(began, self.loop.step - done_before - 1)
        if self.failure is not None:
            raise self.failure
        if self.first:
            self.write(self.folder.checkpoint, self.loop.result())
            self.sink.flush()
        return Result(self.folder.checkpoint, self.metrics)

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
            saved = read_state(message, self.prepared.device)
            self.metrics["loss"] = float(saved.pop("loss"))
            self.loop.restore(saved)
        return False

    def _pool(self) -> AbstractContextManager[ThreadPoolExecutor | None]:
        algorithm, outer = self.recipe.algorithm, self.recipe.outer
        mine = share(outer.meta_batch, self.world.rank, self.world.size)
        how = choose(algorithm.execution, self.loop.meta.weights, mine.stop - mine.start)
        threaded = how == "threads" and not algorithm.compiled
        return task_threads(torch.get_num_threads()) if threaded else nullcontext()

    def _step(self, pool: ThreadPoolExecutor | None) -> None:
        recipe = self.recipe
        batch = self.prepared.domain.tasks(recipe.seed, self.loop.step, recipe.outer.meta_batch)
        mine = moved(batch[share(len(batch), self.world.rank, self.world.size)], self.prepared)
        inner = self.inner.seeded(seed_of("inner loop", recipe.seed, self.loop.step))
        gradient = gradient_of(self.prepared, self.function, self.rule, self.loop.meta, mine, inner, pool)
        gradient, failed = added_up(gradient, self.world, self.failure is not None)
        if failed:
            raise self.failure or MetainitError("the first worker has stopped; its error says why")
        try:
            self.metrics["loss"] = self.loop.apply(gradient)
        except DivergenceError as error:
            raise self._rescue(error) from error

    def _report(self, began: float, measured: int) -> None:
        """Report, validate and save on the first worker; an error stops all of them at the next step."""
        step, recipe = self.loop.step, self.recipe
        last = step == recipe.outer.steps
        news = {"loss": self.metrics["loss"]}
        try:
            if recipe.validation_tasks and (last or step % recipe.validate_every == 0):
                news |= validate(self.prepared, self.loop.result())
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
            self.progress(step, recipe.outer.steps, news["loss"], seconds * (recipe.outer.steps - step))

    def _save(self) -> None:
        state = self.loop.state() | {"loss": torch.tensor(self.metrics["loss"], dtype=torch.float64)}
        self.folder.save_state(self.loop.step, state, code_version())
        self.sink.flush()

    def _rescue(self, error: DivergenceError) -> DivergenceError:
        """Write the last saved weights as a checkpoint, and return an error that says where they are."""
        if not self.first:
            return error
        content = self.folder.newest_state()
        if content is None:
            return DivergenceError(f"{error}; no state was saved before, so there are no weights to keep")
        state = read_state(content, self.prepared.device)
        state.pop("loss")
        # In a loop of its own: the other workers count the steps of this one.
        kept = OuterLoop(self.loop.meta, self.recipe.outer, self.recipe.algorithm)
        kept.restore(state)
        self.write(self.folder.last_good, kept.result())
        return DivergenceError(
            f"{error}; the weights after step {kept.step} are kept in {self.folder.last_good}"
        )

    def write(self, path: Path, meta: MetaParameters) -> None:
        """Write the (averaged) meta-parameters as a checkpoint."""
        tensors, card = described(self.prepared, meta, self.folder)
        checkpoint.save(path, tensors, card)


def gradient_of(
    prepared: Prepared,
    function: Any,
    rule: Rule,
    meta: MetaParameters,
    batch: TaskBatch,
    inner: InnerSteps,
    pool: ThreadPoolExecutor | None = None,
) -> MetaGradient:
    """Return the meta-gradient summed over a batch, which may be empty, with the recipe's engine."""
    algorithm = prepared.recipe.algorithm
    if len(batch) == 0:
        nothing = next(iter(meta.weights.values())).new_zeros(())
        return MetaGradient(zeros_like(meta.weights), zeros_like(meta.step_sizes), nothing, 0)
    engine = import_module(ENGINES[algorithm.engine])
    result: MetaGradient = engine.meta_gradient(
        rule,
        prepared.domain,
        function,
        meta,
        batch,
        inner,
        algorithm.execution,
        pool,
    )
    return result


def added_up(mine: MetaGradient, world: World, failed: bool = False) -> tuple[MetaGradient, bool]:
    """Return the sum of all workers' sums, and whether any of them has failed: one flat vector travels."""
    if world.size == 1:
        return mine, failed
    parts = [*mine.weights.values(), *mine.step_sizes.values(), mine.loss]
    counts = parts[0].new_tensor([mine.tasks, failed])
    flat = world.add_up(torch.cat([*(part.reshape(-1) for part in parts), counts]))
    pieces = iter(torch.split(flat[:-2], [part.numel() for part in parts]))
    weights = {k: next(pieces).view_as(v) for k, v in mine.weights.items()}
    step_sizes = {k: next(pieces).view_as(v) for k, v in mine.step_sizes.items()}
    total = MetaGradient(weights, step_sizes, next(pieces)[0], round(float(flat[-2])))
    return total, float(flat[-1]) > 0


def validate(prepared: Prepared, meta: MetaParameters) -> dict[str, float]:
    """Return the mean metrics of validation tasks after the learned steps, as ``validation_<name>``."""
    recipe, domain = prepared.recipe, prepared.domain
    size = domain.size("validation")
    count = recipe.validation_tasks if size is None else min(recipe.validation_tasks, size)
    if count == 0:
        return {}
    routine = routine_of(meta, recipe.algorithm, recipe.algorithm.inner(prepared.network))
    sizes = meta.step_sizes if routine.per_parameter else {}
    function = function_of(prepared.network, recipe.algorithm.memory_format)
    totals: dict[str, float] = {}
    for task in moved(domain.tasks(recipe.seed, 0, count, "validation"), prepared):
        losses = TaskLosses(domain, function, task, batched=False)
        *_, adapted = trajectory(losses, meta.weights, routine, sizes, routine.steps)
        with torch.no_grad():
            query = {k: v[0] for k, v in task.query.items()}
            rendered = domain.render(function(adapted), query, task.shared).cpu()
        truth = {k: v.cpu() for k, v in query.items()}
        for name, value in domain.metrics(rendered, truth).items():
            totals[f"validation_{name}"] = totals.get(f"validation_{name}", 0.0) + value / count
    return totals


def described(prepared: Prepared, meta: MetaParameters, folder: RunFolder) -> tuple[dict[str, Tensor], Card]:
    """Return the tensors of the final checkpoint and its card; no clock time, so same run, same bytes."""
    recipe = prepared.recipe
    with torch.no_grad():
        for name, value in prepared.network.named_parameters():
            value.copy_(meta.weights[name])
    tensors = {k: v.detach().cpu().clone() for k, v in prepared.network.state_dict().items()}
    inner = recipe.algorithm.inner(prepared.network)
    routine = routine_of(meta, recipe.algorithm, inner, recipe.continuation)
    cost = recipe.outer.steps * recipe.outer.meta_batch * gradient_evaluations(recipe.algorithm)
    provenance = folder.provenance(code_version()).model_copy(update={"gradient_evaluations": cost})
    if routine.per_parameter:
        tensors |= {checkpoint.STEP_SIZE_PREFIX + k: v.cpu().clone() for k, v in meta.step_sizes.items()}
    rule = recipe.algorithm.rule
    card = Card(
        kind="prior",
        name=recipe.name,
        method=Method(name=rule, paper=RULES[rule].paper),
        network=prepared.spec,
        domain=without_places(recipe.domain),
        routine=routine,
        provenance=provenance,
    )
    return tensors, card


def moved(batch: TaskBatch, prepared: Prepared) -> TaskBatch:
    """Return the batch on the device and in the type of the recipe."""
    return batch.to(prepared.device, prepared.dtype)


def code_version() -> str:
    """Return the versions that the bytes of a result depend on."""
    return f"metainit {metainit.__version__}, torch {torch.__version__}"
