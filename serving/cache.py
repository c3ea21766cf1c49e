"""The local, verified copy of registered versions: blobs by SHA-256, side files by version.

* ``blobs/<sha256>.safetensors``: the checkpoint file, served as it is
* ``versions/<name>/<version>/``: evidence.json, recipe.yaml, pictures/, and card.json
* ``marks/<sha256>.json``: how the blob looked when it was verified, so that a restart need not read it
* ``quarantine/``: what failed verification, kept for inspection
* ``incoming/``: downloads under way
* ``locks/``: one file a version that is being brought; the lock ends with the process that holds it
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metainit import checkpoint
from metainit.bounded import read_object
from metainit.errors import CheckpointError, DigestError, EndpointError
from metainit.references import NAME
from metainit.transfer import file_sha256
from serving.catalog import Facts
from serving.marks import Mark, mark_of, read_mark, write_mark

LOGGER = logging.getLogger("metainit.serving")
CHECKPOINT_FILE = "checkpoint.safetensors"
LOCK_SECONDS = 600.0
"""How long a process waits for another one that brings the same version."""
ABANDONED_SECONDS = 86400.0
"""Age at which a download that nobody ended is swept away."""
PICTURE_TYPES = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}


class NotReady(EndpointError):
    """The store has not seen the registry yet, or cannot bring a version right now."""


@dataclass(frozen=True)
class Entry:
    """A version at hand: its facts and its verified files."""

    facts: Facts
    blob: Path
    card: Mapping[str, Any]
    evidence: Mapping[str, Any] | None
    recipe: str | None
    pictures: Mapping[str, Path]


class Cache:
    """The folder of verified versions; processes may share it.

    Every step is one rename, and a lock a version keeps two of them from bringing it at once. A file that
    another process left is verified once before this one serves it, and again where it was changed since.
    """

    def __init__(self, folder: Path) -> None:
        """Use a folder, which is made when the first version comes."""
        self.folder = folder
        self._verified: dict[str, Mark] = {}

    @contextmanager
    def locked(self, facts: Facts) -> Iterator[None]:
        """Keep other threads and processes from bringing a version while the block runs.

        Raises:
            NotReady: another one takes too long, or the lock cannot be made (a full disk).
        """
        where = self._version_folder(facts)
        lock = FileLock(self.folder / "locks" / f"{where.parent.name}-{where.name}.lock", LOCK_SECONDS)
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(poll_interval=0.01)
        except OSError as error:
            raise self._no_room(facts, error) from error
        try:
            yield
        finally:
            lock.release()

    def free_bytes(self) -> int | None:
        """Return how much disk is left for further versions, or None where that cannot be told."""
        folder = self.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            return None

    def sweep(self) -> None:
        """Delete downloads that a process left when it was killed."""
        with suppress(OSError):
            for path in (self.folder / "incoming").iterdir():
                if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def verified(self, sha256: str) -> Path | None:
        """Return the file of a blob that was verified and is as it was then, or None; reads nothing."""
        known = self._verified.get(sha256)
        if known is None:
            return None
        path = self._blob_path(sha256)
        try:
            return path if mark_of(path) == known else None
        except OSError:
            return None

    def blob(self, sha256: str) -> Path | None:
        """Return the file of a blob, or None where it is not at hand, or was damaged (then quarantined)."""
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        path = self._blob_path(sha256)
        if not path.is_file():
            return None
        try:
            mark = mark_of(path)  # before the reading: what is changed meanwhile differs from it
            if mark != self._verified.get(sha256) and mark != read_mark(self._mark_path(sha256)):
                came = file_sha256(path)
                if came != sha256:
                    self._set_aside(path, sha256, f"its SHA-256 is {came[:16]}…")
                    return None
                self._keep_mark(sha256, mark)
        except OSError as error:
            LOGGER.error("cannot verify %s: %s", path, error)
            return None
        self._verified[sha256] = mark
        return path

    def _keep_mark(self, sha256: str, mark: Mark) -> None:
        try:
            write_mark(self._mark_path(sha256), mark)
        except CheckpointError as error:
            LOGGER.warning("the next start has to read the blob %s: %s", sha256, error)

    def _mark_path(self, sha256: str) -> Path:
        return self.folder / "marks" / f"{sha256}.json"

    def open(self, facts: Facts) -> Entry | None:
        """Return a version that was added before, or None."""
        blob, folder = self.blob(facts.sha256), self._version_folder(facts)
        card = _read_json(folder / "card.json")
        if blob is None or card is None or card.get("sha256") != facts.sha256:
            return None
        return Entry(
            facts=facts,
            blob=blob,
            card=card["card"],
            evidence=_read_json(folder / "evidence.json"),
            recipe=_read_text(folder / "recipe.yaml"),
            pictures=_pictures(folder / "pictures"),
        )

    def add(self, facts: Facts, download: Callable[[Path], Path]) -> Entry:
        """Bring a version in with `download`, verify it, and return it.

        Raises:
            CheckpointError: it is damaged; it was put into quarantine.
            NotReady: the disk is full, or cannot be written.
        """
        folder = self._version_folder(facts)
        incoming = self.folder / "incoming"
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=incoming, prefix=facts.name) as temporary:
                artifact = Path(temporary) / "artifact"
                try:
                    artifact = download(artifact)
                    card = self._verify(facts, artifact / CHECKPOINT_FILE)
                except CheckpointError as error:
                    self._quarantine(facts, artifact, error)
                    raise
                self._keep(facts, artifact, folder, card)
        except OSError as error:
            raise self._no_room(facts, error) from error
        entry = self.open(facts)
        if entry is None:
            raise NotReady(f"{facts.reference} vanished from {self.folder}; ask again")
        return entry

    def _no_room(self, facts: Facts, error: OSError) -> NotReady:
        if isinstance(error, Timeout):
            return NotReady(
                f"cannot bring {facts.reference}: another process has been bringing it for more than "
                f"{LOCK_SECONDS:g} s; ask again later"
            )
        return NotReady(
            f"cannot bring {facts.reference} into {self.folder}: {error.strerror or error}; "
            "free some space or choose another cache folder"
        )

    def _verify(self, facts: Facts, path: Path) -> dict[str, Any]:
        """Check checksum, checkpoint and kind, and return the card."""
        came = file_sha256(path)
        if came != facts.sha256:
            raise DigestError(
                f"{facts.reference} in the registry has SHA-256 {came[:16]}…, expected "
                f"{facts.sha256[:16]}…: its artifact was changed; register it again"
            )
        card = checkpoint.load(path).card
        if card.kind != facts.kind:
            raise CheckpointError(
                f"{facts.reference} has the kind {facts.kind!r} in the registry, but its card says "
                f"{card.kind!r}; put the tag back in MLflow, or register it again"
            )
        return card.model_dump(mode="json")

    def _quarantine(self, facts: Facts, artifact: Path, error: CheckpointError) -> None:
        """Keep the damaged file for inspection."""
        for path in sorted(artifact.glob(f"{CHECKPOINT_FILE}*")):
            self._set_aside(path, f"{facts.name}-{facts.version}", str(error))

    def _set_aside(self, path: Path, name: str, reason: str) -> None:
        where = self.folder / "quarantine" / f"{name}.safetensors"
        where.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, where)
        LOGGER.error("quarantined %s as %s: %s", path, where, reason)

    def _keep(self, facts: Facts, artifact: Path, folder: Path, card: dict[str, Any]) -> None:
        blob = self._blob_path(facts.sha256)
        blob.parent.mkdir(parents=True, exist_ok=True)
        (artifact / CHECKPOINT_FILE).chmod(0o444)
        with open(artifact / CHECKPOINT_FILE, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(artifact / CHECKPOINT_FILE, blob)
        self._verified[facts.sha256] = mark = mark_of(blob)
        self._keep_mark(facts.sha256, mark)
        note = json.dumps({"sha256": facts.sha256, "card": card})
        (artifact / "card.json").write_text(note)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():  # an older copy, or one whose blob was damaged: whoever reads it keeps it
            os.replace(folder, artifact.with_name("older"))
        os.replace(artifact, folder)

    def _blob_path(self, sha256: str) -> Path:
        return self.folder / "blobs" / f"{sha256}.safetensors"

    def _version_folder(self, facts: Facts) -> Path:
        if not re.fullmatch(NAME, facts.name):
            raise CheckpointError(f"{facts.name!r} is not a name that can be served")
        return self.folder / "versions" / facts.name / str(int(facts.version))


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return read_object(path)
    except CheckpointError as error:
        LOGGER.error("left out: %s", error)
        return None


def _pictures(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_file() and path.suffix.lower() in PICTURE_TYPES
    }
