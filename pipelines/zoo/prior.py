"""Where the fits of a zoo begin: the checkpoint of a prior, which is trained first where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from metainit.checkpoint import SUFFIX
from metainit.errors import RecipeError, RegistryError, suggestion
from pipelines.recipe import load_recipe, recipe_names
from pipelines.registry import SCHEME, Registry, cached, load_source
from pipelines.zoo.recipe import ZooRecipe

if TYPE_CHECKING:
    from pipelines.families import Note
    from pipelines.recipe import Recipe

Train = Callable[["Recipe", "Note"], None]
"""Trains and registers a recipe."""


def base_file(recipe: ZooRecipe, note: Note, train: Train | None = None) -> Path:
    """Return the local file of the checkpoint that a zoo's prior names.

    A prior's recipe stands for the champion of its name, else the newest version; where nothing is
    registered, `train` is called first, with the zoo's data where it names some.

    Raises:
        RecipeError: it names nothing that there is.
        RegistryError: the reference does not exist, or the registry cannot be reached.
    """
    source = recipe.prior
    if source.endswith(SUFFIX):
        file = Path(source).expanduser()
        if not file.is_file():
            raise RecipeError(f"prior: there is no file {source}")
        return file
    if source.startswith(SCHEME):
        return load_source(source)
    if source not in (names := recipe_names()):
        raise RecipeError(
            f"prior: {source!r} is no recipe; {suggestion(source, names)} (or name a file *{SUFFIX}, or "
            f"{SCHEME}name@alias)"
        )
    registry = Registry()
    if not _versions(registry, source):
        places = [f"{key}={value}" for key, value in recipe.places.items() if key.startswith("domain.")]
        prior = load_recipe(source, places)
        note(f"nothing is registered as {source!r}: training it first, and measuring it, which takes minutes")
        (train or train_prior)(prior, note)
    return cached(registry, registry.resolve(source))


def train_prior(recipe: Recipe, note: Note) -> None:
    """Train a recipe on Ray in its default folder, measure it, and register it, as `metainit train` does."""
    from pipelines.finish import after_training
    from pipelines.folder import default_folder
    from pipelines.ray_train import run_on_ray
    from pipelines.tracking import MlflowSink

    def progress(step: int, steps: int, loss: float, _: float) -> None:
        if step % max(1, steps // 20) == 0:
            note(f"{recipe.name}: step {step} of {steps}, loss {loss:.4g}")

    outcome = run_on_ray(recipe, default_folder(recipe), progress=progress, note=note)
    assert isinstance(outcome.sink, MlflowSink)
    with outcome.sink as sink:
        after_training(outcome.prepared, outcome.checkpoint, sink, note=note)


def _versions(registry: Registry, name: str) -> int:
    """Return how many versions a name has; none where it is not registered."""
    try:
        return len(registry.versions(name)) if name in registry.names() else 0
    except RegistryError as error:
        raise RegistryError(f"prior: {error}") from error
