"""What a safetensors file holds, read from its header alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metainit.checkpoint import HEADER_KEY, Limits
from metainit.errors import CheckpointError

LARGEST = Limits().header_bytes


@dataclass(frozen=True)
class Held:
    """One tensor of a file: its type as safetensors writes it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


def tensors_of(path: Path) -> Mapping[str, Held]:
    """Return the tensors of a file that was verified before, by name, in the order of their bytes.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > LARGEST:
                raise CheckpointError(f"{path} claims a header of {length} bytes, expected at most {LARGEST}")
            header = json.loads(stream.read(length))
        entries = sorted(
            ((name, entry) for name, entry in header.items() if name != HEADER_KEY),
            key=lambda item: item[1]["data_offsets"],
        )
        return {name: Held(entry["dtype"], tuple(entry["shape"])) for name, entry in entries}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} has no readable safetensors header: {error}") from error
