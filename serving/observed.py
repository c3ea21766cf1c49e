"""The outermost layer: notes each request, adds the headers that every answer has, tells the sinks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import answer
from serving.seen import REQUEST_ID, Seen, take_note

Sink = Callable[[Seen], None]
Header = tuple[bytes, bytes]

DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Of what is no page: the page and its files bring their own."""
POLICY = b"content-security-policy"
EVERY: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
STALE = b"x-metainit-stale"
CACHING: Header = (b"cache-control", b"no-cache")
BLOBS = "/v1/blobs/"
"""Routes of what never changes: how long ago the registry was in reach says nothing of it."""


class Observed:
    """Notes, counts and completes every answer; an error that nobody foresaw becomes a problem here.

    Args:
        app: what is watched.
        sinks: are told of each request once its answer is out.
        begun: is told when an answer begins.
        stale: seconds since the registry was last in reach, None while it is.
        hsts_seconds: of Strict-Transport-Security, sent under TLS only; 0 is none.
        names_answers: False where a server outside adds X-Request-Id to answers already.
    """

    def __init__(
        self,
        app: ASGIApp,
        sinks: Sequence[Sink] = (),
        begun: Sink | None = None,
        stale: Callable[[], float | None] = lambda: None,
        hsts_seconds: int = 0,
        names_answers: bool = True,
    ) -> None:
        """Wrap an app."""
        self.app, self.sinks, self.stale = app, tuple(sinks), stale
        self.begun, self.names_answers = begun, names_answers
        hsts = f"max-age={hsts_seconds}".encode()
        self.hsts: Header | None = (b"strict-transport-security", hsts) if hsts_seconds else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch what is sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        note = take_note(scope)
        started = False

        async def watch(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                note.status = message["status"]
                note.route = getattr(scope.get("route"), "path", None) or note.route
                if self.begun is not None:
                    self.begun(note)
                message["headers"] = self._completed(message.get("headers", ()), note, scope)
            elif message["type"] == "http.response.body":
                note.sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except Exception as error:
            if started:
                raise
            await answer(Request(scope), error)(scope, receive, watch)
        finally:
            note.seconds = time.perf_counter() - note.began
            for sink in self.sinks:
                sink(note)

    def _completed(self, headers: Sequence[Header], note: Seen, scope: Scope) -> list[Header]:
        """Return the headers of an answer with those that every answer has; what it has itself stays."""
        have = {name for name, _ in headers}
        complete = [*headers, *(header for header in EVERY if header[0] not in have)]
        if POLICY not in have:
            complete.append((POLICY, DATA_POLICY))
        if CACHING[0] not in have:
            complete.append(CACHING)
        if self.names_answers:
            complete.append((REQUEST_ID, note.request_id.encode()))
        if self.hsts is not None and scope.get("scheme") == "https":
            complete.append(self.hsts)
        stale = None if note.route.startswith(BLOBS) else self.stale()
        if stale is not None:
            complete.append((STALE, str(int(stale)).encode()))
        return complete
