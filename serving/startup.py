"""What a start-up needs: an address that is free, and an end in any case."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable

from metainit.errors import EndpointError


class Clock:
    """Laps of a start-up that has to end within `patience` seconds."""

    def __init__(self, patience: float) -> None:
        """Start now."""
        self.patience = patience
        self.laps: dict[str, float] = {}
        self._began = self._before = time.monotonic()

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.patience - (time.monotonic() - self._began)

    def lap(self, name: str) -> None:
        """Write down the seconds since the last lap."""
        now = time.monotonic()
        self.laps[name], self._before = round(now - self._before, 2), now


def bounded(step: Callable[[], None], clock: Clock) -> None:
    """Run a step that may wait for Ray without end, and give it up with the clock.

    Raises:
        EndpointError: the time is up; an error of the step itself is passed on.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            step()
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="metainit-serve-start", daemon=True)
    thread.start()
    thread.join(max(0.0, clock.left()))
    if thread.is_alive():
        raise EndpointError(
            f"Ray Serve did not start within {clock.patience:.0f} s; see logs/serve in the folder "
            "of its session, which Ray keeps in its temporary folder"
        )
    if failures:
        raise failures[0]


def check_port(host: str, port: int) -> None:
    """Make sure that a port can be listened on.

    Raises:
        EndpointError: it is in use, not allowed, or the host is not an address of this machine.
    """
    if not 1 <= port <= 65535:
        raise EndpointError(f"port {port} does not exist; choose one from 1024 to 65535")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise EndpointError(
            f"cannot listen on {host} port {port}: {error.strerror or error}; choose another "
            f"port with --port, or stop what listens there (find it with: ss -ltnp sport = :{port})"
        ) from error


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only.

    Example:
        >>> is_loopback('127.0.0.1'), is_loopback('localhost'), is_loopback('0.0.0.0')
        (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """Return the host part of a URL under which a listener is reached from this machine.

    Example:
        >>> reachable('0.0.0.0'), reachable('::1')
        ('127.0.0.1', '[::1]')
    """
    if host in ("0.0.0.0", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
