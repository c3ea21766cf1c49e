"""What is known of one request while it is under way: a note in its ASGI scope."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from starlette.types import Scope as AsgiScope

from serving.scopes import Scope

NOTE = "metainit.seen"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
REQUEST_ID = b"x-request-id"
_SANE_ID = re.compile(rb"[A-Za-z0-9._\-]{1,64}")
_EVERYTHING: frozenset[Scope] = frozenset(("read", "predict", "generate", "admin"))
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(slots=True)
class Seen:
    """One request: who asks for what, and how it went so far.

    `scopes` is what the caller may do: everything while keys are off, nothing without a key while they are
    on. `problem` is the name of the problem that it was answered with.
    """

    request_id: str
    method: str
    path: str
    address: str
    scheme: str = "http"
    key_id: str | None = None
    scopes: frozenset[Scope] = _EVERYTHING
    status: int = 499
    sent: int = 0
    problem: str | None = None
    route: str = "unmatched"
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    trace: str | None = None

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has a scope."""
        return scope in self.scopes


def seen(scope: AsgiScope) -> Seen:
    """Return the note of a request, which the outermost layer has made."""
    note: Seen = scope[NOTE]
    return note


def take_note(scope: AsgiScope) -> Seen:
    """Make the note of a request and leave it in its scope."""
    method = scope["method"]
    client = scope.get("client")
    note = Seen(
        request_id=request_id(scope["headers"]),
        method=method if method in METHODS else "other",
        path=scope["path"],
        address=client[0] if client else "",
        scheme=scope.get("scheme", "http"),
    )
    scope[NOTE] = note
    return note


def request_id(headers: Headers) -> str:
    """Return the id that a request brought if it is a sane one, else a new one."""
    came = header(headers, REQUEST_ID)
    if came is not None and _SANE_ID.fullmatch(came):
        return came.decode("ascii")
    return secrets.token_hex(16)


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of a header, whose name is in lower case."""
    for key, value in headers:
        if key == name:
            return value
    return None
