"""Fill a registry with what the page's picture shows: `python docs/web_shelf.py FOLDER`.

A few recipes are trained in this process, shorter than they are meant, measured and registered in an MLflow
store of the folder. All data are synthesised or ship with scikit-image and scikit-learn. What is registered
already is not trained again.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipelines.finish import after_training
from pipelines.preparation import prepare
from pipelines.recipe import load_recipe
from pipelines.registry import Registry
from pipelines.tracking import MlflowSink
from pipelines.train import train

SHORT = ("evidence.tasks=24", "validate_every=1000", "checkpoint_every=150")
SMALL = ("evidence.tasks=12", "validate_every=1000")
SHOWN = (
    ("digits", (*SHORT, "outer.steps=300", "evidence.seeds=[0,1,2]")),
    ("ct-phantoms-debug", (*SMALL, "name=ct-phantoms-16px", "outer.steps=300")),
    ("seg-synth-debug", (*SMALL, "name=seg-synth-16px")),
    ("ghn-digits-debug", ("name=ghn-digits-small",)),
    ("image-photos", (*SHORT, "outer.steps=60", "evidence.seeds=[0]", "evidence.tasks=16")),
    ("image-photos", (*SHORT, "outer.steps=450")),
)
"""Recipes and their settings, one version each, in the order in which they are registered."""


def main() -> None:
    """Train, measure and register."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    stock(parser.parse_args().folder)


def stock(folder: Path) -> str:
    """Fill the registry of a folder and return its address."""
    home = folder.absolute() / "home"
    home.mkdir(parents=True, exist_ok=True)
    os.environ["METAINIT_HOME"] = str(home)
    uri = f"sqlite:///{home}/mlflow.db"
    for number, (name, settings) in enumerate(SHOWN):
        run = folder / "runs" / f"{number}-{name}"
        if (run / "registered").is_file():
            continue
        recipe = load_recipe(name, settings)
        prepared = prepare(recipe)
        with MlflowSink(recipe.name, recipe.model_dump(mode="json"), uri=uri) as sink:
            checkpoint = train(recipe, run, sink=sink, prepared=prepared).checkpoint
            finished = after_training(prepared, checkpoint, sink, note=print)
        (run / "registered").write_text(finished.version.reference)
        print(f"{finished.version.reference}: {finished.decision.reason}", flush=True)
    names = Registry(uri).names()
    print(f"{uri}: {', '.join(names)}")
    return uri


if __name__ == "__main__":
    main()
