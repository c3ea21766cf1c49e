"""How a file leaves the endpoint: straight from disk in large chunks, with ETag, Range and HEAD."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.cache import NotReady
from serving.problems import RangeNotSatisfiable
from serving.ranges import Unsatisfiable, matches, parse_range, range_holds
from serving.seen import NOTE, Seen

CHUNK_BYTES = 1 << 18
"""Small enough to stay in a core's own cache between the read and the send."""
CHUNKS_AT_ONCE = 16
"""After so many, others get their turn, and whether the client is still there is looked at."""
CLIENT_LEFT = 499
"""What is noted of an answer that nobody took to its end, as other servers do."""
_NOT_HERE = (errno.EAGAIN, errno.EOPNOTSUPP, errno.ENOSYS)


class FileSlice(Response):
    """Bytes `start` to `end` of a file, read chunk by chunk as the client takes them.

    Memory is one chunk, whatever the size: the server's flow control holds the next read back. What the
    kernel holds in memory is read at once; only what has to come from the disk takes a thread.
    """

    def __init__(
        self,
        path: Path,
        start: int,
        end: int,
        status: int,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        """Say what to send; the file is opened when it is sent."""
        self.path, self.start, self.end = path, start, end
        self.status_code, self.media_type, self.background = status, media_type, None
        self.init_headers({"content-length": str(end - start), **headers})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the slice; a HEAD gets the headers only."""
        start = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        if scope["method"] == "HEAD" or self.start == self.end:
            await send(start)
            await send({"type": "http.response.body", "body": b""})
            return
        with _dropped_is_told(self.path):
            handle = os.open(self.path, os.O_RDONLY)
        left: asyncio.Task[None] | None = None
        try:
            at, chunks = self.start, 0
            while at < self.end:
                if chunks == CHUNKS_AT_ONCE:  # a server swallows what is sent to a client that left
                    left, chunks = left or asyncio.create_task(_gone(receive)), 0
                    await asyncio.sleep(0)
                    if left.done():
                        _note_left(scope)
                        return
                body = await _read(handle, min(CHUNK_BYTES, self.end - at), at)
                if not body:
                    raise OSError(f"{self.path} ends at byte {at}, expected {self.end}")
                if at == self.start:
                    await send(start)  # after the first read, whose failure can still be told
                at, chunks = at + len(body), chunks + 1
                await send({"type": "http.response.body", "body": body, "more_body": at < self.end})
        except asyncio.CancelledError:  # so other servers tell that the client left
            _note_left(scope)
            raise
        finally:
            if left is not None:
                left.cancel()
            os.close(handle)


@contextmanager
def _dropped_is_told(path: Path) -> Iterator[None]:
    """Make an answer that can be asked for again of a file that made room a moment ago."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotReady(f"{path.name} has just made room for another version; ask again") from error


async def _gone(receive: Receive) -> None:
    """Return once the client has left; a server that cannot tell any more has lost it too."""
    with suppress(OSError, RuntimeError):
        while (await receive())["type"] != "http.disconnect":
            pass


def _note_left(scope: Scope) -> None:
    note: Seen | None = scope.get(NOTE)
    if note is not None:
        note.status = CLIENT_LEFT


async def _read(handle: int, length: int, at: int) -> bytes | bytearray:
    """Return at most `length` bytes from `at`, none at the end of the file.

    No view of them: while a replica starts, Ray's own proxy stands before it, and pickles what is sent.
    """
    nowait: int | None = getattr(os, "RWF_NOWAIT", None)
    if nowait is not None:
        buffer = bytearray(length)
        try:
            del buffer[os.preadv(handle, [buffer], at, nowait) :]
            return buffer
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    return await anyio.to_thread.run_sync(os.pread, handle, length, at)


def answer_file(
    request: Request, path: Path, sha256: str, media_type: str, headers: Mapping[str, str]
) -> Response:
    """Answer a GET or HEAD for a file whose entity tag is its SHA-256: 200, 206, 304.

    Raises:
        RangeNotSatisfiable: the range lies outside the file (416).
        NotReady: the file was dropped since it was found (503).
    """
    asked = Headers(scope=request.scope)
    common = {"etag": f'"{sha256}"', "accept-ranges": "bytes", **headers}
    if matches(asked.get("if-none-match"), sha256):
        return Response(status_code=304, headers=common)
    with _dropped_is_told(path):
        size = path.stat().st_size
    ranged = (
        asked.get("range") if request.method == "GET" and range_holds(asked.get("if-range"), sha256) else None
    )
    try:
        part = parse_range(ranged, size)
    except Unsatisfiable:
        raise RangeNotSatisfiable(ranged or "", size) from None
    if part is None:
        return FileSlice(path, 0, size, 200, media_type, common)
    start, end = part
    common["content-range"] = f"bytes {start}-{end - 1}/{size}"
    return FileSlice(path, start, end, 206, media_type, common)
