"""What was computed on request: a folder of bounded size, in which the same question finds the same bytes.

* ``<sha256>.safetensors``: weights that were predicted, generated or derived
* ``orders/<first two letters of the key>/<key>.<sha256>``: an empty file, which says that a question of this
  key has that answer
* ``incoming/<random>/``: what workers write for one process of the endpoint
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metainit.checkpoint import write_atomically
from metainit.errors import CheckpointError
from metainit.transfer import file_sha256
from serving.marks import Mark, mark_of

LOGGER = logging.getLogger("metainit.serving")
MOST_BYTES = 8 << 30
OLD_SECONDS = 86_400.0
OWN_OLD_SECONDS = 3_600.0
"""Age at which a file in the own inbox is of an order that nobody waits for any more."""
COUNT_SECONDS, COUNT_SHARE = 60.0, 20
"""All files are counted after so long, and after this part of the bytes: other processes add some too."""
SPARED = 0.9
"""Share of the bytes that is left where some have to go."""


@dataclass(frozen=True)
class Kept:
    """A prediction at hand: the SHA-256 and the size of its file."""

    sha256: str
    size: int


class Predictions:
    """A folder of predictions; what was asked for least recently goes when there are too many bytes.

    A file that another process left is verified once before this one gives it out, and again once changed.
    When it was asked for last is its time of access: that of the change tells what was changed.
    """

    def __init__(self, folder: Path, most_bytes: int = MOST_BYTES) -> None:
        """Use a folder, which is made when the first prediction comes."""
        self.folder, self.most_bytes = folder, most_bytes
        self._inbox = folder / "incoming" / secrets.token_hex(16)
        self._verified: dict[str, Mark] = {}
        self._lock = threading.Lock()
        self._counted: int | None = None
        self._since, self._counted_at = 0, 0.0

    def inbox(self) -> str:
        """Return the folder that workers on this machine may write to; old files, and old ones, are removed.

        Where the disk refuses it there is none, and answers come over the network.
        """
        if not self._inbox.is_dir():
            try:
                self._inbox.mkdir(parents=True)
                for other in self._inbox.parent.iterdir():
                    if time.time() - other.stat().st_mtime > OLD_SECONDS:
                        shutil.rmtree(other, ignore_errors=True)
            except OSError as error:
                LOGGER.error("workers cannot write to %s: %s", self._inbox, error)
        with suppress(OSError), os.scandir(self._inbox) as left:
            for file in left:
                if time.time() - file.stat().st_mtime > OWN_OLD_SECONDS:
                    os.unlink(file)
        return str(self._inbox)

    def find(self, key: str) -> Kept | None:
        """Return the prediction that was kept under a key, or None."""
        for note in self._note(key, "").parent.glob(f"{key}.*"):
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
            self._enter(key, kept)
        return kept

    def adopt(self, key: str, file: Path) -> Kept:
        """Keep a file that a worker wrote to `inbox` under a key: it is moved.

        Raises:
            CheckpointError: it is gone, or the disk is full.
        """
        try:
            kept = Kept(file_sha256(file), file.stat().st_size)
            file.chmod(0o644)
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            with self._lock:
                os.replace(file, self._path(kept.sha256))
                self._enter(key, kept)
        except OSError as error:
            raise CheckpointError(f"cannot keep {file}: {error.strerror or error}; ask again") from error
        return kept

    def _enter(self, key: str, kept: Kept) -> None:
        """Note what was put in its place; the caller has the lock."""
        write_atomically(self._note(key, kept.sha256), b"")
        self._verified[kept.sha256] = mark_of(self._path(kept.sha256))
        self._since += kept.size
        late = (
            time.monotonic() - self._counted_at > COUNT_SECONDS or self._since > self.most_bytes / COUNT_SHARE
        )
        if late or self._counted is None or self._counted + self._since > self.most_bytes:
            self._make_room(kept.sha256)

    def blob(self, sha256: str) -> Path | None:
        """Return the file of a prediction, or None where it is not at hand, or was damaged (then removed)."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        path = self._path(sha256)
        try:
            mark = mark_of(path)
            if mark != self._verified.get(sha256):
                if file_sha256(path) != sha256:
                    LOGGER.error("removed %s: it is damaged", path)
                    path.unlink()
                    return None
                self._verified[sha256] = mark
            os.utime(path, ns=(time.time_ns(), mark.changed))
        except OSError:
            return None
        return path

    def _make_room(self, newest: str) -> None:
        """Remove what was used least recently where there are too many bytes; the newest stays.

        Room is made for a few more at once: to look at all files takes long where there are many.
        """
        files = [(path, path.stat()) for path in self.folder.glob("*.safetensors")]
        total = sum(status.st_size for _, status in files)
        wanted = self.most_bytes if total <= self.most_bytes else self.most_bytes * SPARED
        gone: set[str] = set()
        for path, status in sorted(files, key=lambda item: item[1].st_atime_ns):
            if total <= wanted:
                break
            if path.stem != newest:
                path.unlink(missing_ok=True)
                self._verified.pop(path.stem, None)
                total -= status.st_size
                gone.add(path.stem)
        if gone:
            for note in self.folder.glob("orders/*/*"):
                if note.suffix.removeprefix(".") in gone:
                    note.unlink(missing_ok=True)
        self._counted, self._since, self._counted_at = total, 0, time.monotonic()

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.safetensors"

    def _note(self, key: str, sha256: str) -> Path:
        return self.folder / "orders" / key[:2] / f"{key}.{sha256}"
