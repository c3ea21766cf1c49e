"""From a recipe to the things that training moves, whatever the family."""

from __future__ import annotations

import torch

from metainit.errors import RecipeError
from pipelines.families import Prepared, family_of
from pipelines.recipe import Recipe

__all__ = ["Prepared", "device_of", "prepare"]


def prepare(recipe: Recipe, device: torch.device | None = None) -> Prepared:
    """Build what a recipe names; everything that can be wrong with it or its data shows here.

    `device` is the recipe's, unless it is given: a driver may have no GPU where its workers do.

    Raises:
        RecipeError: parts of the recipe do not fit each other, or there is no GPU.
        DataError: the data cannot be used.

    Example:
        >>> from pipelines.recipe import load_recipe
        >>> prepare(load_recipe('ct-phantoms-debug')).spec.arguments['out_features']
        1
    """
    return family_of(recipe.family).prepare(recipe, device)


def device_of(recipe: Recipe, device: torch.device | None = None) -> torch.device:
    """Return the device that is given, else the recipe's.

    Raises:
        RecipeError: it is a GPU, and there is none.
    """
    chosen = device or torch.device("cuda" if recipe.gpu else "cpu")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("gpu is set, but there is no CUDA device here: set gpu=false, or run on a cluster")
    return chosen
