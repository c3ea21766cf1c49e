"""The file of keys: JSON, readable by its owner only, changed under a lock and in one step."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from metainit.errors import EndpointError
from metainit.places import data_folder
from serving.keys import MAX_KEYS, Key

LOGGER = logging.getLogger("metainit.serving")
MAX_BYTES = 8 << 20
PRIVATE = stat.S_IRUSR | stat.S_IWUSR
LOCK_SECONDS = 10.0
LOOK_SECONDS = 1.0
"""How often a running endpoint looks whether the file has changed."""
Keys = Mapping[str, Key]
_T = TypeVar("_T")


class KeyFileError(EndpointError):
    """The file of keys cannot be read or written."""


class _Content(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    keys: tuple[Key, ...] = ()


def default_path() -> Path:
    """Return where keys are kept unless another file is named."""
    return data_folder() / "keys.json"


def read(path: Path) -> Keys:
    """Return the keys of a file by id.

    Raises:
        KeyFileError: it is missing, damaged, too large, or readable by more than owner and, where somebody
            else owns it (as root does a mounted secret), group.
    """
    try:
        with path.open("rb") as stream:
            if os.name == "posix":
                found = os.fstat(stream.fileno())
                ours = found.st_uid == os.geteuid()
                if found.st_mode & (0o077 if ours else 0o037):
                    mode = "600" if ours else "640"
                    raise KeyFileError(f"other users can read or write {path}: chmod {mode} {path}")
            content = stream.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise KeyFileError(
            f"there are no keys at {path}; make one: metainit keys make --file {path}"
        ) from error
    except OSError as error:
        raise KeyFileError(f"cannot read the keys {path}: {error.strerror or error}") from error
    if len(content) > MAX_BYTES:
        raise KeyFileError(f"{path} has more than {MAX_BYTES} bytes, expected a file of keys")
    try:
        keys = _Content.model_validate_json(content).keys
    except ValidationError as error:  # its text would quote the content
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KeyFileError(f"{path} is no file of keys: {where or 'content'}: {first['msg']}") from None
    if len(keys) > MAX_KEYS:
        raise KeyFileError(f"{path} holds {len(keys)} keys, expected at most {MAX_KEYS}; revoked ones can go")
    return MappingProxyType({key.id: key for key in keys})


def change(path: Path, step: Callable[[Keys], tuple[tuple[Key, ...], _T]]) -> _T:
    """Read the keys, let `step` say which to add or replace, write them, and return what it gives beside.

    Two that change the file at once do so one after the other.

    Raises:
        KeyFileError: the file cannot be read or written, or is locked by another for too long.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS, mode=PRIVATE):
            keys = dict(read(path)) if path.exists() else {}
            new, given = step(MappingProxyType(keys))
            keys.update({key.id: key for key in new})
            _write(path, keys)
            return given
    except Timeout as error:
        raise KeyFileError(f"{path} is locked by another process; try again") from error
    except OSError as error:
        raise KeyFileError(f"cannot write the keys {path}: {error.strerror or error}") from error


def _write(path: Path, keys: Keys) -> None:
    """Write the keys so that a crash leaves either the old file or the new one, never readable by others."""
    content = _Content(keys=tuple(sorted(keys.values(), key=lambda key: (key.created, key.id))))
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")  # 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content.model_dump_json(indent=1).encode())
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class KeyRing:
    """The keys of a file as a running endpoint sees them: read again when the file has changed.

    What cannot be read lets nobody in.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file at the first question."""
        self.path, self._clock = path, clock
        self._looked = -LOOK_SECONDS
        self._mark: tuple[int, int, int] | None = None
        self._keys: Keys | None = None
        self.error: str | None = None

    def keys(self) -> Keys:
        """Return the keys by id, at most a second old.

        Raises:
            KeyFileError: the file cannot be read.
        """
        now = self._clock()
        if now - self._looked >= LOOK_SECONDS:
            self._looked = now
            self._look()
        if self._keys is None:
            raise KeyFileError(self.error or f"the keys {self.path} were not read")
        return self._keys

    def _look(self) -> None:
        mark = _mark_of(self.path)
        if mark is not None and mark == self._mark:
            return
        try:
            self._keys = read(self.path)
        except KeyFileError as error:
            if self.error != str(error):
                LOGGER.error("nobody is let in: %s", error)
            self._keys, self._mark, self.error = None, None, str(error)
            return
        LOGGER.info("read %d keys from %s", len(self._keys), self.path)
        self._mark, self.error = mark, None


def _mark_of(path: Path) -> tuple[int, int, int] | None:
    """Return what changes with the file: its place, its time, its mode."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_mode
