"""The client's cache: content-addressed files, shared by all of a user's processes.

``blobs/<sha256>.safetensors`` are what was fetched, ``references/<hash of the address>.json`` say which of
them an address meant when it was last asked.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from metainit.bounded import read_object
from metainit.errors import EndpointError
from metainit.transfer import Blob, file_sha256
from metainit.wire import Steps, pause, work

WAIT = 600
"""How many seconds to wait for another process that fetches the same."""
GLANCE = 0.05
"""How many seconds lie between two looks at a lock that another holds."""
SHA256 = re.compile(r"[0-9a-f]{64}")


class Kept:
    """What was fetched and is kept in a folder, under addresses of endpoints.

    Example:
        >>> kept = Kept(Path('cache'))
        >>> kept.remembered('http://127.0.0.1:8000/v1/inits/faces') is None
        True
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def file(self, sha256: str) -> Path:
        """Return where the file of a blob lies, or would lie."""
        return self.folder / "blobs" / f"{sha256}.safetensors"

    def blobs(self) -> Iterator[Path]:
        """Yield the files of blobs, whole ones and parts."""
        for pattern in ("*.safetensors", "*.part"):
            yield from (p for p in (self.folder / "blobs").glob(pattern) if SHA256.fullmatch(p.stem))

    def notes(self) -> Iterator[Path]:
        """Yield the files that say what addresses meant, and those of evidence."""
        yield from (self.folder / "references").glob("[0-9a-f]*.json")

    def has(self, sha256: str) -> bool:
        """Return whether the file of a blob is there and good; if so, it counts as used now."""
        path = self.file(sha256)
        try:
            good = file_sha256(path) == sha256
        except FileNotFoundError:
            return False
        if good:
            with suppress(OSError):  # a cache that may only be read is as good
                os.utime(path)
        return good

    def remembered(self, address: str) -> str | None:
        """Return the SHA-256 of what an address meant when last fetched, if that file is still good."""
        try:
            sha256 = json.loads(self._memo(address).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
            return None
        # A damaged file stays where it is: what replaces it does so under the lock.
        return sha256 if self.has(sha256) else None

    def remember(self, address: str, sha256: str) -> None:
        """Write down what an address means now."""
        self._write(self._memo(address), {"url": address, "sha256": sha256})

    def evidence(self, address: str, sha256: str) -> dict[str, Any]:
        """Return what `keep_evidence` wrote, as ``{"evidence": ...}``.

        Raises:
            CheckpointError: none is kept, or it was damaged.
        """
        return read_object(self._evidence(address, sha256))

    def keep_evidence(self, address: str, sha256: str, evidence: Any) -> None:
        """Keep the evidence of an address for the weights that it meant."""
        self._write(self._evidence(address, sha256), {"evidence": evidence})

    def brought(self, blob: Blob, what: object, download: Callable[[Blob, Path], Steps[None]]) -> Steps[Path]:
        """Return the file of a blob, downloaded where it is not there; one process at a time.

        Raises:
            EndpointError: another process has been fetching it for too long.
        """
        path = self.file(blob.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = self.lock(blob.sha256)
        yield from _acquired(lock, what)
        try:
            if not (yield from work(partial(self.has, blob.sha256))):
                yield from download(blob, path)
        finally:
            lock.release()
        return path

    def lock(self, sha256: str) -> FileLock:
        """Return the lock of a blob, which whoever writes or deletes its files holds."""
        # Not bound to a thread: a protocol may be stepped by any.
        return FileLock(self.file(sha256).with_suffix(".lock"), thread_local=False)

    @contextmanager
    def storing(self, what: object) -> Iterator[None]:
        """Turn what the disk refuses into an error that says what to do."""
        try:
            yield
        except OSError as error:
            raise EndpointError(
                f"cannot store {what}: {error.strerror or error} "
                f"({error.filename or self.folder}); what has arrived is kept: free some space or "
                "point METAINIT_CACHE elsewhere, and call again"
            ) from error

    def _memo(self, address: str) -> Path:
        return self.folder / "references" / f"{hashlib.sha256(address.encode()).hexdigest()}.json"

    def _evidence(self, address: str, sha256: str) -> Path:
        return self._memo(address).with_suffix(f".{sha256}.json")

    def _write(self, path: Path, value: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary(path) as written:
            written.write_text(json.dumps(value))


def _acquired(lock: FileLock, what: object) -> Steps[None]:
    """Take a lock, with looks that never block: who waits can be cancelled."""
    for _ in range(int(WAIT / GLANCE)):
        with suppress(Timeout):
            lock.acquire(blocking=False)
            return
        yield from pause(GLANCE)
    raise EndpointError(
        f"another process has been fetching {what} for {WAIT // 60} minutes; "
        f"if none is, delete {lock.lock_file}"
    )


def copied(source: Path, target: Path) -> Path:
    """Copy a file; the target is whole or as it was."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with temporary(target) as written:
        shutil.copyfile(source, written)
    return target


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` that takes its place when the block ends well, and is gone otherwise."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}", suffix=".part")
    os.close(handle)
    written = Path(name)
    try:
        yield written
        written.chmod(0o644)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
