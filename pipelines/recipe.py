"""A recipe: one validated YAML file that names everything a training run needs.

What the recipes of all families say is here; the rest is in the model of a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator

from metainit.card import Record
from metainit.errors import RecipeError, suggestion
from pipelines.dotted import flatten
from pipelines.families import DEFAULT_FAMILY, family_of
from pipelines.safe_yaml import MAX_CHARACTERS, parse_yaml
from pipelines.settings import flat, sentence, set_in

SUFFIXES = (".yaml", ".yml")
OPEN = "???"
"""Stands in a recipe for what only its user can say."""


class DataNote(Record):
    """What the card says about the data, in words: they cannot be told from the pixels."""

    description: str = ""
    licence: str = "not stated"


class EvidenceConfig(Record):
    """How the result is measured: adaptation steps, and seeds of the controls."""

    steps: tuple[int, ...] = Field(default=(0, 1, 2, 5, 10), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if min(steps) < 0 or list(steps) != sorted(set(steps)):
            raise ValueError("expected steps from 0 on, rising, none twice")
        return steps


class Recipe(Record):
    """What every run needs; frozen, and refused as a whole where anything in it is wrong.

    `family` chooses the model that has the other keys. The result is validated every `validate_every` steps.
    `cpus` is what each worker gets, in CPUs and in threads; a share of what is free unless it is given.
    """

    SPECS: ClassVar[tuple[str, ...]] = ()
    """Keys that hold a name and, beside it, the arguments."""
    NOT_TRAINING: ClassVar[frozenset[str]] = frozenset(
        {"evidence", "checkpoint_every", "validate_every", "data", "cpus"}
    )
    """Settings that may change when a run is resumed: they do not change the weights."""
    FOLLOWING: ClassVar[frozenset[str]] = frozenset()
    """Keys that a card has beside the recipe's own: they follow from recipe and data."""
    LATER: ClassVar[frozenset[str]] = frozenset()
    """Keys that runs of earlier versions have not recorded: where one is not there, anything goes."""

    schema_version: Literal[1] = 1
    family: str = DEFAULT_FAMILY
    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: DataNote = DataNote()
    seed: int = Field(default=0, ge=0, lt=2**63)
    workers: int = Field(default=1, ge=1, le=4096)
    cpus: int | None = Field(default=None, ge=1, le=4096)
    gpu: bool = False
    checkpoint_every: int = Field(default=100, ge=1)
    validate_every: int = Field(default=100, ge=1)

    @property
    def method(self) -> str:
        """The name of the method, as it stands on a card."""
        return self.family

    @property
    def places(self) -> dict[str, Any]:
        """Key, as it is written in the recipe -> where data lie on some machine."""
        return {}

    def pinned(self) -> Recipe:
        """Return the recipe with the digest of what it names, where a name may come to mean another thing."""
        return self

    def dump(self) -> dict[str, Any]:
        """Return the whole recipe, defaults included, as a JSON value that `read_recipe` reads back."""
        return self.model_dump(mode="json")

    def determining(self) -> dict[str, Any]:
        """Return the part of `dump` that the weights follow from."""
        return {k: v for k, v in self.dump().items() if k not in self.NOT_TRAINING}

    def recorded(self) -> dict[str, Any]:
        """Return what a card says of the recipe: `determining`, without places on a machine.

        The same data in another folder, or another number of evidence tasks, give the same bytes.
        """
        return self.determining()


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package.

    Example:
        >>> 'image-photos' in recipe_names()
        True
    """
    folder = files("pipelines") / "recipes"
    return sorted(Path(f.name).stem for f in folder.iterdir() if f.name.endswith(SUFFIXES))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a shipped recipe by its name, or any from a YAML file, and apply overrides.

    Args:
        name_or_path: a name in `recipe_names()`, or a path that ends in .yaml or .yml.
        overrides: settings ``a.b=value`` on top; values are YAML.

    Raises:
        RecipeError: there is no such recipe, or it is not valid; the text names the key.
        DataError: arguments of the domain contradict each other.

    Example:
        >>> load_recipe('image-photos-debug', ['outer.steps=3', 'network.width=8']).outer.steps
        3
        >>> load_recipe('image-photos-debug', ['outer.stepz=3'])
        Traceback (most recent call last):
        ...
        metainit.errors.RecipeError: recipe image-photos-debug: outer.stepz is no key; did you mean 'steps'?
    """
    text = str(name_or_path)
    if text.endswith(SUFFIXES):
        try:
            with Path(text).open(encoding="utf-8") as stream:
                content = stream.read(MAX_CHARACTERS + 1)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {text}: {error}") from error
    elif text in (names := recipe_names()):
        content = (files("pipelines") / "recipes" / f"{text}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"no recipe is called {text!r}; {suggestion(text, names)} (a file must end in {SUFFIXES[0]})"
        )
    return read_recipe(parse_yaml(content, f"recipe {text}"), f"recipe {text}", overrides)


def read_recipe(value: Any, origin: str = "recipe", overrides: Iterable[str] = ()) -> Recipe:
    """Validate a recipe given as a plain value; `origin` names it in errors.

    Raises:
        RecipeError: it is not valid.
        DataError: arguments of the domain contradict each other.
    """
    if not isinstance(value, Mapping):
        raise RecipeError(f"{origin} holds a {type(value).__name__}, expected keys and values")
    try:
        model = family_of(value.get("family", DEFAULT_FAMILY)).recipe
        whole = {k: flat(v) if k in model.SPECS and isinstance(v, Mapping) else v for k, v in value.items()}
        for override in overrides:
            set_in(whole, override, model.SPECS)
        if open_keys := [key for key, setting in flatten(whole).items() if setting == OPEN]:
            raise RecipeError(f"{open_keys[0]} has to be given: --set {open_keys[0]}=...")
        return model.model_validate(whole)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{origin}: {sentence(p, model)}" for p in error.errors())) from error
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error
