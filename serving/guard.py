"""Who may do what: tells the caller by key, asks the table of scopes, counts against the rates."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import keys
from serving.key_file import KeyFileError, KeyRing
from serving.problems import answer
from serving.rates import Rates, site_of
from serving.refusals import Forbidden, KeysUnreadable, NoMethod, NoRoute, Refusal, TooMany, Unauthorized
from serving.scopes import Need, needs_of
from serving.seen import Seen, header, seen
from serving.settings import EndpointSettings

REALM = 'Bearer realm="metainit"'
FAILURES = "wrong-keys"
_FILES = re.compile(r"/weights$|^/v1/blobs/[^/]+$")
"""Paths that answer a HEAD."""


class Guarded:
    """Lets through what the table allows the caller, within the rates.

    A good key passes whatever others do from its address: with 256 random bits in a token there is nothing
    to be gained by trying, and one that tries must not lock its neighbours out.

    Args:
        app: what is guarded.
        settings: rates, and whether /metrics is open.
        ring: the keys; None lets everybody in, within the rates.
        clock: tells the time.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: EndpointSettings,
        ring: KeyRing | None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Wrap an app."""
        self.app, self.ring, self.clock = app, ring, clock
        self.open = {"/metrics"} if settings.open_metrics else set()
        self.rates = Rates()
        self.limits = {scope: item for scope in settings.rates if (item := settings.rate(scope)) is not None}
        self.failures = settings.failure_rate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._admit(scope, seen(scope))
        except Refusal as error:
            await answer(Request(scope), error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _admit(self, scope: Scope, note: Seen) -> None:
        """Raise unless the request may go on.

        Raises:
            Refusal: no key, a wrong one, one without the scope, too many requests, or no such route.
        """
        path = get_route_path(scope)
        needs = needs_of(path)
        method = "GET" if note.method == "HEAD" else note.method
        if self.ring is not None:
            self._tell(scope, note, self.ring)
            self._require(needs, method, path, note)
        need = needs.get(method, "read")
        limit = None if need == "free" else self.limits.get(need)
        if limit is not None:
            self.rates.take(limit, note.key_id or site_of(note.address), need)

    def _tell(self, scope: Scope, note: Seen, ring: KeyRing) -> None:
        """Note who asks.

        Raises:
            Unauthorized: there is a key, and it opens nothing.
            TooMany: too many wrong ones came from there.
            KeysUnreadable: nobody can be told from anybody.
        """
        note.scopes = frozenset()
        came = header(scope["headers"], b"authorization")
        if came is None:
            return
        try:
            known = ring.keys()
        except KeyFileError as error:
            text = "the keys of this endpoint cannot be read; its log says why"
            raise KeysUnreadable(text, {"retry-after": "5"}) from error
        key = keys.find(known, _token(came))
        if key is None:
            raise self._wrong(note)
        note.key_id = key.id
        state = key.state(self.clock()) if key.expires or key.revoked else "active"
        if state != "active":
            raise _unauthorized(f"the key {key.id} is {state}", 'error="invalid_token"')
        note.scopes = key.scopes

    def _wrong(self, note: Seen) -> Refusal:
        """Count a wrong key against its address, and return the answer to it."""
        try:
            self.rates.take(self.failures, site_of(note.address), FAILURES)
        except TooMany as error:
            return error
        return _unauthorized("this key is not known here", 'error="invalid_token"')

    def _require(self, needs: Mapping[str, Need], method: str, path: str, note: Seen) -> None:
        """Raise unless the caller has what the table asks for; what it does not know is closed.

        Raises:
            Unauthorized: there is no key.
            Forbidden: the key lacks the scope.
            NoRoute: the table does not know the path.
            NoMethod: nor the method.
        """
        need = needs.get(method)
        if need == "free" or path in self.open:
            return
        if note.key_id is None:
            raise _unauthorized("a key is needed: send Authorization: Bearer mi_…")
        if not needs:
            raise NoRoute(f"{note.method} {keys.redacted(path)}: not found; the routes are listed at /docs")
        if need is None or (note.method == "HEAD" and not _FILES.search(path)):
            allowed = sorted({*needs, *(("HEAD",) if _FILES.search(path) else ())})
            raise NoMethod(f"{note.method} is not allowed here", {"allow": ", ".join(allowed)})
        if need not in note.scopes:
            raise Forbidden(
                f"the key {note.key_id} has {', '.join(sorted(note.scopes))}; this needs {need}",
                {"www-authenticate": f'{REALM}, error="insufficient_scope", scope="{need}"'},
            )


def _token(value: bytes) -> str:
    """Return the token of an Authorization header, empty where it holds none."""
    kind, _, token = value.decode("latin-1").strip().partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _unauthorized(text: str, *details: str) -> Unauthorized:
    return Unauthorized(text, {"www-authenticate": ", ".join((REALM, *details))})
