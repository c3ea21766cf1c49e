"""The subcommand `metainit demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

RECIPE = "image-photos"


def demo(
    out: Annotated[Path, typer.Option(help="folder for the run and the pictures")] = Path("demo-out"),
    quick: Annotated[bool, typer.Option("--quick", help="a short training and fewer held-out crops")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="answer in JSON")] = False,
) -> None:
    """Train a prior, register it, serve it, fetch it and use it; exit 1 unless it is 6 dB better."""
    from pipelines.recipe import load_recipe
    from pipelines.train_commands import display
    from serving.demo import CROPS, NEEDED_DECIBELS, QUICK, check_fetched, tour

    recipe = load_recipe(RECIPE, QUICK if quick else ())
    with display() as shown:
        result = tour(recipe, out.absolute(), shown.note, shown.progress)
    check_fetched(result)
    headline, finished = result.headline, result.finished
    if as_json:
        answer = {
            "headline": headline.model_dump(),
            "version": finished.version.reference,
            "aliases": list(finished.version.aliases),
            "gate": finished.decision.reason,
            "fetched": round(result.fetched, 4),
            "picture": str(result.picture),
            "seconds": result.seconds,
            "convincing": result.convincing,
        }
        typer.echo(json.dumps(answer, indent=2))
    else:
        typer.echo(finished.evidence.table())
        typer.echo("")
        typer.echo(f"registered as {finished.version.reference}; gate: {finished.decision.reason}")
        crops = min(CROPS, len(finished.evidence.record.task_ids))
        typer.echo(
            f"fetched over HTTP and adapted to the first {crops} of these tasks: {result.fetched:.2f} dB, as "
            "measured for these"
        )
        typer.echo("seconds: " + ", ".join(f"{name} {value:.0f}" for name, value in result.seconds.items()))
        typer.echo(f"pictures: {result.picture} and {result.picture.with_name('evidence.png')}")
        _next_steps()
    if not result.convincing:
        typer.secho(
            f"the prior is {headline.gain:+.2f} dB [{headline.low:+.2f}, {headline.high:+.2f}] from the best "
            f"control ({headline.control}) after {headline.steps} steps, expected at least "
            f"{NEEDED_DECIBELS:+.0f} dB",
            err=True,
            fg=typer.colors.RED,
        )
        raise typer.Exit(1)


def _next_steps() -> None:
    typer.echo(
        "\nwhat to try next:\n"
        "  metainit fit PICTURE --init models:/image-photos -o OUT   fit your own picture in two steps\n"
        "  metainit train image-folder --set domain.data=FOLDER           a prior for your own images\n"
        "  metainit list; metainit show image-photos                      what is registered, and its card\n"
        "  metainit serve                                                 the endpoint, until Ctrl-C\n"
        "  metainit doctor                                                what is wrong with a set-up"
    )
