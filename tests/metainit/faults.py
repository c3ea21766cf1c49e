"""What goes wrong on the way, for both kinds of clients: an endpoint in this process behind a faulty wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anyio.from_thread
import anyio.to_thread
import httpx

from metainit.async_client import AsyncClient
from metainit.client import Client

URL = "http://endpoint"
Fault = Callable[[httpx.Request, httpx.Response], httpx.Response]


class Cut(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that breaks off after some bytes."""

    def __init__(self, content: bytes, after: int) -> None:
        self.content, self.after = content, after

    def __iter__(self) -> Iterator[bytes]:
        yield self.content[: self.after]
        raise httpx.ReadError("connection reset")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.content[: self.after]
        raise httpx.ReadError("connection reset")


class Wire(httpx.BaseTransport):
    """Answers as the app does, and applies one fault after the other to its answers."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str, str, int]] = []
        self.sent = 0
        self.down = False

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self.down:
            raise httpx.ConnectError("connection refused")
        answer = self.inner.handle_request(request)
        if self.faults:
            answer = self.faults.pop(0)(request, answer)
        ranged = request.headers.get("range", "")
        self.seen.append((request.method, request.url.path, ranged, answer.status_code))
        if isinstance(answer.stream, httpx.ByteStream):
            self.sent += sum(map(len, answer.stream))
        return answer


class InLoop(httpx.AsyncBaseTransport):
    """The same wire for a client that awaits."""

    def __init__(self, wire: httpx.BaseTransport) -> None:
        self.wire = wire

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return await anyio.to_thread.run_sync(self.wire.handle_request, request)


class Caller:
    """Calls a method of a client by name, and waits for what it gives, whichever kind the client is."""

    def __init__(self, client: Client | AsyncClient, portal: anyio.from_thread.BlockingPortal) -> None:
        self.client, self.portal = client, portal

    def __call__(self, method: str, *arguments: Any, **named: Any) -> Any:
        function = partial(getattr(self.client, method), *arguments, **named)
        return function() if isinstance(self.client, Client) else self.portal.call(function)


def made(kind: str, wire: httpx.BaseTransport, cache: Path, **options: Any) -> Client | AsyncClient:
    if kind == "sync":
        return Client(URL, transport=wire, cache=cache, **options)
    return AsyncClient(URL, transport=InLoop(wire), cache=cache, **options)


def unchanged(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    return answer


def unavailable(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    return httpx.Response(503, headers={"retry-after": "3"})


def refused(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


def slow(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    raise httpx.ReadTimeout("no byte within the time-out")


def cut(after: int) -> Fault:
    def fault(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        stream = Cut(answer.content, after)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)

    return fault


def shortened(length: int) -> Fault:
    """A proxy that ends the body early without saying so."""

    def fault(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        stream = httpx.ByteStream(answer.content[:length])
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)

    return fault


def longer(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    return httpx.Response(200, stream=httpx.ByteStream(answer.content * 3))


def flipped(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    content = bytearray(answer.content)
    if content:
        content[len(content) // 2] ^= 1
    stream = httpx.ByteStream(bytes(content))
    return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)


def shifted(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    """A cache that answers a range with another one."""
    stream = httpx.ByteStream(answer.content[1:])
    return httpx.Response(206, headers={"content-range": "bytes 1-9/10"}, stream=stream)


def page(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    """The page of a hotel's network."""
    return httpx.Response(200, html="<html>Welcome! Please pay.</html>")


def unpacked(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    """A body that claims to be packed, and is not."""
    stream = httpx.ByteStream(answer.content)
    return httpx.Response(200, headers={"content-encoding": "gzip"}, stream=stream)


class Stripping(httpx.BaseTransport):
    """A proxy that takes headers from requests, and from answers."""

    def __init__(self, inner: httpx.BaseTransport, *names: str) -> None:
        self.inner, self.names = inner, names

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = [(n, v) for n, v in request.headers.items() if n.lower() not in self.names]
        answer = self.inner.handle_request(httpx.Request(request.method, request.url, headers=asked))
        kept = [(n, v) for n, v in answer.headers.items() if n.lower() not in self.names]
        return httpx.Response(answer.status_code, headers=kept, stream=httpx.ByteStream(answer.content))
