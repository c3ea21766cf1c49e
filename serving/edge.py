"""Puts the layers of the endpoint around its app, in their order; what is off is not there at all.

From outside: peers (whom the request comes from), traces, notes and headers, names, bounds, CORS,
keys and rates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from serving import logs
from serving.bounds import Bounded, Load
from serving.guard import Guarded
from serving.hosts import Named
from serving.key_file import KeyRing
from serving.observed import Observed, Sink
from serving.peers import Door, Peers
from serving.settings import EndpointSettings
from serving.traces import Tracing, tracing

EXPOSED = (
    "Content-Location",
    "Content-Range",
    "ETag",
    "Location",
    "RateLimit",
    "Retry-After",
    "X-Metainit-Kind",
    "X-Metainit-Stale",
    "X-Request-Id",
)
"""Headers that a page of another origin may read."""
SENT = ("Authorization", "If-None-Match", "If-Range", "Range", "X-Request-Id")


@dataclass(frozen=True)
class Edge:
    """What the app has to end with: its layers' own ends."""

    tracing: Tracing | None = None

    def stop(self) -> None:
        """Send what is still to be sent."""
        if self.tracing is not None:
            self.tracing.stop()


def surround(
    app: FastAPI,
    settings: EndpointSettings,
    load: Load,
    count: Sink,
    stale: Callable[[], float | None],
    door: Door | None = None,
    names_answers: bool = True,
) -> Edge:
    """Put the layers around an app.

    Args:
        app: whose routes are all there, or come later: the layers ask the table of scopes, not the router.
        settings: what is on.
        load: is kept up to date.
        count: is told of each request.
        stale: seconds since the registry was last in reach.
        door: the proxy that every request has to come through.
        names_answers: False where the server adds X-Request-Id to answers.
    """
    traced = tracing(settings)
    sinks: list[Sink] = [count]
    if settings.log_requests:
        sinks.append(logs.log_request)
    if settings.audit is not None:
        sinks.append(logs.audit_to(settings.audit))
    if settings.keys is not None or settings.rates:  # the layer that is added last is the outermost
        ring = KeyRing(settings.keys) if settings.keys is not None else None
        app.add_middleware(Guarded, settings=settings, ring=ring)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=SENT,
            expose_headers=EXPOSED,
        )
    app.add_middleware(Bounded, settings=settings, load=load)
    if settings.hosts:
        app.add_middleware(Named, hosts=settings.hosts)
    app.add_middleware(
        Observed,
        sinks=sinks,
        begun=None if traced is None else traced.sink,
        stale=stale,
        hsts_seconds=settings.hsts_seconds,
        names_answers=names_answers,
    )
    if traced is not None:
        app.add_middleware(traced.wrap)
    if door is not None or settings.trusted_proxies or settings.base_path:
        app.add_middleware(Peers, door=door, trusted=settings.trusted_proxies, base_path=settings.base_path)
    return Edge(traced)
