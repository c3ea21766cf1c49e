"""Nested settings under dotted names, as overrides and tracked parameters have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted names.

    Example:
        >>> flatten({'network': {'name': 'siren', 'width': 64}, 'steps': 2})
        {'network.name': 'siren', 'network.width': 64, 'steps': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
