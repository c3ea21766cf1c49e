"""What one request may take: length of its address, size of headers and body, time, and a place."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import answer
from serving.refusals import BodyTooLarge, HeadersTooLarge, Overloaded, Refusal, TooLong, TooSlow
from serving.seen import Headers
from serving.settings import EndpointSettings

PROBES = frozenset({"/healthz", "/readyz"})
"""Answered under any load: an endpoint that is busy is not to be taken for a dead one."""
AGAIN = {"retry-after": "1"}
DIGITS = 18
"""More are no length of a body."""


@dataclass
class Load:
    """How many requests are under way."""

    under_way: int = 0


class Bounded:
    """Refuses what is above a limit: 413, 414, 431; 503 with Retry-After for too many and too slow."""

    def __init__(self, app: ASGIApp, settings: EndpointSettings, load: Load) -> None:
        """Wrap an app; `load` is kept up to date for the metrics."""
        self.app, self.settings, self.load = app, settings, load

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on that is within the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            chunked = self._check(scope)
        except Refusal as error:
            await answer(Request(scope), error)(scope, receive, send)
            return
        self.load.under_way += 1
        try:
            bounded = receive if not chunked else _counting(receive, self.settings.body_bytes)
            await self._in_time(scope, bounded, send)
        finally:
            self.load.under_way -= 1

    def _check(self, scope: Scope) -> bool:
        """Return whether a body comes whose length was not announced.

        Raises:
            Refusal: a limit is passed.
        """
        settings = self.settings
        size = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if size > settings.path_chars:
            raise TooLong(f"the address has {size} characters, expected at most {settings.path_chars}")
        total, length, chunked = _measure(scope["headers"])
        if total > settings.header_bytes:
            raise HeadersTooLarge(f"the headers have {total} bytes, expected at most {settings.header_bytes}")
        if length > settings.body_bytes:
            raise BodyTooLarge(_too_large(settings.body_bytes))
        if self.load.under_way >= settings.in_flight and scope["path"] not in PROBES:
            raise Overloaded(f"{self.load.under_way} requests are under way; ask again in a moment", AGAIN)
        return chunked

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; what has begun to be answered in time may take as long as it needs."""
        seconds = self.settings.start_seconds
        started = False
        try:
            async with asyncio.timeout(seconds) as clock:

                async def watch(message: Message) -> None:
                    nonlocal started
                    if not started:
                        started = True
                        clock.reschedule(None)
                    await send(message)

                await self.app(scope, receive, watch)
        except TimeoutError:
            if started or not clock.expired():
                raise
            error = TooSlow(f"no answer began within {seconds:g} s; ask again", AGAIN)
            await answer(Request(scope), error)(scope, receive, send)


def _measure(headers: Headers) -> tuple[int, int, bool]:
    """Return the size of the headers, the announced length of the body, and whether it comes without one."""
    total, length, chunked = 0, 0, False
    for name, value in headers:
        total += len(name) + len(value)
        if name == b"content-length":
            length = int(value) if value.isdigit() and len(value) < DIGITS else 1 << 63
        elif name == b"transfer-encoding":
            chunked = True
    return total, length, chunked


def _counting(receive: Receive, most: int) -> Receive:
    """Return a `receive` that ends a body which grows over the limit."""
    came = 0

    async def counted() -> Message:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > most:
            raise HTTPException(
                413, _too_large(most)
            )  # the one that FastAPI's reading of bodies lets through
        return message

    return counted


def _too_large(most: int) -> str:
    return f"the body has more than {most} bytes"
