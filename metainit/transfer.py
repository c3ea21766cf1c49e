"""Tries that end, and downloads that resume and are verified: steps that both clients run."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import IO, TypeAlias

from metainit.errors import EndpointError
from metainit.wire import Answer, Ask, Steps, T, Transient, ask, pause, work

PROGRESS_BYTES = 1 << 20
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that another try may heal."""
Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many bytes are here and how many there will be."""


@dataclass(frozen=True)
class Retry:
    """How often one call tries its requests and how long it waits between tries, in seconds.

    All requests of a call share these: `attempts` - 1 failures are borne, of whichever they are. The wait
    doubles from `first_wait`; a server that asks for more with Retry-After gets it up to `longest_wait`, and
    one that asks for more than `total` is not asked again. No try begins later than `total` seconds after
    the first failure; the last wait is cut to that, if the server asked for no more. A download that moved
    on by a megabyte counts anew.
    """

    attempts: int = 4
    first_wait: float = 1.4
    longest_wait: float = 10.0
    total: float = 10.0

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after that many failures; `asked` is what the server wished for.

        Example:
            >>> Retry(first_wait=0.5).wait(3)
            2.0
            >>> Retry().wait(1, asked=3.0)
            3.0
        """
        backoff = self.first_wait * 2.0 ** (failures - 1)
        return min(self.longest_wait, max(backoff, asked or 0.0))


@dataclass(frozen=True)
class Blob:
    """What the endpoint said about some weights: their SHA-256, size in bytes and address."""

    sha256: str
    size: int
    url: str


class Patience:
    """Counts the failures of one call, in all its requests, and says when it is over."""

    def __init__(self, retry: Retry, url: str) -> None:
        """Start with none; `url` is the endpoint that errors name."""
        self._retry, self._url = retry, url
        self.renew()

    def anew(self) -> Patience:
        """Return the same patience for another call, with no failures yet."""
        return Patience(self._retry, self._url)

    def renew(self) -> None:
        """Forget the failures: something moved on."""
        self._failures, self._first = 0, 0.0

    def pause(self, error: Transient) -> Steps[None]:
        """Wait before the next try.

        Raises:
            EndpointError: the tries or the time are used up.
        """
        now = time.monotonic()
        self._first = now if self._failures == 0 else self._first
        self._failures += 1
        left = self._retry.total - (now - self._first)
        seconds = min(self._retry.wait(self._failures, error.asked), left)
        late = left <= 0 or (error.asked or 0.0) > left
        if self._failures >= self._retry.attempts or late:
            tries = f"{self._failures} {'try' if self._failures == 1 else 'tries'}"
            wish = f" (it asks to wait {error.asked:g} s)" if late and error.asked else ""
            raise EndpointError(
                f"cannot reach {self._url} after {tries}: {error}{wish}; is the endpoint "
                "running there? A pinned version (name/version) that was fetched before needs none"
            ) from error
        yield from pause(seconds)


def tried(attempt: Callable[[], Steps[T]], patience: Patience) -> Steps[T]:
    """Return what an attempt gives, trying again after a failure that may pass.

    Raises:
        EndpointError: the tries or the time are used up.
    """
    while True:
        try:
            return (yield from attempt())
        except Transient as error:
            yield from patience.pause(error)


def downloaded(blob: Blob, path: Path, patience: Patience, progress: Progress | None = None) -> Steps[None]:
    """Bring a blob to `path`: resume, verify, and start once more from nothing if it is wrong.

    Raises:
        EndpointError: the bytes are wrong twice, or the endpoint cannot be reached.
    """
    part = path.with_suffix(".part")
    came = ""
    for _ in range(2):
        yield from _received(blob, part, patience, progress)
        came = yield from work(partial(file_sha256, part))
        if came == blob.sha256:
            yield from work(partial(_settle, part, path))
            if blob.size >= PROGRESS_BYTES:
                patience.renew()
            return
        part.unlink()
    raise EndpointError(
        f"the bytes from {blob.url} are wrong, twice: SHA-256 {came[:16]}…, expected "
        f"{blob.sha256[:16]}…; nothing was kept: a proxy or the endpoint's disk damages them"
    )


def _received(blob: Blob, part: Path, patience: Patience, progress: Progress | None) -> Steps[None]:
    """Append to the part file until it has the announced size."""
    if _size(part) > blob.size:
        part.unlink()
    most = _size(part)
    while (have := _size(part)) < blob.size or not have:
        sink = _Part(blob, part, have, progress)
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{blob.sha256}"'}
        try:
            answer = yield from ask(Ask("GET", blob.url, headers, sink=sink))
            if have and answer.status == 416:
                sink.misplaced = True
                raise Transient(f"{blob.url} has nothing behind byte {have}")
            check(answer)
            if sink.size < blob.size:
                raise Transient(f"the transfer ended after {sink.size} of {blob.size} bytes")
            return
        except Transient as error:
            if sink.misplaced:  # whoever answers has other ideas of ranges: the next try asks for all
                part.unlink(missing_ok=True)
            # Measured against the most there ever was: a server that ignores ranges starts from nothing
            # each time, and would be asked for ever.
            if _size(part) - most >= PROGRESS_BYTES:
                most = _size(part)
                patience.renew()
            yield from patience.pause(error)


class _Part:
    """The sink of a download: a file that grows, and never beyond what was announced."""

    def __init__(self, blob: Blob, path: Path, have: int, progress: Progress | None) -> None:
        self.size, self.misplaced = have, False
        self._blob, self._path, self._have, self._progress = blob, path, have, progress
        self._stream: IO[bytes] | None = None

    def begin(self, answer: Answer) -> None:
        resumed = answer.status == 206
        came = answer.headers.get("content-range", "")
        if resumed and not came.startswith(f"bytes {self._have}-"):
            self.misplaced = True
            raise Transient(f"{self._blob.url} sent range {came or 'none'!r}, expected bytes {self._have}-")
        self.size = self._have if resumed else 0
        self._stream = open(self._path, "ab" if resumed else "wb")

    def write(self, content: bytes) -> None:
        if self.size + len(content) > self._blob.size:
            raise EndpointError(f"{self._blob.url} sends more than the {self._blob.size} bytes announced")
        assert self._stream is not None
        self._stream.write(content)
        self.size += len(content)

    def told(self) -> None:
        if self._progress is not None:
            self._progress(self.size, self._blob.size)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _settle(part: Path, path: Path) -> None:
    with open(part, "rb") as stream:
        os.fsync(stream.fileno())
    os.replace(part, path)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check(answer: Answer) -> None:
    """Raise what a status asks for: nothing below 300, Transient for what may pass, else the problem.

    Raises:
        Transient: another try may help.
        EndpointError: it will not; the text is the title and detail of the problem.
    """
    if answer.status < 300:
        return
    text = f"{answer.method} {answer.url} -> {answer.status} {_problem(answer)}"
    if answer.status in PASSING:
        raise Transient(text, retry_after(answer.headers))
    if answer.status in (401, 403):
        text += "; pass a key that may (key=..., or METAINIT_KEY beside METAINIT_SERVER)"
    if "location" in answer.headers:
        text += f"; it goes on at {answer.headers['location']!r}, which is not followed: use that address"
    raise EndpointError(text)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds an answer asks to wait: a number, or a date against that of the answer.

    Example:
        >>> retry_after({'retry-after': '3'})
        3.0
        >>> now, then = 'Thu, 01 Jan 2026 00:00:02 GMT', 'Thu, 01 Jan 2026 00:00:09 GMT'
        >>> retry_after({'retry-after': then, 'date': now})
        7.0
    """
    text = headers.get("retry-after", "")
    if text.isdecimal():
        return float(text)
    with suppress(ValueError, TypeError):
        until = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(headers.get("date", ""))
        return max(0.0, (until - now).total_seconds())
    return None


def _problem(answer: Answer) -> str:
    """Title and detail of a problem+json answer, else the standard phrase."""
    phrase = next((known.phrase for known in HTTPStatus if known == answer.status), "")
    if "problem+json" not in answer.headers.get("content-type", ""):
        return phrase
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return phrase
    if not isinstance(value, dict):
        return phrase
    return ": ".join(str(value[key]) for key in ("title", "detail") if value.get(key)) or phrase
