"""What tells a file that was verified from one that was changed since: a mark, from one look at its inode."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from metainit.checkpoint import write_atomically


class Mark(NamedTuple):
    """Inode, size in bytes, and time of the last change of the content in nanoseconds."""

    inode: int
    size: int
    changed: int


def mark_of(path: Path) -> Mark:
    """Return the mark of a file as it is now.

    Raises:
        OSError: there is none.
    """
    found = os.stat(path)
    return Mark(found.st_ino, found.st_size, found.st_mtime_ns)


def read_mark(path: Path) -> Mark | None:
    """Return the mark that a file holds, or None where it holds none."""
    try:
        values = json.loads(path.read_bytes())
        return Mark(*map(int, values))
    except (OSError, ValueError, TypeError):
        return None


def write_mark(path: Path, mark: Mark) -> None:
    """Keep a mark in a file.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_atomically(path, json.dumps(mark).encode())
