"""What lies in the client's cache, what may go, and whether it is still what it was."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import Timeout

from metainit.kept import SHA256, Kept
from metainit.transfer import file_sha256

JUST_NOW = 60.0
"""Seconds for which what was used counts as in use, without a lock."""
_SIZE = re.compile(r"(?P<number>[0-9]{1,15}(?:\.[0-9]{1,3})?)\s*(?P<unit>|[kMGT]?B)", re.IGNORECASE)
_AGE = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[smhdw])")
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Item:
    """One blob: whole, or a part of which a later fetch goes on. `used` is in seconds since the epoch."""

    sha256: str
    path: Path
    size: int
    used: float
    state: Literal["whole", "part"]


def items(kept: Kept) -> list[Item]:
    """Return what a cache holds, least recently used first."""
    return sorted(_items(kept), key=lambda item: (item.used, item.sha256))


def _items(kept: Kept) -> Iterator[Item]:
    for path in kept.blobs():
        try:
            found = path.stat()
        except FileNotFoundError:  # somebody else has cleaned up
            continue
        state: Literal["whole", "part"] = "part" if path.suffix == ".part" else "whole"
        yield Item(path.stem, path, found.st_size, found.st_mtime, state)


def chosen(
    have: Iterable[Item], now: float, older_than: float | None = None, larger_than: int | None = None
) -> list[Item]:
    """Return what goes: everything that was not used for so long, then the least recently used.

    Args:
        have: least recently used first.
        now: in seconds since the epoch.
        older_than: in seconds; None is no limit.
        larger_than: bytes that may stay; None is no limit.

    Example:
        >>> old, new = (Item(f'{used}', Path('x'), 10, used, 'whole') for used in (0.0, 90.0))
        >>> [item.sha256 for item in chosen([old, new], 100.0, older_than=50)]
        ['0.0']
        >>> len(chosen([old, new], 100.0, larger_than=0)), chosen([old, new], 100.0, larger_than=20)
        (2, [])
    """
    going: list[Item] = []
    staying: list[Item] = []
    for item in have:
        old = older_than is not None and now - item.used > older_than
        (going if old else staying).append(item)
    if larger_than is None:
        return going
    left = sum(item.size for item in staying)
    for item in staying:
        if left <= larger_than:
            break
        going.append(item)
        left -= item.size
    return going


def prune(kept: Kept, going: Iterable[Item], now: float | None = None) -> tuple[list[Item], list[Item]]:
    """Delete what was chosen and return what went and what stayed, since it is in use.

    In use is what another process holds the lock of, to fetch it, and what was used in the last minute or
    after it was chosen.
    """
    moment = time.time() if now is None else now
    gone, busy = [], []
    for item in going:
        lock = kept.lock(item.sha256)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            busy.append(item)
            continue
        try:
            used = item.path.stat().st_mtime
            if used != item.used or moment - used < JUST_NOW:
                busy.append(item)
                continue
            item.path.unlink()
            gone.append(item)
        except FileNotFoundError:
            continue
        finally:
            lock.release()
    return gone, busy


def tidy(kept: Kept) -> int:
    """Delete what was written down of blobs that are no more, and return how many files that were."""
    count = 0
    for path in kept.notes():
        try:
            named = path.name.split(".")
            sha256 = named[1] if len(named) == 3 else json.loads(path.read_text())["sha256"]
            orphaned = not (SHA256.fullmatch(sha256) and kept.file(sha256).exists())
        except (OSError, ValueError, KeyError, TypeError):
            orphaned = True  # nobody could read it
        if orphaned:
            path.unlink(missing_ok=True)
            count += 1
    return count


def damaged(have: Iterable[Item]) -> Iterator[tuple[Item, str]]:
    """Yield the blobs whose bytes are not those of their name, with the SHA-256 that was found."""
    for item in have:
        if item.state == "part":
            continue
        try:
            found = file_sha256(item.path)
        except FileNotFoundError:
            continue
        if found != item.sha256:
            yield item, found


def bytes_of(text: str) -> int:
    """Read a size.

    Raises:
        ValueError: it is none.

    Example:
        >>> bytes_of('1.5 GB'), bytes_of('0')
        (1500000000, 0)
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no size; expected e.g. 500MB or 20GB")
    return int(float(match["number"]) * _BYTES[match["unit"].upper()])


def seconds_of(text: str) -> float:
    """Read an age.

    Raises:
        ValueError: it is none.

    Example:
        >>> seconds_of('30d')
        2592000.0
    """
    match = _AGE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no age; expected e.g. 12h, 30d or 8w")
    return float(match["number"]) * _SECONDS[match["unit"]]
