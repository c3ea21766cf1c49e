"""Prometheus metrics of one app, in a registry of its own, and the middleware that feeds them."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.store import Store

LATENCIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics:
    """Counters of requests, bytes and seconds by route, and gauges that read the store."""

    def __init__(self, store: Store) -> None:
        """Make every metric; the gauges read `store` when they are asked."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "metainit_requests", "answers", ["method", "route", "status"], registry=self.registry
        )
        self.bytes = Counter("metainit_sent_bytes", "body bytes", ["route"], registry=self.registry)
        self.seconds = Histogram(
            "metainit_request_seconds",
            "from the request to the last byte of its answer",
            ["route"],
            buckets=LATENCIES,
            registry=self.registry,
        )
        self._gauge("metainit_inits", "names on offer", lambda: len(store.catalog.inits))
        self._gauge("metainit_registry_stale", "1 if the last look failed", lambda: store.status.stale)
        self._gauge("metainit_pulled", "versions brought from the registry", lambda: store.counts.pulled)
        self._gauge("metainit_refused", "pulls that failed", lambda: store.counts.refused)
        self._gauge("metainit_quarantined", "damaged versions", lambda: len(store.quarantined))

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """Middleware that counts every answer under the pattern of its route, never its raw path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap an app."""
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and watch what is sent."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, sent = time.perf_counter(), 500, 0

        async def watch(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.requests.labels(scope["method"], route, str(status)).inc()
            self.metrics.bytes.labels(route).inc(sent)
            self.metrics.seconds.labels(route).observe(time.perf_counter() - began)
