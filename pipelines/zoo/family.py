"""Zoos in the registry of families: recipes are read like any other, but built, not trained."""

from __future__ import annotations

from typing import Any, NoReturn

from metainit.errors import RecipeError
from pipelines.families import Family
from pipelines.recipe import Recipe
from pipelines.zoo.recipe import ZooRecipe

COMMAND = "zoo build"


def refuse(recipe: Recipe, *_: Any) -> NoReturn:
    """Say how a zoo is made.

    Raises:
        RecipeError: always.
    """
    raise RecipeError(
        f"{recipe.name!r} is the recipe of a zoo, and nothing that is trained: build it with `metainit "
        f"{COMMAND} {recipe.name}`"
    )


def _refuse_prepared(prepared: Any, *_: Any) -> NoReturn:
    refuse(prepared.recipe)


FAMILY = Family(
    recipe=ZooRecipe,
    prepare=refuse,
    learner=_refuse_prepared,
    measure=_refuse_prepared,
    measure_again=_refuse_prepared,
    illustrate=_refuse_prepared,
    use="metainit zoo show {name}",
    command=COMMAND,
)
