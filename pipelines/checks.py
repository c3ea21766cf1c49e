"""What `metainit doctor` asks of this room."""

from __future__ import annotations

import os
import socket
from importlib.metadata import version

from metainit.diagnosis import Finding


def registered_names() -> int:
    """Return how many names the registry holds.

    Raises:
        RegistryError: the registry cannot be reached.
    """
    from pipelines.registry import Registry

    return len(Registry().names())


def ray_cluster() -> list[Finding]:
    """Say which Ray a run would use, and whether something answers there; none is started."""
    subject, here = "Ray", version("ray")
    address = os.environ.get("RAY_ADDRESS")
    if not address or address in ("auto", "local"):
        return [Finding("ok", subject, f"{here}; a run starts its own, since RAY_ADDRESS names none")]
    host, _, port = address.rpartition("://")[2].rpartition(":")
    remedy = "start the cluster, correct RAY_ADDRESS, or unset it"
    if not host or not port.isdecimal():
        return [Finding("error", subject, f"RAY_ADDRESS={address}", "host:port or ray://host:port", remedy)]
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        found = f"nothing answers at RAY_ADDRESS={address} ({error})"
        return [Finding("error", subject, found, "a Ray cluster", remedy)]
    return [Finding("ok", subject, f"{here}; something answers at RAY_ADDRESS={address}")]
