"""Which names the endpoint answers to: a page whose name comes to mean this machine gets nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.problems import answer
from serving.refusals import Forbidden
from serving.seen import header
from serving.settings import EndpointSettings
from serving.startup import is_loopback, reachable

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_PORT = re.compile(rb":[0-9]*$")


def guarded_by_name(settings: EndpointSettings, address: str) -> EndpointSettings:
    """Return the settings of an endpoint that listens at an address.

    On the loopback interface without keys whatever this machine's browser loads could ask, by a name of its
    own that it lets mean 127.0.0.1. So only this machine's names count there, and those of the setting.

    Example:
        >>> guarded_by_name(EndpointSettings(), '127.0.0.1').hosts
        ('127.0.0.1', 'localhost', '[::1]')
        >>> guarded_by_name(EndpointSettings(), '0.0.0.0').hosts
        ()
    """
    if settings.keys is not None or not is_loopback(address):
        return settings
    names = dict.fromkeys((*LOOPBACK, reachable(address).lower(), *settings.hosts))
    return settings.model_copy(update={"hosts": tuple(names)})


class Named:
    """Refuses requests that ask for another host; one without a Host comes from no browser.

    Args:
        app: what comes behind.
        hosts: in lower case, without ports.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Wrap an app."""
        self.app, self.hosts = app, frozenset(host.encode() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] == "http":
            came = header(scope["headers"], b"host")
            if came is not None and _PORT.sub(b"", came.lower()) not in self.hosts:
                text = "this endpoint is not called so; its setting `hosts` names what else it answers to"
                await answer(Request(scope), Forbidden(text))(scope, receive, send)
                return
        await self.app(scope, receive, send)
