"""The load on the endpoint: what the reader counts, what clients' records say, and the tables."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.endpoint_load import read
from benchmarks.endpoint_tables import table
from benchmarks.endpoint_watch import Record, Watched

BODY = bytes(range(256)) * 1000


class _Files(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/file" else 503)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_the_reader_takes_every_byte_over_every_connection(port: int) -> None:
    load = read(port, "/file", len(BODY), fetches=20, clients=3)
    assert load.rate > 0 and 0 < load.p50 <= load.p99 and 0 <= load.share <= 1


@pytest.mark.parametrize(("path", "size"), [("/file", len(BODY) + 1), ("/none", len(BODY))])
def test_the_reader_takes_no_other_answer(port: int, path: str, size: int) -> None:
    with pytest.raises(RuntimeError, match="expected 200"):
        read(port, path, size, fetches=1, clients=1)


def test_failed_tries_and_resumed_downloads_are_written_down(port: int) -> None:
    record = Record(fault=time.monotonic())
    inner = httpx.HTTPTransport(verify=False)
    transport = Watched(inner, record, pace=50e6)
    with httpx.Client(transport=transport, base_url=f"http://127.0.0.1:{port}") as http:
        assert http.get("/file").content == BODY
        http.get("/none", headers={"range": "bytes=1-"})
        with pytest.raises(httpx.ConnectError):
            http.get("http://127.0.0.1:1/")
    inner.close()
    record.done(0.5, "right", right=True)
    record.done(0.1, "wrong", right=False)
    record.failed(3.0, "gone")
    summary = record.summary()
    assert summary["tries that failed"] == {"503": 1, "ConnectError": 1, "failed after 3.0 s": 1}
    assert (summary["calls"], summary["failed"], summary["wrong"], summary["resumed"]) == (3, 1, 1, 1)
    assert summary["recovery"] > 0 and summary["slowest"] == 3.0


def test_tables_show_ratios_within_rounds() -> None:
    def load(rate: float) -> dict[str, float]:
        return {"rate": rate, "p50": 1.0, "p99": 1000 / rate, "share": 0.25}

    rounds = {
        f"weights/{what}, round {i}": {
            "load": 1.0,
            "endpoint": load(100.0 * (i + 1)),
            "nginx": load(200.0 * (i + 1)),
            "replica": {"now": 1.0, "peak": 500.0 + i},
        }
        for what in ("1 MB", "crowd")
        for i in range(3)
    }
    rounds["weights/crowd, round 0"].pop("replica")
    del rounds["weights/crowd, round 1"], rounds["weights/crowd, round 2"]
    looked = {f"lookups/round {i}": {"load": 1.0, "empty": load(400.0), "304": load(300.0)} for i in range(2)}
    text = table(rounds | looked)
    assert "| 1 MB | nginx | 400 (200 to 600) | 0.50 (0.50 to 0.50) | 25 (25 to 25) |" in text
    assert "| nginx | 1 (1 to 1) | 5 (5 to 5) | 2.00 (2.00 to 2.00) | 25 (25 to 25) |" in text
    assert "| 1 MB | 501 (500 to 502) |" in text
    assert "| 304 | 300 (300 to 300) | 0.75 (0.75 to 0.75) | 25 (25 to 25) |" in text
