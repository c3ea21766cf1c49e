"""What clients see during a fault: an httpx transport that watches the wire, and a record of the outcomes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from benchmarks.endpoint_load import quantile
from metainit.transfer import Retry

RETRY = Retry()
"""As users have it: three tries after the first, after 1, 2 and 4 s."""
CHUNK_BYTES = 1 << 20


@dataclass
class Record:
    """Outcomes of whole calls, and what went wrong on the wire, from all threads."""

    fault: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    wrong: int = 0
    resumed: int = 0
    disturbed: list[tuple[float, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def done(self, seconds: float, came: str, *, right: bool) -> None:
        """Write down a call that gave something."""
        with self._lock:
            self.latencies.append(seconds)
            self.wrong += not right

    def failed(self, seconds: float, text: str) -> None:
        """Write down a call that failed in spite of its retries."""
        with self._lock:
            self.latencies.append(seconds)
            self.failures.append(text)
            self.disturbed.append((time.monotonic(), f"failed after {seconds:.1f} s"))

    def disturb(self, what: str) -> None:
        """Write down a try that failed."""
        with self._lock:
            self.disturbed.append((time.monotonic(), what))

    def resume(self) -> None:
        """Write down a download that went on where another had ended."""
        with self._lock:
            self.resumed += 1

    def summary(self) -> dict[str, Any]:
        """Return the counts; recovery is from the fault to the last try that failed, in seconds."""
        after = [moment - self.fault for moment, _ in self.disturbed if moment >= self.fault]
        kinds: dict[str, int] = {}
        for _, what in self.disturbed:
            kinds[what] = kinds.get(what, 0) + 1
        return {
            "calls": len(self.latencies),
            "failed": len(self.failures),
            "failures": self.failures[:5],
            "wrong": self.wrong,
            "tries that failed": kinds,
            "resumed": self.resumed,
            "recovery": max(after, default=0.0),
            "slowest": max(self.latencies, default=0.0),
            "p50": quantile(self.latencies, 0.5) if self.latencies else None,
        }


class Watched(httpx.BaseTransport):
    """A transport that writes failed tries and resumed downloads down, at most `pace` bytes a second.

    A pace of 0 sets no limit. Clients that come one after the other share it: closing it does nothing.
    """

    def __init__(self, inner: httpx.BaseTransport, record: Record, pace: float = 0.0) -> None:
        self._inner, self._record, self._pace = inner, record, pace

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Pass a request on."""
        if "range" in request.headers:
            self._record.resume()
        try:
            response = self._inner.handle_request(request)
        except httpx.TransportError as error:
            self._record.disturb(type(error).__name__)
            raise
        if response.status_code in (429, 500, 502, 503, 504):
            self._record.disturb(str(response.status_code))
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Paced(response.stream, self._record, self._pace)
        return response

    def close(self) -> None:
        """Leave the connections open; whoever made them closes them."""


class _Paced(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, record: Record, pace: float) -> None:
        self._inner, self._record, self._pace = inner, record, pace

    def __iter__(self) -> Iterator[bytes]:
        began, count = time.monotonic(), 0
        try:
            for chunk in self._inner:
                yield chunk
                count += len(chunk)
                if self._pace:
                    time.sleep(max(0.0, count / self._pace - (time.monotonic() - began)))
        except httpx.TransportError as error:
            self._record.disturb(f"in a download: {type(error).__name__}")
            raise

    def close(self) -> None:
        self._inner.close()
