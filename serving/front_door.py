"""The front door: HAProxy's own frontend as Serve configures it, with TLS, time-outs, and proof of passage.

Serve writes HAProxy's configuration anew whenever replicas come or go, and knows no TLS there. A script
for `sed`, which the wrapper of the program runs over each new configuration, completes it.
"""

from __future__ import annotations

import os
import secrets
import ssl
from pathlib import Path

from metainit.errors import EndpointError
from serving.haproxy import DOOR
from serving.peers import HOP, PEER, SCHEME, Door
from serving.settings import EndpointSettings

RAYS_OWN = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "serve_multiplexed_model_id",
    "serve-multiplexed-model-id",
    "x-session-id",
)
"""Headers by which a client could steer Ray Serve, which also fails on those that are no UTF-8."""
PEM = "certificate.pem"


def open_door(folder: Path, host: str, port: int, settings: EndpointSettings) -> Door:
    """Write down how the front door differs from Serve's, into the private folder of the fast path.

    Returns:
        What a request proves with that it came through the door.
    """
    door = Door(secrets.token_hex(32))
    tls = ""
    if settings.certificate is not None and settings.certificate_key is not None:
        pem = _joined(folder / PEM, settings.certificate, settings.certificate_key)
        tls = f" ssl crt {pem} ssl-min-ver TLSv1.2 alpn http/1.1"
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    rules = [
        f"timeout client {settings.idle_seconds}s",
        f"timeout http-request {settings.header_seconds}s",
        *(f"http-request del-header {name}" for name in RAYS_OWN),
        "http-request del-header x-request-id if !{ req.hdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$ }",
        f"http-request set-header {HOP} {door.secret}",
        f"http-request set-header {PEER} %[src]",
        f"http-request set-header {SCHEME} {'https' if tls else 'http'}",
    ]
    lines = ["/^frontend http_frontend/{", "n", f"s|^ *bind .*|    bind {address}{tls}|"]
    lines += [f"a\\    {rule}" for rule in rules]
    _write_private(folder / DOOR, "\n".join([*lines, "}", ""]).encode())
    return door


def check_certificate(settings: EndpointSettings) -> None:
    """Make sure that certificate and key can be used.

    Raises:
        EndpointError: one cannot be read, or they do not belong together.
    """
    if settings.certificate is None or settings.certificate_key is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(settings.certificate, settings.certificate_key, password=_no_password)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise EndpointError(
            f"the certificate {settings.certificate} and the key {settings.certificate_key} cannot be used: "
            f"{error}; expected PEM files that belong together, the key without a password"
        ) from error


def trusting(certificate: Path) -> ssl.SSLContext:
    """Return how to talk to an endpoint with this certificate under whatever name: its own start-up does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate)
    return context


def _no_password() -> str:
    raise ValueError("the key has a password")


def _joined(pem: Path, certificate: Path, key: Path) -> Path:
    """Write certificate and key into one file, as HAProxy wants them."""
    _write_private(pem, certificate.read_bytes().rstrip() + b"\n" + key.read_bytes())
    return pem


def _write_private(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
