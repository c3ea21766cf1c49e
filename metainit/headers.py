"""What a safetensors file holds and where, read from its header alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metainit.checkpoint import DEFAULT_LIMITS, HEADER_KEY, Limits
from metainit.errors import CheckpointError

LENGTH_BYTES = 8
"""A file begins with so many bytes that say how long the header is that follows."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a file, from `start` to `end`, its type as safetensors writes it, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, Place]:
    """Return the tensors of a file by name, in the order of their bytes, of which none is read.

    Raises:
        CheckpointError: it cannot be read, or has no header that is sound.
    """
    try:
        with path.open("rb") as stream:
            size = path.stat().st_size
            length = header_length(stream.read(LENGTH_BYTES), size, limits)
            places = parse_header(stream.read(length), size - LENGTH_BYTES - length, limits)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return dict(sorted(places.items(), key=lambda item: (item[1].start, item[1].end)))


def header_length(content: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> int:
    """Read how long the header is from the first bytes of a file that has `size` bytes.

    Raises:
        CheckpointError: the file is too short for it, or it is longer than the limits allow.

    Example:
        >>> header_length(bytes([62, 0, 0, 0, 0, 0, 0, 0]), 78)
        62
    """
    length = int.from_bytes(content[:LENGTH_BYTES], "little")
    if size < LENGTH_BYTES or length > min(limits.header_bytes, size - LENGTH_BYTES):
        raise CheckpointError(f"claims a header of {length} bytes in {size}; it is no checkpoint")
    return length


def parse_header(content: bytes, size: int, limits: Limits = DEFAULT_LIMITS) -> dict[str, Place]:
    """Read where tensors lie from the header of a safetensors file that has `size` bytes of them.

    Raises:
        CheckpointError: it is not such a header, or holds more than the limits allow.

    Example:
        >>> head = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
        >>> parse_header(head, 8)['w'].end - 8 - len(head)
        8
    """
    first = LENGTH_BYTES + len(content)
    try:
        header = json.loads(content)
        header.pop(HEADER_KEY, None)
        places = {name: _place(name, entry, first) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"no readable safetensors header: {error}") from error
    if len(places) > limits.tensors:
        raise CheckpointError(f"{len(places)} tensors, expected at most {limits.tensors}")
    for place in places.values():
        if not first <= place.start <= place.end <= first + size:
            raise CheckpointError(f"{place.name!r} lies outside the file, at {place.start} to {place.end}")
    if sum(place.end - place.start for place in places.values()) > size:
        raise CheckpointError("tensors lie on top of each other")
    return places


def _place(name: str, entry: Mapping[str, Any], first: int) -> Place:
    start, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(number) is int for number in (start, end, *shape)) or type(entry["dtype"]) is not str:
        raise TypeError(f"{name!r} is described by other things than numbers")
    return Place(name, entry["dtype"], shape, first + start, first + end)
