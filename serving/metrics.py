"""Prometheus metrics of one app, in a registry of its own, fed by what is noted of each request."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from metainit import __version__
from serving.bounds import Load
from serving.catalog import Catalog
from serving.seen import Seen
from serving.store import Store

LATENCIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MOST_MODELS = 500
"""Series of model versions; further ones are counted, not named."""
MADE = ("/predict", "/generate")
FETCHED = ("/weights", "/blobs/{sha256}")


class Metrics:
    """Counters of requests, bytes and seconds by route, and gauges that read the store when they are asked.

    Args:
        store: what is served.
        load: requests under way.
        queue: predictions under way.
    """

    def __init__(self, store: Store, load: Load | None = None, queue: Callable[[], int] = lambda: 0) -> None:
        """Make every metric."""
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "answers", "method", "route", "status")
        self.bytes = self._counter("sent_bytes", "body bytes", "route")
        self.problems = self._counter("problems", "requests that were answered with a problem", "kind")
        self.cache = self._counter("cache", "what need not be made or sent again", "of", "found")
        self.seconds = Histogram(
            "metainit_request_seconds",
            "from the request to the last byte of its answer",
            ["route"],
            buckets=LATENCIES,
            registry=self.registry,
        )
        self._requests: dict[tuple[str, str, int], Counter] = {}
        load = load or Load()
        self._gauge("metainit_in_flight", "requests under way", lambda: load.under_way)
        self._gauge("metainit_queue", "predictions under way", queue)
        self._gauge("metainit_inits", "names on offer", lambda: len(store.catalog.inits))
        self._gauge("metainit_registry_stale", "1 if out of reach", lambda: store.stale_for() is not None)
        self._gauge("metainit_registry_stale_seconds", "0 if in reach", lambda: store.stale_for() or 0.0)
        self._gauge("metainit_pulled", "versions brought from the registry", lambda: store.counts.pulled)
        self._gauge("metainit_refused", "pulls that failed", lambda: store.counts.refused)
        self._gauge("metainit_quarantined", "damaged versions", lambda: len(store.quarantined))
        self._gauge("metainit_disk_free_bytes", "where copies are kept", lambda: store.free_bytes() or 0)
        build = Info("metainit_build", "what runs", registry=self.registry)
        build.info({"version": __version__, "python": platform.python_version()})
        self.registry.register(_Models(lambda: store.catalog))

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"metainit_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        Gauge(name, text, registry=self.registry).set_function(read)

    def count(self, note: Seen) -> None:
        """Count an answer under the pattern of its route, never its raw path."""
        which = (note.method, note.route, note.status)
        counter = self._requests.get(which)
        if counter is None:
            counter = self._requests[which] = self.requests.labels(note.method, note.route, str(note.status))
        counter.inc()
        self.bytes.labels(note.route).inc(note.sent)
        self.seconds.labels(note.route).observe(note.seconds)
        if note.problem is not None:
            self.problems.labels(note.problem).inc()
        elif (found := cache_outcome(note)) is not None:
            self.cache.labels(*found).inc()

    def text(self) -> str:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry).decode()


def cache_outcome(note: Seen) -> tuple[str, str] | None:
    """Return which cache an answer says something of, and whether it was found there.

    Example:
        >>> fetched = Seen('id', 'GET', '', '', status=304, route='/v1/inits/{reference}/weights')
        >>> cache_outcome(fetched)
        ('client', 'hit')
    """
    if note.route.endswith(MADE) and note.status in (200, 201):
        return "made", "hit" if note.status == 200 else "miss"
    if note.route.endswith(FETCHED) and note.method == "GET" and note.status in (200, 206, 304):
        return "client", "hit" if note.status == 304 else "miss"
    return None


class _Models(Collector):
    """An info gauge of what names and aliases mean; of bounded length."""

    def __init__(self, catalog: Callable[[], Catalog]) -> None:
        self._catalog = catalog

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the catalog of this moment."""
        labels = ["name", "version", "alias", "kind", "sha256"]
        models = GaugeMetricFamily("metainit_model_info", "what a name or an alias means", labels=labels)
        named = left = 0
        for name, init in sorted(self._catalog().inits.items()):
            for alias, version in (("", init.default), *sorted(init.aliases.items())):
                facts = init.find(version)
                if facts is None or named >= MOST_MODELS:
                    left += 1
                    continue
                named += 1
                models.add_metric([name, str(version), alias, facts.kind, facts.sha256[:12]], 1)
        yield models
        yield GaugeMetricFamily("metainit_models_unnamed", "left out above", value=left)
