"""YAML without surprises: no tags, no aliases, no duplicated keys, a limit on size and depth."""

from __future__ import annotations

import re
from typing import Any

import yaml

from metainit.errors import RecipeError

MAX_CHARACTERS = 200_000


class _Loader(yaml.SafeLoader):
    """The safe loader, stricter: aliases and duplicated keys are errors, and 1e-3 is a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; an alias, which can make a small file expand to a huge value, is refused."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.events.AliasEvent):
            mark: Any = event.start_mark
            raise yaml.constructor.ConstructorError(
                problem="aliases are not allowed: write the value out", problem_mark=mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Construct a mapping; a key that stands there twice is refused."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge" or str(key.value) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


# YAML 1.1 reads 1e-3 as a text, since it has no point; everyone who writes it means the number.
_FLOAT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def parse_yaml(text: str, origin: str) -> Any:
    r"""Parse YAML; `origin` names it in errors.

    Raises:
        RecipeError: it is not valid, too long or too deep, has an alias, or a key twice.

    Example:
        >>> parse_yaml('{rate: 1e-3, steps: [0, 1]}', 'text')
        {'rate': 0.001, 'steps': [0, 1]}
        >>> parse_yaml('a: 1\na: 2', 'text')
        Traceback (most recent call last):
        ...
        metainit.errors.RecipeError: text is not valid YAML: the key 'a' stands there twice, line 2
    """
    if len(text) > MAX_CHARACTERS:
        raise RecipeError(f"{origin} has more than {MAX_CHARACTERS} characters: it cannot be a recipe")
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{origin} is not valid YAML: {error.problem}{line}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise RecipeError(f"{origin} is not valid YAML: {error}") from error
    except RecursionError as error:
        raise RecipeError(f"{origin} is nested too deeply") from error
