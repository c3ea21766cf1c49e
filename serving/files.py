"""How a file leaves the endpoint: straight from disk in large chunks, with ETag, Range and HEAD."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import anyio
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.problems import RangeNotSatisfiable
from serving.ranges import Unsatisfiable, matches, parse_range, range_holds

CHUNK_BYTES = 1 << 20


class FileSlice(Response):
    """Bytes `start` to `end` of a file, read chunk by chunk as the client takes them.

    Memory is one chunk, whatever the size: the server's flow control holds the next read back.
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
        length = min(CHUNK_BYTES, self.end - self.start)
        handle, body = await anyio.to_thread.run_sync(_open, self.path, length, self.start)
        try:
            await send(start)
            at = self.start
            while True:
                if not body:
                    raise OSError(f"{self.path} ends at byte {at}, expected {self.end}")
                at += len(body)
                more = at < self.end
                await send({"type": "http.response.body", "body": body, "more_body": more})
                if not more:
                    return
                length = min(CHUNK_BYTES, self.end - at)
                body = await anyio.to_thread.run_sync(os.pread, handle, length, at)
        finally:
            os.close(handle)


def _open(path: Path, length: int, at: int) -> tuple[int, bytes]:
    """Open a file and read its first chunk, in one visit to a thread."""
    handle = os.open(path, os.O_RDONLY)
    try:
        return handle, os.pread(handle, length, at)
    except BaseException:
        os.close(handle)
        raise


def answer_file(
    request: Request, path: Path, sha256: str, media_type: str, headers: Mapping[str, str]
) -> Response:
    """Answer a GET or HEAD for a file whose entity tag is its SHA-256: 200, 206, 304.

    Raises:
        RangeNotSatisfiable: the range lies outside the file (416).
    """
    asked = Headers(scope=request.scope)
    common = {"etag": f'"{sha256}"', "accept-ranges": "bytes", **headers}
    if matches(asked.get("if-none-match"), sha256):
        return Response(status_code=304, headers=common)
    size = path.stat().st_size
    ranged = asked.get("range") if range_holds(asked.get("if-range"), sha256) else None
    try:
        part = parse_range(ranged, size)
    except Unsatisfiable:
        raise RangeNotSatisfiable(ranged or "", size) from None
    if part is None:
        return FileSlice(path, 0, size, 200, media_type, common)
    start, end = part
    common["content-range"] = f"bytes {start}-{end - 1}/{size}"
    return FileSlice(path, start, end, 206, media_type, common)
