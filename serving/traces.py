"""Traces of requests for OpenTelemetry, where the settings name a collector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from metainit.errors import EndpointError
from serving.observed import Sink
from serving.seen import Seen
from serving.settings import EndpointSettings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

UNTRACED = "healthz,readyz,metrics"
SPANS_WAIT_MS = 2000


@dataclass(frozen=True)
class Tracing:
    """A layer that makes a span of each request, a sink that completes it, and the end of it all."""

    wrap: Callable[[ASGIApp], ASGIApp]
    sink: Sink
    stop: Callable[[], None]


def tracing(settings: EndpointSettings) -> Tracing | None:
    """Return what traces requests, or None where no collector is named.

    Raises:
        EndpointError: the packages of the extra `otel` are not installed.
    """
    if settings.traces is None:
        return None
    try:
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    except ImportError as error:
        raise EndpointError(f"traces need {error.name}: pip install 'metainit[otel]'") from error
    provider = _provider(str(settings.traces), settings.traced_share)

    def wrap(app: ASGIApp) -> ASGIApp:
        layer: Any = OpenTelemetryMiddleware(
            app,
            excluded_urls=UNTRACED,
            tracer_provider=provider,
            default_span_details=lambda scope: (scope.get("method", "HTTP"), {}),
            exclude_spans=["receive", "send"],
        )
        return layer  # type: ignore[no-any-return]

    return Tracing(wrap, complete_span, provider.shutdown)


def _provider(url: str, share: float) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    from metainit import __version__

    resource = Resource.create({"service.name": "metainit", "service.version": __version__})
    provider = TracerProvider(sampler=ParentBasedTraceIdRatio(share), resource=resource)
    exporter = OTLPSpanExporter(endpoint=url, timeout=5)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=SPANS_WAIT_MS))
    return provider


def complete_span(note: Seen) -> None:
    """Name the span of a request by its route, and note its trace for the log.

    The answer has just begun: the span ends with its last byte.
    """
    from opentelemetry import trace

    span = trace.get_current_span()
    context = span.get_span_context()
    if not context.is_valid:
        return
    note.trace = format(context.trace_id, "032x")
    span.update_name(f"{note.method} {note.route}")
    span.set_attributes({"http.route": note.route, "metainit.request_id": note.request_id})
    if note.key_id is not None:
        span.set_attribute("metainit.key_id", note.key_id)
