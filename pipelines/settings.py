"""Settings of a recipe as a user writes them: specs laid flat, ``a.b=value`` on top, errors as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from metainit.errors import RecipeError, suggestion
from pipelines.safe_yaml import parse_yaml


def flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{name, width}`` for ``{name, arguments: {width}}``; what is flat already stays.

    Example:
        >>> flat({'name': 'siren', 'arguments': {'width': 64}})
        {'name': 'siren', 'width': 64}
    """
    arguments = spec.get("arguments", {})
    if not isinstance(arguments, Mapping):
        return dict(spec)
    return {k: v for k, v in spec.items() if k != "arguments"} | dict(arguments)


def nested(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{name, arguments: {width}}`` for ``{name, width}``; what is nested already stays.

    Example:
        >>> nested({'name': 'siren', 'width': 64})
        {'name': 'siren', 'arguments': {'width': 64}}
    """
    arguments = flat(spec)
    name = {"name": arguments.pop("name")} if "name" in arguments else {}
    return {**name, "arguments": arguments}


def set_in(whole: dict[str, Any], override: str, specs: Sequence[str] = ()) -> None:
    """Set one ``a.b=value`` in a plain recipe whose keys `specs` hold flat specs.

    Raises:
        RecipeError: it is not of that form, or `a` holds no keys.

    Example:
        >>> recipe = {'outer': {'steps': 3}}
        >>> set_in(recipe, 'outer.steps=500')
        >>> recipe
        {'outer': {'steps': 500}}
    """
    path, sign, text = override.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise RecipeError(f"cannot set {override!r}: expected key=value, such as outer.steps=500")
    if keys[0] in specs and len(keys) > 2 and keys[1] == "arguments":
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


def sentence(problem: Any, model: type[BaseModel]) -> str:
    """Return one of pydantic's problems with a value for `model` as a sentence that names the dotted key."""
    keys = [str(part) for part in problem["loc"]]
    where = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        return f"{where} is no key; {suggestion(keys[-1], _fields(model, keys[:-1]))}"
    if problem["type"] == "missing":
        return f"{where} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message}, got {problem['input']!r}"
        if keys and not isinstance(problem["input"], Mapping)
        else f"{where}: {message}".removeprefix(": ")
    )


def _fields(model: type[BaseModel], keys: Iterable[str]) -> list[str]:
    """Return the names of the fields of the record that lies at a place in a recipe."""
    for key in keys:
        field = model.model_fields.get(key)
        kinds = [field.annotation, *get_args(field.annotation)] if field else []
        inner = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)
