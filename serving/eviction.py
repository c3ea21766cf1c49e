"""Room on a full disk: versions that no alias means go, those that were read longest ago first."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from metainit.bounded import read_object
from metainit.errors import CheckpointError

LOGGER = logging.getLogger("metainit.serving")


def evict(folder: Path, spared: Collection[str], needed: int) -> int:
    """Delete blobs of a store, and what lies beside them, for so many bytes; return how many were freed.

    Nothing is lost: whoever asks for such a version again has it brought from the registry. A file that is
    being sent stays readable to its end. Where all that may go is too little, nothing goes.

    Args:
        folder: of the store, laid out as `serving.cache` says.
        spared: SHA-256 of blobs that stay whatever is needed.
        needed: bytes.
    """
    freed = 0
    gone: set[str] = set()
    candidates = sorted(_candidates(folder, spared))
    if sum(size for _, _, size in candidates) < needed:
        return 0
    for _, path, size in candidates:
        if freed >= needed:
            break
        with suppress(OSError):  # another process was quicker
            path.unlink()
            freed += size
            gone.add(path.stem)
    if gone:
        LOGGER.warning("the disk is nearly full: %d versions that no alias means were dropped", len(gone))
        for sha256 in gone:
            (folder / "marks" / f"{sha256}.json").unlink(missing_ok=True)
        for card in (folder / "versions").glob("*/*/card.json"):
            if _digest(card) in gone:
                shutil.rmtree(card.parent, ignore_errors=True)
    return freed


def _candidates(folder: Path, spared: Collection[str]) -> Iterator[tuple[float, Path, int]]:
    for path in (folder / "blobs").glob("*.safetensors"):
        with suppress(OSError):
            status = path.stat()
            if path.stem not in spared:
                yield max(status.st_atime, status.st_ctime), path, status.st_size


def _digest(card: Path) -> object:
    try:
        return read_object(card).get("sha256")
    except (OSError, CheckpointError):
        return None
