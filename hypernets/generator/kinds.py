"""Which start a checkpoint of kind `generator` holds."""

from __future__ import annotations

from typing import Any

from hypernets.generator.start import Generated
from metainit.checkpoint import Checkpoint


def start_of(stored: Checkpoint, evidence: dict[str, Any] | None = None) -> Generated:
    """Return the start that a checkpoint of kind `generator` holds.

    Raises:
        CheckpointError: the card does not say what the generator is made of, or the tensors are not those.
    """
    return Generated(stored, evidence)
