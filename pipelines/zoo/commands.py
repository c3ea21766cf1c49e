"""The subcommands of a zoo: build one, and show what is in one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.train_commands import (
    AsJson,
    RecipeName,
    Settings,
    display,
    duration,
    going_on,
    load_or_refuse,
)

if TYPE_CHECKING:
    from hypernets.generator.zoo import Zoo
    from pipelines.zoo.preparation import PreparedZoo

zoo = typer.Typer(
    name="zoo",
    help="Zoos: data sets of trained weights that a generator learns from.",
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@zoo.command()
def build(
    recipe: RecipeName,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the zoo; one in METAINIT_HOME by default")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit many tasks from one prior on Ray, and record the zoo; goes on where it was interrupted."""
    from metainit.places import data_folder
    from pipelines.ray_train import open_run
    from pipelines.zoo.build import build_zoo
    from pipelines.zoo.on_ray import on_ray
    from pipelines.zoo.preparation import prepare_zoo
    from pipelines.zoo.prior import base_file
    from pipelines.zoo.recipe import ZooRecipe
    from pipelines.zoo.tracking import record_zoo

    chosen = load_or_refuse(recipe, settings)
    if not isinstance(chosen, ZooRecipe):
        raise typer.BadParameter(f"{chosen.name!r} is not the recipe of a zoo: use `metainit train {recipe}`")
    with display() as shown:
        with going_on(data_folder()):
            base = base_file(chosen, shown.note)
        prepared = prepare_zoo(chosen, base)
        folder = (out or default_folder(prepared)).absolute()
        shown.note(f"{chosen.name} -> {folder}; starting Ray")
        with going_on(folder):
            built = build_zoo(prepared, base, folder, runner=on_ray, note=shown.note, progress=shown.fits)
        if not built.fitted:
            shown.note("all fits were there already: nothing was fitted again")
        shown.note("recording")
        with open_run(chosen, folder) as sink:
            record_zoo(built, sink)
    answer = described(built.zoo) | {
        "fitted": built.fitted,
        "seconds": built.seconds,
        "run_id": sink.run_id,
        "store": sink.connection.shown,
    }
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    typer.echo(text_of(answer))
    if built.fitted:
        typer.echo(
            f"{built.fitted} fits in {duration(built.seconds)} ({built.fitted / built.seconds:.1f} a second)"
        )


@zoo.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME|DIR", help="a finished zoo's name, or its folder")],
    as_json: AsJson = False,
) -> None:
    """Say what is in a zoo: its fits, what was left out and why, and whether weights can be generated."""
    from hypernets.generator.zoo import read_zoo
    from pipelines.zoo.tracking import find_zoo

    answer = described(read_zoo(find_zoo(name)))
    typer.echo(json.dumps(answer, indent=2) if as_json else text_of(answer))


def default_folder(prepared: PreparedZoo) -> Path:
    """Return the folder of a zoo in the data folder: another one for another recipe, base or data."""
    from metainit.places import data_folder

    belonging = prepared.belonging
    mark = hashlib.sha256(f"{belonging.key}{belonging.base}".encode()).hexdigest()[:12]
    return data_folder() / "zoos" / f"{prepared.recipe.name}-{mark}"


def described(found: Zoo) -> dict[str, Any]:
    """Return what is in a zoo as a JSON value."""
    from hypernets.generator.zoo import SPLITS

    manifest = found.manifest
    counts = {split: manifest.count(split) for split in SPLITS}
    medians = {
        split: {
            "loss": float(found.members(split).losses.median()),
            manifest.metric: float(found.metric(split).median()),
        }
        for split, count in counts.items()
        if count.members
    }
    judged = manifest.generatability
    return {
        "name": manifest.name,
        "folder": str(found.folder),
        "prior": manifest.prior,
        "base": manifest.base,
        "network": manifest.network.model_dump(mode="json"),
        "domain": manifest.domain.model_dump(mode="json"),
        "size": found.layout.size,
        "tensors": len(found.layout.names),
        "fit": manifest.fit.model_dump(mode="json"),
        "shards": len(manifest.shards),
        "counts": {split: count.model_dump(mode="json") for split, count in counts.items() if count.fits},
        "medians": medians,
        "limit": manifest.limit,
        "generatability": None if judged is None else judged.model_dump(mode="json"),
        "verdict": "not judged: fewer than two fits" if judged is None else judged.sentence,
    }


def text_of(answer: dict[str, Any]) -> str:
    """Return what `described` says, for a reader."""
    routine = answer["fit"]["routine"]
    lines = [
        f"{answer['name']}: {answer['size']:,} numbers a fit, of {answer['network']['name']}",
        f"prior: {answer['prior']} ({answer['base'][:12]}); domain: {answer['domain']['name']}",
        f"fit: {answer['fit']['steps']} steps of {routine['optimizer']}, step size {routine['step_size']:g}",
    ]
    for split, count in answer["counts"].items():
        middle = answer["medians"].get(split, {})
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in middle.items())
        lines.append(
            f"{split}: {count['members']:,} members of {count['fits']:,} fits; median {numbers or 'none'}"
        )
        out = {**count["excluded"], **count["duplicates"]}
        if out:
            lines.append("  left out: " + ", ".join(f"{number} ({reason})" for reason, number in out.items()))
    return "\n".join([*lines, answer["verdict"], f"folder: {answer['folder']}"])
