"""The subcommands that train: here, or on a cluster."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metainit.errors import RecipeError

if TYPE_CHECKING:
    from pipelines.recipe import Recipe

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a shipped recipe's name, or a YAML file")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="a setting on top of the recipe, such as outer.steps=500"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]
DONE = "done.json"
INTERRUPTED = 130
"""The exit status of what Ctrl-C has ended, as shells have it."""
LINE_SECONDS = 10.0
"""How often a line is printed where there is no terminal to draw a bar on."""


def train(
    recipe: RecipeName,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; one in METAINIT_HOME by default")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe on Ray, measure the result, and register it; goes on where it was interrupted."""
    from pipelines.families import family_of
    from pipelines.finish import after_training
    from pipelines.folder import default_folder
    from pipelines.ray_train import run_on_ray
    from pipelines.tracking import MlflowSink

    chosen = load_or_refuse(recipe, settings).pinned()
    folder = (out or default_folder(chosen)).absolute()
    with going_on(folder), display() as shown:
        shown.note(f"{chosen.name} -> {folder}; reading the data and starting Ray")
        outcome = run_on_ray(chosen, folder, progress=shown.progress, note=shown.note)
        assert isinstance(outcome.sink, MlflowSink)
        earlier = None if outcome.trained else _done(folder, outcome.sink.connection.shown)
        with outcome.sink as sink:
            if earlier is None:
                shown.note("measuring on held-out tasks")
                finished = after_training(outcome.prepared, outcome.checkpoint, sink, note=shown.note)
    if earlier is None:
        version, decision = finished.version, finished.decision
        earlier = {
            "name": version.name,
            "reference": version.reference,
            "aliases": list(version.aliases),
            "gate": decision.reason,
            "headline": version.headline,
            "metrics": outcome.metrics,
            "checkpoint": str(outcome.checkpoint),
            "run_id": sink.run_id,
            "store": sink.connection.shown,
        }
        _remember(folder, earlier)
    answer = earlier | {"trained": outcome.trained}
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        _tell(answer, family_of(chosen.family).use)


def submit(
    recipe: RecipeName,
    address: Annotated[str, typer.Option(help="the cluster's dashboard, such as http://head:8265")],
    settings: Settings = None,
    out: Annotated[str | None, typer.Option(help="folder of the run, on the cluster")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the job's log to its end")] = True,
    pull: Annotated[
        Path | None, typer.Option(help="folder here for what the job has registered, once it has succeeded")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="file with the cluster's token")] = None,
    as_json: AsJson = False,
) -> None:
    """Send a recipe to a Ray cluster as a job, with metainit itself; paths must exist on the cluster.

    Ctrl-C ends the following and not the job.
    """
    from pipelines.submit import submit_job

    chosen = load_or_refuse(recipe, settings)
    if pull is not None:
        _refuse_to_pull(chosen, wait)
    job = submit_job(chosen, address, out=out, token_file=token_file)
    answer: dict[str, Any] = {"job": job.id, "address": address}
    if not wait:
        typer.echo(json.dumps(answer) if as_json else job.id)
        return
    typer.echo(f"job {job.id} at {address}", err=True)
    try:
        succeeded = job.follow(lambda text: typer.echo(text, nl=False, err=as_json))
    except KeyboardInterrupt as interrupt:
        typer.echo(f"\n{job.goes_on}", err=True)
        raise typer.Exit(INTERRUPTED) from interrupt
    answer["succeeded"] = succeeded
    if succeeded and pull is not None:
        from pipelines.job_result import pull_result

        version = pull_result(job.id, chosen.name, pull)
        answer |= {"reference": version.reference, "sha256": version.sha256, "path": str(pull)}
        typer.echo(f"{version.reference} -> {pull}", err=as_json)
    if as_json:
        typer.echo(json.dumps(answer))
    if not succeeded:
        typer.secho(f"error: the job {job.id} failed; its log says why", err=True, fg=typer.colors.RED)
        raise typer.Exit(1)


def _refuse_to_pull(recipe: Recipe, wait: bool) -> None:
    """Refuse what --pull cannot do before a job has run for it."""
    from pipelines.families import family_of
    from pipelines.submit import job_environment

    if not wait:
        raise typer.BadParameter(
            "a job has to end before it is pulled: leave out --no-wait", param_hint="--pull"
        )
    if (command := family_of(recipe.family).command) != "train":
        raise typer.BadParameter(f"a job of `metainit {command}` registers no version", param_hint="--pull")
    if not job_environment(os.environ):
        raise typer.BadParameter(
            "set MLFLOW_TRACKING_URI to the address of a server that the cluster reaches too",
            param_hint="--pull",
        )


def load_or_refuse(name: str, settings: list[str] | None) -> Recipe:
    """Load a recipe; a wrong one is bad usage."""
    from pipelines.recipe import load_recipe

    try:
        return load_recipe(name, settings or ())
    except RecipeError as error:
        raise typer.BadParameter(str(error)) from error


def _done(folder: Path, store: str) -> dict[str, Any] | None:
    """Return what this run has answered before, where its version is in the store in use."""
    from pipelines.connection import shown

    try:
        value: dict[str, Any] = json.loads((folder / DONE).read_bytes())
    except (OSError, ValueError):
        return None
    return value if shown(str(value.get("store"))) == store else None


def _remember(folder: Path, answer: dict[str, Any]) -> None:
    from metainit.checkpoint import write_atomically

    write_atomically(folder / DONE, json.dumps(answer, indent=2).encode())


def _tell(answer: dict[str, Any], use: str) -> None:
    from pipelines.answering import headline_text

    if not answer["trained"]:
        typer.echo("this recipe was trained here before; nothing was done again")
    aliases = f" ({', '.join(answer['aliases'])})" if answer["aliases"] else ""
    typer.echo(f"{answer['reference']}{aliases}: {headline_text(answer['headline'])}")
    typer.echo(f"gate: {answer['gate']}")
    typer.echo(f"checkpoint: {answer['checkpoint']}")
    typer.echo(f"next: metainit show {answer['name']}; {use.format(name=answer['name'])}")


class Display:
    """Progress with the time left: a bar on a terminal, else a line now and then, on stderr."""

    def __init__(self, update: Callable[..., None] | None) -> None:
        self._update = update
        self._printed = -math.inf

    def fits(self, done: int, total: int, seconds_left: float) -> None:
        """Show how many of all fits there are."""
        self._show(done, total, f"{done:,} of {total:,} fits{_left(seconds_left)}")

    def note(self, text: str) -> None:
        """Say what is going on."""
        if self._update is None:
            typer.echo(text, err=True)
        else:
            self._update(description=text)

    def progress(self, step: int, steps: int, loss: float, seconds_left: float) -> None:
        """Show how far training is."""
        self._show(step, steps, f"step {step} of {steps}, loss {loss:.4g}{_left(seconds_left)}")

    def _show(self, done: int, total: int, text: str) -> None:
        if self._update is not None:
            self._update(description=text, completed=done, total=total)
        elif done == total or time.monotonic() > self._printed + LINE_SECONDS:
            self._printed = time.monotonic()
            typer.echo(text, err=True)


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Say on Ctrl-C that nothing saved is lost; the exit status is then that of what Ctrl-C has ended."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted: the same command goes on from what is saved in {folder}", err=True)
        raise


@contextmanager
def display() -> Iterator[Display]:
    """Yield something to show progress on: a bar on a terminal, lines elsewhere.

    What libraries print meanwhile goes to stderr (a thread of Ray's does when a process of Ray's is late):
    stdout is the answer's alone.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with redirect_stdout(sys.stderr):
        if not console.is_terminal:
            yield Display(None)
            return
        columns = (SpinnerColumn(), BarColumn(30), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            line = bar.add_task("", total=None)
            yield Display(lambda **changes: bar.update(line, **changes))


def _left(seconds: float) -> str:
    return f", {duration(seconds)} left" if math.isfinite(seconds) else ""


def duration(seconds: float) -> str:
    """Return a time span as a person says it.

    Example:
        >>> duration(40), duration(200), duration(7300)
        ('40 s', '3 min', '2 h 1 min')
    """
    minutes = int(seconds // 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
