"""The wire of the client: tries that end, downloads that resume, bytes that are verified."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx

from metainit.errors import EndpointError

PROGRESS_BYTES = 1 << 20
_T = TypeVar("_T")


@dataclass(frozen=True)
class Retry:
    """How often a request is tried and how long to wait between tries, in seconds.

    The wait doubles from `first_wait` up to `longest_wait`; a download that moved on by a megabyte
    counts anew.
    """

    attempts: int = 4
    first_wait: float = 0.25
    longest_wait: float = 4.0

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Seconds to wait after that many failures; `asked` is what the server wished for.

        Example:
            >>> Retry(first_wait=0.5).wait(3)
            2.0
        """
        backoff = self.first_wait * 2.0 ** (failures - 1)
        return min(self.longest_wait, max(backoff, asked or 0.0))


class Transient(Exception):
    """A failure that another try may heal; `asked` is the server's Retry-After in seconds."""

    def __init__(self, text: str, asked: float | None = None) -> None:
        """Keep what the server asked for."""
        super().__init__(text)
        self.asked = asked


@dataclass(frozen=True)
class Blob:
    """What the endpoint said about some weights: their SHA-256, size in bytes and address."""

    sha256: str
    size: int
    url: str


class Transfer:
    """Requests to one endpoint over an httpx client, repeated as `retry` says."""

    def __init__(self, http: httpx.Client, url: str, retry: Retry) -> None:
        """Use an open client; whoever made it closes it."""
        self._http, self._url, self._retry = http, url, retry

    def attempt(self, request: Callable[[], _T]) -> _T:
        """Return what a request gives, trying again after a failure that may pass.

        Raises:
            EndpointError: the tries are used up.
        """
        failures = 0
        while True:
            try:
                return request()
            except (httpx.TransportError, Transient) as error:
                failures += 1
                self.wait(failures, error)

    def wait(self, failures: int, error: httpx.TransportError | Transient) -> None:
        """Sleep before the next try, or give up."""
        if failures >= self._retry.attempts:
            raise EndpointError(
                f"cannot reach {self._url} after {failures} tries: {_said(error)}; is the endpoint "
                "running there? A pinned version (name/version) that was fetched before needs none"
            ) from error
        time.sleep(self._retry.wait(failures, getattr(error, "asked", None)))

    def download(self, blob: Blob, path: Path) -> None:
        """Bring a blob to `path`: resume, verify, and start once more from nothing if it is wrong.

        Raises:
            EndpointError: the bytes are wrong twice, or the endpoint cannot be reached.
        """
        part = path.with_suffix(".part")
        for _ in range(2):
            self._receive(blob, part)
            came = file_sha256(part)
            if came == blob.sha256:
                with open(part, "rb") as stream:
                    os.fsync(stream.fileno())
                os.replace(part, path)
                return
            part.unlink()
        raise EndpointError(
            f"the bytes from {blob.url} are wrong, twice: SHA-256 {came[:16]}…, expected "
            f"{blob.sha256[:16]}…; nothing was kept: a proxy or the endpoint's disk damages them"
        )

    def _receive(self, blob: Blob, part: Path) -> None:
        """Append to the part file until it has the announced size."""
        if part.is_file() and part.stat().st_size > blob.size:
            part.unlink()
        failures = 0
        while (have := part.stat().st_size if part.is_file() else 0) < blob.size or not have:
            try:
                self._receive_once(blob, part, have)
                return
            except (httpx.TransportError, Transient) as error:
                came = part.stat().st_size if part.is_file() else 0
                failures = 1 if came - have >= PROGRESS_BYTES else failures + 1
                self.wait(failures, error)

    def _receive_once(self, blob: Blob, part: Path, have: int) -> None:
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{blob.sha256}"'}
        with self._http.stream("GET", blob.url, headers=headers) as response:
            if response.status_code >= 400:
                response.read()
            check(response)
            resumed = response.status_code == 206
            came = response.headers.get("content-range", "none")
            if resumed and not came.startswith(f"bytes {have}-"):
                raise EndpointError(f"{blob.url} sent range {came!r}, expected bytes {have}-")
            size = have if resumed else 0
            with open(part, "ab" if resumed else "wb") as stream:
                for chunk in response.iter_bytes():
                    size += len(chunk)
                    if size > blob.size:
                        raise EndpointError(f"{blob.url} sends more than the {blob.size} bytes announced")
                    stream.write(chunk)
        if size < blob.size:
            raise Transient(f"the transfer ended after {size} of {blob.size} bytes")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check(response: httpx.Response) -> None:
    """Raise what a status asks for: nothing below 300, Transient for 5xx and 429, else the problem.

    Raises:
        Transient: another try may help.
        EndpointError: it will not; the text is the title and detail of the problem.
    """
    status = response.status_code
    if status < 300:
        return
    text = f"{response.request.method} {response.request.url} -> {status} {_problem(response)}"
    if status in (429, 500, 502, 503, 504):
        raise Transient(text, _seconds(response.headers))
    raise EndpointError(text)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__


def _problem(response: httpx.Response) -> str:
    """Title and detail of a problem+json answer, else the standard phrase."""
    if "problem+json" in response.headers.get("content-type", ""):
        try:
            value = response.json()
        except ValueError:
            return response.reason_phrase
        if isinstance(value, dict):
            words = [str(value[key]) for key in ("title", "detail") if value.get(key)]
            return ": ".join(words) or response.reason_phrase
    return response.reason_phrase


def _seconds(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() else None
