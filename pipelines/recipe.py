"""A recipe: one validated YAML file that names everything a training run needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from metainit.card import Continuation, Record, Spec
from metainit.domains.registry import domain_config
from metainit.errors import RecipeError, suggestion
from metainit.initializers import INITIALIZERS
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks.registry import build
from pipelines.dotted import flatten
from pipelines.safe_yaml import MAX_CHARACTERS, parse_yaml

SUFFIXES = (".yaml", ".yml")
SPECS = ("network", "domain")
OPEN = "???"
"""Stands in a recipe for what only its user can say."""


class DataNote(Record):
    """What the card says about the data, in words: they cannot be told from the pixels."""

    description: str = ""
    licence: str = "not stated"


class EvidenceConfig(Record):
    """How the result is measured: held-out tasks, adaptation steps, and seeds of the controls."""

    tasks: int = Field(default=64, ge=1, le=100_000)
    steps: tuple[int, ...] = Field(default=(0, 1, 2, 5, 10), min_length=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if min(steps) < 0 or list(steps) != sorted(set(steps)):
            raise ValueError("expected steps from 0 on, rising, none twice")
        return steps


class Recipe(Record):
    """Everything that a run needs; frozen, and refused as a whole where anything in it is wrong.

    In YAML, `network` and `domain` are flat: the name and beside it the arguments
    (``network: {name: siren, width: 64}``). The number of inputs and outputs of the network follows from the
    domain unless it is given. `start` fills the network before the first outer step. `continuation` takes
    over when a user goes on past the learned steps. `validation_tasks` are adapted every `validate_every`
    outer steps.

    Example:
        >>> Recipe.model_validate({
        ...     'name': 'tiny', 'network': {'name': 'siren', 'width': 8}, 'domain': {'name': 'ct'},
        ... }).network.arguments
        {'width': 8}
    """

    schema_version: Literal[1] = 1
    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    network: Spec
    domain: Spec
    data: DataNote = DataNote()
    start: str = "siren"
    algorithm: AlgorithmConfig = AlgorithmConfig()
    outer: OuterConfig = OuterConfig()
    seed: int = Field(default=0, ge=0, lt=2**63)
    workers: int = Field(default=1, ge=1, le=4096)
    gpu: bool = False
    dtype: Literal["float32", "float64"] = "float32"
    checkpoint_every: int = Field(default=100, ge=1)
    validate_every: int = Field(default=100, ge=1)
    validation_tasks: int = Field(default=8, ge=0)
    continuation: Continuation | None = None
    evidence: EvidenceConfig = EvidenceConfig()

    @field_validator(*SPECS, mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        return _nested(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _names_exist(self) -> Recipe:
        if self.start not in INITIALIZERS:
            way_out = suggestion(self.start, INITIALIZERS)
            raise RecipeError(f"start: no start is called {self.start!r}; {way_out}")
        domain_config(self.domain)
        build(self.network)
        return self

    def dump(self) -> dict[str, Any]:
        """Return the whole recipe, defaults included, as a JSON value that `read_recipe` reads back."""
        return self.model_dump(mode="json")


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
    whole = {k: _flat(v) if k in SPECS and isinstance(v, Mapping) else v for k, v in value.items()}
    for override in overrides:
        _apply(whole, override)
    if open_keys := [key for key, setting in flatten(whole).items() if setting == OPEN]:
        raise RecipeError(f"{origin}: {open_keys[0]} has to be given: --set {open_keys[0]}=...")
    try:
        return Recipe.model_validate(whole)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{origin}: {_sentence(p)}" for p in error.errors())) from error
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def _flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{name, width}`` for ``{name, arguments: {width}}``; what is flat already stays."""
    arguments = spec.get("arguments", {})
    if not isinstance(arguments, Mapping):
        return dict(spec)
    return {k: v for k, v in spec.items() if k != "arguments"} | dict(arguments)


def _nested(spec: Mapping[str, Any]) -> dict[str, Any]:
    flat = _flat(spec)
    name = {"name": flat.pop("name")} if "name" in flat else {}
    return {**name, "arguments": flat}


def _apply(whole: dict[str, Any], override: str) -> None:
    """Set one ``a.b=value`` in a plain recipe.

    Raises:
        RecipeError: it is not of that form, or `a` holds no keys.
    """
    path, sign, text = override.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise RecipeError(f"cannot set {override!r}: expected key=value, such as outer.steps=500")
    if keys[0] in SPECS and len(keys) > 2 and keys[1] == "arguments":
        del keys[1]
    place = whole
    for depth, key in enumerate(keys[:-1], 1):
        inner = place.get(key)
        if inner is None:
            inner = {}
        if not isinstance(inner, Mapping):
            raise RecipeError(f"cannot set {path}: {'.'.join(keys[:depth])} is {inner!r}, which has no keys")
        place[key] = inner = dict(inner)
        place = inner
    place[keys[-1]] = parse_yaml(text, f"the value of {path}")


def _sentence(problem: Any) -> str:
    """Return one of pydantic's problems as a sentence that names the dotted key."""
    keys = [str(part) for part in problem["loc"]]
    where = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        return f"{where} is no key; {suggestion(keys[-1], _fields(keys[:-1]))}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message}, got {problem['input']!r}"
        if keys and not isinstance(problem["input"], Mapping)
        else f"{where}: {message}".removeprefix(": ")
    )


def _fields(keys: Iterable[str]) -> list[str]:
    """Return the names of the fields of the record that lies at a place in a recipe."""
    model: type[BaseModel] = Recipe
    for key in keys:
        field = model.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
