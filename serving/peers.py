"""Who asks and how: address and scheme of a request behind proxies that are trusted, and of no other."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import answer
from serving.refusals import Forbidden
from serving.seen import header, take_note
from serving.settings import Network

HOP, PEER, SCHEME = "x-metainit-hop", "x-metainit-peer", "x-metainit-scheme"
"""Headers that the proxy at the front door sets anew on each request, whatever the client sent."""


@dataclass(frozen=True)
class Door:
    """The proxy at the front door, which proves with a secret that a request came through it.

    The HTTP servers of replicas have ports of their own. Who finds one could ask it directly, without TLS
    and under an address of his choice, if the replica did not insist on the secret.
    """

    secret: str = field(repr=False)


class Peers:
    """Sets `client` and `scheme` of a request from what trusted proxies say.

    Args:
        app: what comes behind.
        door: requests that did not come through it are refused; None takes them from the connection.
        trusted: networks of proxies whose X-Forwarded-For and X-Forwarded-Proto count.
        base_path: under which a proxy in front shows the endpoint; it may leave it in a path, or not.
    """

    def __init__(
        self, app: ASGIApp, door: Door | None, trusted: Sequence[Network], base_path: str = ""
    ) -> None:
        """Wrap an app."""
        self.app, self.trusted, self.base_path = app, tuple(trusted), base_path
        self.secret = None if door is None else door.secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on as what it was at the front door."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        address = scope["client"][0] if scope.get("client") else ""
        if self.secret is not None:
            if not hmac.compare_digest(header(headers, HOP.encode()) or b"", self.secret):
                take_note(scope)
                error = Forbidden("this is a back door: ask at the address of the endpoint")
                await answer(Request(scope), error)(scope, receive, send)
                return
            address = (header(headers, PEER.encode()) or b"").decode("latin-1")
            scope["scheme"] = "https" if header(headers, SCHEME.encode()) == b"https" else "http"
        if self._trusts(address):
            forwarded = b",".join(value for name, value in headers if name == b"x-forwarded-for")
            if forwarded:
                address = self._first_stranger(forwarded.decode("latin-1"), address)
            protocol = header(headers, b"x-forwarded-proto")
            if protocol in (b"http", b"https"):
                scope["scheme"] = protocol.decode()
        scope["client"] = (address, 0)
        if self.base_path:
            scope["root_path"] = self.base_path
            if scope["path"] == self.base_path:
                scope["path"] = "/"
            elif scope["path"].startswith(f"{self.base_path}/"):
                scope["path"] = scope["path"].removeprefix(self.base_path)
        await self.app(scope, receive, send)

    def _trusts(self, address: str) -> bool:
        if not self.trusted:
            return False
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.trusted)

    def _first_stranger(self, forwarded: str, peer: str) -> str:
        """Return the last address of the chain that no trusted proxy has; those before it may be made up."""
        address = peer
        for part in reversed(forwarded.split(",")):
            address = part.strip()
            try:
                ipaddress.ip_address(address)
            except ValueError:
                return peer
            if not self._trusts(address):
                return address
        return address
