"""The proxy's configuration, as Ray writes it, is mended before the proxy reads it."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from serving.haproxy import NO_REPLICA, binary, fast_path, free_port

CONFIGURATION = """global
    maxconn 100
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    errorfile 502 {folder}/500.http
    errorfile 503 {folder}/500.http
    errorfile 504 {folder}/500.http
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind 127.0.0.1:{port}
    acl is_dead path_beg /dead
    use_backend dead if is_dead
    acl is_alive path_beg /alive
    use_backend alive if is_alive
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
backend alive
    server one 127.0.0.1:{alive}
backend dead
    server one 127.0.0.1:{dead}
listen stats
  bind *:{stats}
  stats enable
"""


class KnowsNothing(BaseHTTPRequestHandler):
    """Answers 404: in text, as Ray's own proxy does, and as a problem, as the endpoint does."""

    def do_GET(self) -> None:
        self.send_response(404)
        problem = self.path.endswith("json")
        self.send_header("content-type", "application/problem+json" if problem else "text/plain")
        self.send_header("content-length", "7")
        self.end_headers()
        self.wfile.write(b"nothing")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def knows_nothing() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), KnowsNothing)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.skipif(binary() is None, reason="needs HAProxy")
def test_without_a_replica_the_answer_is_503_and_when_to_try_again(knows_nothing: HTTPServer) -> None:
    program = binary()
    assert program is not None
    fast = fast_path(program)
    try:
        stats, metrics = (fast.environment[f"RAY_SERVE_HAPROXY_{n}_PORT"] for n in ("STATS", "METRICS"))
        port, dead = free_port(), free_port()
        path = Path(fast.environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
        where = {"folder": fast.folder, "port": port, "dead": dead, "stats": stats, "metrics": metrics}
        where["alive"] = knows_nothing.server_port
        path.write_text(CONFIGURATION.format(**where))
        wrapper = fast.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        process = subprocess.Popen([wrapper, "-db", "-f", str(path)], stderr=subprocess.DEVNULL)
        try:
            for route in ("/v1/inits", "/dead", "/alive/text"):
                answer = _asked(f"http://127.0.0.1:{port}{route}")
                assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["type"] == NO_REPLICA
            answer = _asked(f"http://127.0.0.1:{port}/alive/json")
            assert answer.status_code == 404 and answer.text == "nothing"
        finally:
            process.terminate()
            process.wait(10)
        written = path.read_text()
        assert f"bind 127.0.0.1:{stats}" in written and f"bind 127.0.0.1:{metrics}" in written
    finally:
        fast.remove()


def _asked(url: str) -> httpx.Response:
    deadline = time.monotonic() + 60
    while True:
        try:
            return httpx.get(url, timeout=10)
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the proxy did not start"
            time.sleep(0.05)
