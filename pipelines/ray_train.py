"""Run a recipe on Ray Train: as many workers as it says, restarted and resumed where one dies."""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metainit import errors
from metainit.errors import MetainitError
from pipelines.journal import Journal, Reader
from pipelines.local_ray import free_cpus, ray_cluster, worker_cpus
from pipelines.tags import TAG

if TYPE_CHECKING:
    from pipelines.families import Note, Prepared
    from pipelines.folder import RunFolder
    from pipelines.recipe import Recipe
    from pipelines.tracking import MlflowSink, Sink
    from pipelines.train import Progress

JOURNAL = "journal.jsonl"
DRIVER = "driver"
"""Holds what the driver alone knows, so that a worker can tell whether it sees the same folder."""
SHARED_SECONDS = 10.0
"""How long a file may take to show on another machine."""
RUN = "run.json"
JOB_VARIABLE, JOB_TAG = "METAINIT_JOB", TAG + "job"
"""What a submitted job is called: in its environment, and on its MLflow run."""
MAX_FAILURES = 3
"""How often a run goes on after a worker has died."""
FOLLOW_SECONDS = 0.25


@dataclass(frozen=True)
class Outcome:
    """What a run on Ray ends with.

    `sink` is still open, for what follows training; whoever has the outcome closes it. `trained` is false
    where the folder held the finished run already; `metrics` is empty then.
    """

    checkpoint: Path
    metrics: dict[str, float]
    sink: Sink
    prepared: Prepared
    trained: bool


def run_on_ray(
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    open_sink: Callable[[], Sink] | None = None,
    note: Note | None = None,
) -> Outcome:
    """Train a recipe on Ray and log it to MLflow; goes on where a run in `folder` was interrupted.

    Everything that can be checked without Ray is checked first. `folder` must be one that the driver and
    the workers share, as on one machine or on a network drive. Where this raises, the sink is closed.

    Args:
        recipe: what to do.
        folder: where the checkpoint, the states and the journal go.
        progress: told about each step.
        open_sink: makes the sink for metrics while Ray starts; an MLflow run unless it is given.
        note: told what is asked of Ray.

    Raises:
        RecipeError: parts of the recipe do not fit each other, or the folder holds another recipe's run.
        DataError: the data cannot be used.
        DivergenceError: the loss left the finite numbers; the last good weights are kept.
        CheckpointError: the disk is full.
        RegistryError: the MLflow store cannot be reached.
        MetainitError: Ray cannot be reached, or a worker died more than `MAX_FAILURES` times.
    """
    import torch

    from pipelines.folder import RunFolder
    from pipelines.preparation import prepare

    path = Path(folder).absolute()
    prepared = prepare(recipe, torch.device("cpu"))
    recipe = prepared.recipe
    run = RunFolder(path, recipe, prepared.source)
    run.begin()
    opener = open_sink or (lambda: open_run(recipe, path))
    if run.finished():
        return Outcome(run.checkpoint, {}, opener(), prepared, trained=False)
    say = note or (lambda text: None)
    if (step := run.saved_step()) is not None:
        say(f"going on after step {step}, where {path} was saved last")
    with ThreadPoolExecutor(1) as aside:
        opening: Future[Sink] = aside.submit(opener)
        try:
            with ray_cluster():
                sink = opening.result()
                metrics = _fit(recipe, run, sink, progress, say)
        except BaseException:
            # Also where Ray itself does not start. What ended the run is what its user has to hear.
            with suppress(MetainitError):
                opening.result().close(failed=True)
            raise
    run.clean()
    return Outcome(run.checkpoint, metrics, sink, prepared, trained=True)


def open_run(recipe: Recipe, folder: Path) -> MlflowSink:
    """Start an MLflow run for a folder, or take up the one that it has in the same store.

    Raises:
        RegistryError: the store cannot be reached.
    """
    from metainit.checkpoint import write_atomically
    from pipelines.connection import shown
    from pipelines.tracking import MlflowSink, store_uri

    known = recorded_run(folder)
    job = os.environ.get(JOB_VARIABLE)
    tags = {JOB_TAG: job} if job else None
    sink = MlflowSink(recipe.name, recipe.dump() if known is None else None, tags, run_id=known)
    content = json.dumps({"run_id": sink.run_id, "store": shown(store_uri())})
    write_atomically(folder / RUN, content.encode())
    return sink


def recorded_run(folder: Path) -> str | None:
    """Return the id of the MLflow run that belongs to a folder, where it is in the store in use."""
    from pipelines.connection import shown
    from pipelines.tracking import store_uri

    try:
        value = json.loads((folder / RUN).read_bytes())
        return str(value["run_id"]) if shown(str(value["store"])) == shown(store_uri()) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fit(
    recipe: Recipe, run: RunFolder, sink: Sink, progress: Progress | None, note: Note
) -> dict[str, float]:
    """Run Ray Train to the end, and pass on what the journal says meanwhile."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from metainit.checkpoint import write_atomically

    cpus = recipe.cpus or worker_cpus(free_cpus(), recipe.workers)
    note(f"asking Ray for {recipe.workers} x {cpus:g} CPU{' and a GPU' if recipe.gpu else ''}")
    journal = run.scratch / JOURNAL
    mark = secrets.token_hex(16)
    write_atomically(run.scratch / DRIVER, mark.encode())
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config={
            "recipe": recipe.dump(),
            "folder": str(run.path),
            "mark": mark,
            "working_folder": os.getcwd(),
            "journal": str(journal),
            "threads": max(1, int(cpus)),
        },
        torch_config=TorchConfig(backend="nccl" if recipe.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=recipe.workers, use_gpu=recipe.gpu, resources_per_worker={"CPU": cpus}
        ),
        run_config=RunConfig(
            name=recipe.name,
            storage_path=str(run.scratch / "ray"),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
        ),
    )
    with _Follower(journal, sink, progress):
        try:
            value: Any = trainer.fit().return_value  # type: ignore[attr-defined]
        except TrainingFailedError as error:
            raise MetainitError(
                f"training failed on Ray {MAX_FAILURES + 1} times: {_reason(error)}; what was saved is kept "
                f"in {run.path}, and the same command goes on from there"
            ) from error
        except SystemExit as error:  # how Ray's own handler of Ctrl-C ends the driver
            raise KeyboardInterrupt from error
    return _answer(value, run)


def train_worker(config: dict[Any, Any]) -> dict[str, Any]:
    """Train on one Ray worker; what fails for a reason that we know is returned, not retried."""
    import torch
    from ray.train import get_context

    from pipelines.folder import SCRATCH
    from pipelines.preparation import prepare
    from pipelines.recipe import read_recipe
    from pipelines.tracking import ListSink
    from pipelines.train import train
    from pipelines.world import Alone, Distributed, World

    if os.path.isdir(config["working_folder"]):
        os.chdir(config["working_folder"])
    torch.set_num_threads(int(config["threads"]))
    world: World = Distributed() if get_context().get_world_size() > 1 else Alone()
    recipe = read_recipe(config["recipe"])
    folder = Path(config["folder"])
    alone = not _shared(folder / SCRATCH / DRIVER, config["mark"])
    # Together: the others would wait for one that gave up.
    if world.add_up(torch.tensor([float(alone)], device="cuda" if recipe.gpu else "cpu")).item():
        text = f"{folder} is not one folder for all: give one that the driver and the workers share"
        return {"error": MetainitError.__name__, "text": text}
    first = world.rank == 0
    journal = Journal(Path(config["journal"])) if first else None
    try:
        result = train(
            recipe,
            folder,
            sink=journal or ListSink(),
            world=world,
            progress=journal.progress if journal else None,
            prepared=prepare(recipe),
        )
    except MetainitError as error:
        return {"error": type(error).__name__, "text": str(error)}
    finally:
        if journal is not None:
            journal.close()
    return {"metrics": result.metrics}


def _shared(file: Path, mark: str) -> bool:
    """Return whether a file shows up here with what the driver has written."""
    deadline = time.monotonic() + SHARED_SECONDS
    while not (file.is_file() and file.read_text() == mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


class _Follower:
    """Follows a journal on a thread of its own while the block runs.

    Metrics that an earlier run has left there are sent on, in case it was ended before it could; how far it
    was then is not shown as how far this one is.
    """

    def __init__(self, path: Path, sink: Sink, progress: Progress | None) -> None:
        self._reader, self._sink, self._progress = Reader(path), sink, progress
        self._earlier = path.stat().st_size if path.is_file() else 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="journal", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._pass_on()

    def _follow(self) -> None:
        while not self._done.wait(FOLLOW_SECONDS):
            self._pass_on()

    def _pass_on(self) -> None:
        for line in self._reader.news():
            if "metrics" in line:
                self._reader.forward(line, self._sink)
            elif "progress" in line and self._progress is not None and self._reader.read > self._earlier:
                self._progress(*line["progress"])


def _answer(value: Any, run: RunFolder) -> dict[str, float]:
    """Return the metrics of the first worker, or raise the error that it returned."""
    if not isinstance(value, dict):
        raise MetainitError(f"the first worker returned {value!r}, expected its metrics")
    if "error" in value:
        kind = getattr(errors, str(value["error"]), MetainitError)
        raise kind(value["text"])
    if not run.finished():
        raise MetainitError(
            f"the run has ended, but {run.checkpoint} is not on this machine: give a folder that the driver "
            "and the workers share"
        )
    metrics: dict[str, float] = value["metrics"]
    return metrics


def _reason(error: Exception) -> str:
    """Return the last line of the first worker's error, which says what went wrong."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    text = str(failures[min(failures)]).strip()
    return text.splitlines()[-1] if text else type(error).__name__
