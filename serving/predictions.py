"""Predictions that were made: a folder of bounded size, in which the same question finds the same bytes.

* ``<sha256>.safetensors``: a prediction
* ``orders/<key>.<sha256>``: an empty file, which says that a question of this key has that answer
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from metainit.checkpoint import write_atomically
from metainit.transfer import file_sha256

LOGGER = logging.getLogger("metainit.serving")
MOST_BYTES = 8 << 30


@dataclass(frozen=True)
class Kept:
    """A prediction at hand: the SHA-256 and the size of its file."""

    sha256: str
    size: int


class Predictions:
    """A folder of predictions; what was asked for least recently goes when there are too many bytes.

    A file that an earlier process left is verified once before this one gives it out.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        """Use a folder, which is made when the first prediction comes."""
        self.folder, self.most_bytes = folder, most_bytes
        self._verified: set[str] = set()
        self._lock = threading.Lock()

    def find(self, key: str) -> Kept | None:
        """Return the prediction that was kept under a key, or None."""
        for note in self.folder.glob(f"orders/{key}.*"):
            sha256 = note.suffix.removeprefix(".")
            path = self.blob(sha256)
            if path is not None:
                return Kept(sha256, path.stat().st_size)
        return None

    def keep(self, key: str, content: bytes) -> Kept:
        """Keep a prediction under a key.

        Raises:
            CheckpointError: the disk is full.
        """
        kept = Kept(hashlib.sha256(content).hexdigest(), len(content))
        with self._lock:
            write_atomically(self._path(kept.sha256), content)
            write_atomically(self.folder / "orders" / f"{key}.{kept.sha256}", b"")
            self._verified.add(kept.sha256)
            self._make_room(kept.sha256)
        return kept

    def blob(self, sha256: str) -> Path | None:
        """Return the file of a prediction, or None where it is not at hand, or was damaged (then removed)."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        path = self._path(sha256)
        try:
            if sha256 not in self._verified:
                if file_sha256(path) != sha256:
                    LOGGER.error("removed %s: it is damaged", path)
                    path.unlink()
                    return None
                self._verified.add(sha256)
            os.utime(path)
        except OSError:
            return None
        return path

    def _make_room(self, newest: str) -> None:
        """Remove what was used least recently until the rest is small enough; the newest stays."""
        files = [(path, path.stat()) for path in self.folder.glob("*.safetensors")]
        total = sum(status.st_size for _, status in files)
        for path, status in sorted(files, key=lambda item: item[1].st_mtime_ns):
            if total <= self.most_bytes:
                return
            if path.stem != newest:
                path.unlink(missing_ok=True)
                self._verified.discard(path.stem)
                total -= status.st_size
                for note in self.folder.glob(f"orders/*.{path.stem}"):
                    note.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"
