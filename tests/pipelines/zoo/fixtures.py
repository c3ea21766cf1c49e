"""A prior that was never trained and some images: what building a zoo needs, in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, Continuation, Method, Spec
from metainit.initialization import load
from metainit.networks import build
from pipelines.recipe import read_recipe
from pipelines.zoo.preparation import PreparedZoo, prepare_zoo
from pipelines.zoo.recipe import ZooRecipe

NETWORK = {"width": 8, "depth": 2, "in_features": 2, "out_features": 1}
IMAGES = {"height": 6, "width": 6, "channels": 1, "fit": "resize", "flip": False}
SETTINGS: dict[str, Any] = {
    "family": "zoo",
    "name": "toy",
    "fit": {"step_size": 5e-3, "steps": 10},
    "members": 30,
    "held_out": {"validation": 2, "test": 3},
    "shard": 12,
    "batch": 5,
}


def prior_in(folder: Path, seed: int = 0) -> Path:
    """Write a prior for small grey images."""
    spec = Spec(name="siren", arguments=NETWORK)
    network = load("siren").init_(build(spec), seed=seed)
    card = Card(
        kind="prior",
        name="images",
        method=Method(name="maml"),
        network=spec,
        domain=Spec(name="image", arguments=IMAGES),
        routine=AdaptationRoutine(steps=2, step_size=0.01, continuation=Continuation(step_size=1e-3)),
    )
    tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}
    checkpoint.save(folder / f"prior-{seed}.safetensors", tensors, card)
    return folder / f"prior-{seed}.safetensors"


def images_in(folder: Path, count: int = 50) -> Path:
    """Write smooth random images with classes."""
    rng = np.random.default_rng(0)
    coarse = rng.random((count, 3, 3), dtype=np.float32)
    file = folder / "images.npz"
    np.savez(file, x=np.kron(coarse, np.ones((1, 2, 2), dtype=np.float32)), y=np.arange(count) % 4)
    return file


def recipe_of(folder: Path, **changes: Any) -> ZooRecipe:
    """Return the recipe of a small zoo."""
    folder.mkdir(parents=True, exist_ok=True)
    file = images_in(folder)
    value = {"prior": str(prior_in(folder)), "domain": {"data": str(file), "label_array": "y"}}
    recipe = read_recipe(SETTINGS | value | changes)
    assert isinstance(recipe, ZooRecipe)
    return recipe


def prepared_in(folder: Path, **changes: Any) -> PreparedZoo:
    """Return the recipe of a small zoo with its parts."""
    recipe = recipe_of(folder, **changes)
    return prepare_zoo(recipe, Path(recipe.prior))
