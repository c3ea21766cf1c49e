"""The tour: train a prior, register it, serve it, fetch it over HTTP, and use it on pictures it never saw."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metainit.errors import MetainitError

if TYPE_CHECKING:
    from metainit.evidence.record import Headline
    from pipelines.finish import Finished
    from pipelines.prior.preparation import PreparedPrior
    from pipelines.recipe import Recipe
    from pipelines.train import Progress

NEEDED_DECIBELS = 6.0
CROPS = 8
AGREEMENT = 0.01
"""How far (dB) the fetched weights may be from the measured ones: they are the same bytes."""
QUICK = (
    "outer.steps=300",
    "evidence.tasks=16",
    "evidence.steps=[0, 1, 2]",
    "evidence.seeds=[0]",
    "validate_every=1000",
)
Note = Callable[[str], None]


@dataclass(frozen=True)
class Tour:
    """What the tour has made and measured."""

    finished: Finished
    picture: Path
    fetched: float
    seconds: dict[str, float]

    @property
    def headline(self) -> Headline:
        """The prior against its best control."""
        headline = self.finished.evidence.headline
        assert headline is not None
        return headline

    @property
    def convincing(self) -> bool:
        """Whether the prior is far enough ahead, with the interval off zero."""
        return self.headline.gain >= NEEDED_DECIBELS and self.headline.low > 0


def tour(recipe: Recipe, out: Path, note: Note, progress: Progress) -> Tour:
    """Walk the whole way once.

    Raises:
        MetainitError: a part of the way failed; the text says which.
    """
    from pipelines.finish import CURVES_PICTURE, PICTURES, after_training
    from pipelines.local_ray import ray_cluster
    from pipelines.prior.evidence import STRIP_PICTURE
    from pipelines.prior.preparation import PreparedPrior
    from pipelines.ray_train import run_on_ray
    from pipelines.tracking import MlflowSink
    from serving.deployments import prepare, start
    from serving.haproxy import free_port

    laps = Laps()
    run = out / "run"
    clear_earlier(run, recipe)
    note("starting Ray and MLflow")
    fast = prepare()  # before Ray, whose processes inherit the settings
    with ray_cluster():
        outcome = run_on_ray(recipe, run, progress=progress)
        assert isinstance(outcome.sink, MlflowSink) and isinstance(outcome.prepared, PreparedPrior)
        laps.lap("train")
        with outcome.sink as sink:
            finished = after_training(outcome.prepared, outcome.checkpoint, sink, note=note)
        laps.lap("evidence and registry")
        note("starting the endpoint")
        with start("127.0.0.1", free_port(), sink.connection.uri, prepared=fast) as endpoint:
            laps.lap("endpoint")
            note(f"fetching the weights from {endpoint.url}")
            reached = adapt_fetched(endpoint.url, finished.version.reference, outcome.prepared)
        laps.lap("fetch and adapt")
    strip = out / STRIP_PICTURE
    for name in (STRIP_PICTURE, CURVES_PICTURE):
        shutil.copyfile(finished.artifacts / PICTURES / name, out / name)
    return Tour(finished, strip, reached, laps.seconds)


def clear_earlier(run: Path, recipe: Recipe) -> None:
    """Remove what an earlier tour left, and nothing else.

    Raises:
        MetainitError: the folder holds something else.
    """
    from pipelines.folder import RECIPE
    from pipelines.recipe import load_recipe

    if not run.exists() or not any(run.iterdir()):
        return
    left = run / RECIPE
    if not left.is_file() or load_recipe(str(left)).name != recipe.name:
        raise MetainitError(f"{run} exists and is not an earlier demo's: choose another folder with --out")
    shutil.rmtree(run)


def adapt_fetched(url: str, reference: str, prepared: PreparedPrior) -> float:
    """Fetch a checkpoint, adapt it to held-out tasks with its own routine, and return the mean metric."""
    import torch

    from metainit.adaptation import Task
    from metainit.client import Client
    from metainit.evidence.measuring import held_out
    from metainit.initialization import from_file
    from metainit.networks import build

    with Client(url) as client:
        start = from_file(client.fetch(reference))
    assert start.card.network is not None
    total = 0.0
    tasks = held_out(prepared.domain, "test", min(CROPS, prepared.recipe.evidence.tasks))
    for task in tasks:
        network = start.init_(build(start.card.network))
        start.adapt(network, Task(prepared.domain, task))
        query = {k: v[0] for k, v in task.query.items()}
        with torch.no_grad():
            rendered = prepared.domain.render(network, query, task.shared)
        total += prepared.domain.metrics(rendered, query)[prepared.domain.metric]
    return total / len(tasks)


def check_fetched(result: Tour) -> None:
    """Make sure that the fetched weights do what the measured ones did.

    Raises:
        MetainitError: they do not.
    """
    record = result.finished.evidence.record
    at = record.steps.index(result.headline.steps)
    candidate = next(c for c in record.curves if c.role == "candidate")
    values = [task[at] for task in candidate.values[0][:CROPS]]
    expected = sum(values) / len(values)
    if abs(expected - result.fetched) > AGREEMENT:
        raise MetainitError(
            f"the weights that came over HTTP reach {result.fetched:.3f} dB on {len(values)} crops, the "
            f"measured ones {expected:.3f} dB: expected the same"
        )


class Laps:
    """Seconds of each part of the way."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Write down the seconds since the last lap."""
        now = time.monotonic()
        self.seconds[name], self._last = round(now - self._last, 1), now
