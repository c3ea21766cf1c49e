"""The families of initializations that can be trained: one entry each, and no branch anywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from metainit.errors import RecipeError, suggestion

if TYPE_CHECKING:
    import torch

    from metainit.card import DataSource
    from metainit.evidence.measuring import Evidence
    from pipelines.learner import Learner
    from pipelines.recipe import Recipe
    from pipelines.world import World

DEFAULT_FAMILY = "prior"
Note = Callable[[str], None]


class Prepared(Protocol):
    """A recipe of some family with its parts built and its data read."""

    @property
    def recipe(self) -> Recipe:
        """What was prepared."""
        ...

    @property
    def source(self) -> DataSource:
        """What the card says about the data."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        ...


@dataclass(frozen=True)
class Family:
    """What a family brings: its recipe, and what is done with one; `Any` is its own `Prepared`.

    Args:
        recipe: the model of its recipes.
        prepare: (recipe, device or the recipe's) -> the recipe with its parts built and its data read.
        learner: (prepared, world) -> what the training loop moves.
        measure: (prepared, checkpoint, note, names of controls or the usual ones) -> evidence on held-out
            tasks.
        measure_again: (prepared, evidence, checkpoint of a champion) -> the champion's evidence on the same
            tasks.
        illustrate: (prepared, checkpoint, evidence, folder): writes pictures beside that of the curves.
        use: the command that uses a result, with ``{name}`` where its name goes.
        command: the command that makes a result.
    """

    recipe: type[Recipe]
    prepare: Callable[[Any, torch.device | None], Prepared]
    learner: Callable[[Any, World], Learner]
    measure: Callable[[Any, Path, Note, Sequence[str] | None], Evidence]
    measure_again: Callable[[Any, Evidence, Path], Evidence]
    illustrate: Callable[[Any, Path, Evidence, Path], None]
    use: str
    command: str = "train"


def _prior() -> Family:
    from pipelines.prior.family import FAMILY

    return FAMILY


def _generator() -> Family:
    from pipelines.generator.family import FAMILY

    return FAMILY


def _ghn() -> Family:
    from pipelines.ghn.family import FAMILY

    return FAMILY


def _zoo() -> Family:
    from pipelines.zoo.family import FAMILY

    return FAMILY


FAMILIES: Mapping[str, Callable[[], Family]] = MappingProxyType(
    {"prior": _prior, "generator": _generator, "ghn": _ghn, "zoo": _zoo}
)
"""Name -> what imports the family."""


def family_of(name: Any) -> Family:
    """Return the family that a recipe names.

    Raises:
        RecipeError: there is none of that name, or a package that it needs is not installed.

    Example:
        >>> family_of('prior').use
        'metainit fit PATH --init models:/{name} -o OUT'
        >>> family_of('pryor')
        Traceback (most recent call last):
        ...
        metainit.errors.RecipeError: family: no family is called 'pryor'; did you mean 'prior'?
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise RecipeError(f"family: no family is called {name!r}; {suggestion(str(name), FAMILIES)}")
    try:
        return FAMILIES[name]()
    except ImportError as error:
        raise RecipeError(
            f"family: {name!r} needs a package that is not installed ({error.name}): "
            "pip install 'metainit[all]'"
        ) from error
