"""JSON that came with a checkpoint, from whoever wrote that: read within limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from metainit.errors import CheckpointError

MAX_EVIDENCE_BYTES = 256 << 20
MAX_DEPTH = 64


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; what is no number in JSON (NaN, infinity) becomes null.

    Raises:
        CheckpointError: it cannot be read, is larger or deeper than the limits, or no JSON object.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return parse_object(content, str(path))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; mend it or take it away") from error


def parse_object(content: bytes, origin: str) -> dict[str, Any]:
    """Parse a JSON object within the limits; `origin` names it in errors.

    Raises:
        CheckpointError: as for `read_object`.

    Example:
        >>> parse_object(b'{"gain": NaN}', 'evidence')
        {'gain': None}
    """
    if len(content) > MAX_EVIDENCE_BYTES:
        raise CheckpointError(f"{origin} has more than {MAX_EVIDENCE_BYTES} bytes")
    try:
        value = json.loads(content, parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{origin} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{origin} holds a JSON {type(value).__name__}, expected an object")
    if _deeper(value, MAX_DEPTH):
        raise CheckpointError(f"{origin} is nested deeper than {MAX_DEPTH}")
    return value


def _deeper(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested in one another more than `limit` times."""
    level = [value]
    for _ in range(limit):
        inside = (c for v in level for c in (v.values() if isinstance(v, dict) else v))
        level = [c for c in inside if isinstance(c, dict | list)]
    return bool(level)
