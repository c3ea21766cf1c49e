"""The proxy's configuration, as Ray writes it, is mended before the proxy reads it."""

from __future__ import annotations

import subprocess
import time
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
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
backend dead
    server one 127.0.0.1:{dead}
listen stats
  bind *:{stats}
  stats enable
"""


@pytest.mark.skipif(binary() is None, reason="needs HAProxy")
def test_without_a_replica_the_answer_is_503_and_when_to_try_again() -> None:
    program = binary()
    assert program is not None
    fast = fast_path(program)
    try:
        stats, metrics = (fast.environment[f"RAY_SERVE_HAPROXY_{n}_PORT"] for n in ("STATS", "METRICS"))
        port, dead = free_port(), free_port()
        path = Path(fast.environment["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"])
        where = {"folder": fast.folder, "port": port, "dead": dead, "stats": stats, "metrics": metrics}
        path.write_text(CONFIGURATION.format(**where))
        wrapper = fast.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        process = subprocess.Popen([wrapper, "-db", "-f", str(path)], stderr=subprocess.DEVNULL)
        try:
            for route in ("/v1/inits", "/dead"):
                answer = _asked(f"http://127.0.0.1:{port}{route}")
                assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["type"] == NO_REPLICA
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
