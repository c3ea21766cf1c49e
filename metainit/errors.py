"""Every error that metainit raises on purpose.

MetainitError
├── CheckpointError          a checkpoint file is damaged, too large, or of an unknown version
│   └── DigestError          the bytes are not the ones that were written
├── MismatchError            weights and network do not fit: missing, unexpected, mis-shaped tensors
├── ConditionError           a condition or an observation is not one that a generator takes
├── CopyError                a generator gives copies of what it was trained on
├── GraphError               a network cannot be traced, or an architecture graph is not one
├── SourceError              a source string names nothing that can be loaded
├── RecipeError              a recipe or an option is not valid
├── DataError                a user's file or array cannot be used
├── DivergenceError          training or adaptation left the finite numbers
├── RegistryError            the registry cannot be reached, or refuses
└── EndpointError            the HTTP endpoint cannot be reached, or answers with a problem
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Iterable

COMPARED = 400
"""To compare a word with thousands of choices takes seconds; of so many, those that begin as it does."""
LISTED = 20


class MetainitError(Exception):
    """Base of all errors that metainit raises on purpose; its text is meant for the user."""


class CheckpointError(MetainitError):
    """A checkpoint file is damaged, too large, or of an unknown version."""


class DigestError(CheckpointError):
    """The bytes are not the ones that were written."""


class MismatchError(MetainitError):
    """Weights and network do not fit each other."""


class ConditionError(MetainitError):
    """A condition or an observation is not one that a generator takes."""


class CopyError(MetainitError):
    """A generator gives copies of what it was trained on."""


class GraphError(MetainitError):
    """A network cannot be traced, or an architecture graph is not one."""


class SourceError(MetainitError):
    """A source string names nothing that can be loaded."""


class RecipeError(MetainitError):
    """A recipe or an option is not valid."""


class DataError(MetainitError):
    """A user's file or array cannot be used."""


class DivergenceError(MetainitError):
    """Training or adaptation left the finite numbers."""


class RegistryError(MetainitError):
    """The registry cannot be reached, or refuses what was asked."""


class EndpointError(MetainitError):
    """The HTTP endpoint cannot be reached, or answers with a problem."""


def suggestion(word: str, choices: Iterable[str]) -> str:
    """Return a sentence that names the nearest choice, or the choices: the first 20 of many.

    Example:
        >>> suggestion('sirn', ['siren', 'fourier_mlp'])
        "did you mean 'siren'?"
        >>> suggestion('xyz', ['siren', 'fourier_mlp'])
        'the choices are: fourier_mlp, siren'
    """
    known = sorted(choices)
    middle = bisect.bisect(known, word)
    start = max(0, min(middle - COMPARED // 2, len(known) - COMPARED))
    near = difflib.get_close_matches(word, known[start : start + COMPARED], n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
    return f"the choices are: {', '.join(known[:LISTED])}{more}"
