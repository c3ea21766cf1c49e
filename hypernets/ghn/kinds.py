"""Which hypernetwork a checkpoint of kind `ghn` holds: what the method on its card says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from hypernets.ghn.ghn3_start import Ghn3Start
from hypernets.ghn.initialization import Predicted
from hypernets.ghn.start import NetworkStart
from metainit.checkpoint import Checkpoint
from metainit.errors import CheckpointError, suggestion

METHODS: Mapping[str, Callable[[Checkpoint, dict[str, Any] | None], NetworkStart]] = MappingProxyType(
    {"ghn": Predicted, "logah": Predicted, "ghn3": Ghn3Start}
)
"""Method on the card -> the start that it makes."""


def start_of(stored: Checkpoint, evidence: dict[str, Any] | None = None) -> NetworkStart:
    """Return the start that a checkpoint of kind `ghn` holds.

    Raises:
        CheckpointError: the card names another method, or the tensors are not those of it.
    """
    name = stored.card.method.name
    if name not in METHODS:
        raise CheckpointError(
            f"{stored.card.name!r} was made by {name!r}, which is no method of a hypernetwork; "
            f"{suggestion(name, METHODS)}"
        )
    return METHODS[name](stored, evidence)
