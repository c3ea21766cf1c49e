"""The front door: HAProxy's configuration as it is completed, and an endpoint with TLS, keys and a drain."""

from __future__ import annotations

import datetime
import os
import socket
import ssl
import subprocess
import threading
import time
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from metainit.client import Client
from metainit.errors import EndpointError
from serving import key_file, keys
from serving.front_door import PEM, check_certificate, open_door, trusting
from serving.haproxy import DOOR, binary, fast_path, free_port
from serving.settings import EndpointSettings
from tests.serving.shelf import Shelf
from tests.serving.test_deployments import home  # noqa: F401  # a fixture

FRONTEND = """global
defaults
    mode http
    timeout client 3600s
    timeout server 10s
    timeout connect 1s
frontend http_frontend
    bind 127.0.0.1:{port}
    acl routes path -i /-/routes
    http-request return status 200 content-type text/plain lf-string "%[req.hdr(x-metainit-hop)]|%[req.hdr(x-metainit-peer)]|%[req.hdr(x-metainit-scheme)]|%[req.hdr(x-request-id)]|%[req.hdr(x-session-id)]"
"""  # noqa: E501
needs_haproxy = pytest.mark.skipif(binary() is None, reason="no HAProxy on this machine")


def certificate(folder: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a certificate that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(name))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret


def test_a_certificate_is_checked_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    chain, _ = certificate(tmp_path)
    _, other = certificate(tmp_path / "other")
    with pytest.raises(EndpointError, match="belong together"):
        check_certificate(EndpointSettings(certificate=chain, certificate_key=other))
    with pytest.raises(EndpointError, match="No such file"):
        check_certificate(EndpointSettings(certificate=chain, certificate_key=tmp_path / "none"))
    check_certificate(EndpointSettings())


@needs_haproxy
@pytest.mark.parametrize("secure", [False, True])
def test_haproxy_takes_the_completed_configuration(tmp_path: Path, secure: bool) -> None:
    program = binary()
    assert program is not None
    chosen = EndpointSettings()
    if secure:
        chain, secret = certificate(tmp_path)
        chosen = EndpointSettings(certificate=chain, certificate_key=secret, header_seconds=3)
    inner, port = free_port(), free_port()
    fast = fast_path(program)
    try:
        door = open_door(fast.folder, "127.0.0.1", port, chosen)
        config = fast.folder / "haproxy.cfg"
        config.write_text(FRONTEND.format(port=inner))
        for path in fast.folder.iterdir():
            assert path.stat().st_mode & 0o077 == 0 or path == config
        wrapper = fast.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        process = subprocess.Popen([wrapper, "-db", "-f", str(config)], stderr=subprocess.PIPE)
        try:
            scheme = "https" if secure else "http"
            verify = ssl.create_default_context(cafile=str(chosen.certificate)) if secure else True
            with httpx.Client(verify=verify, base_url=f"{scheme}://127.0.0.1:{port}") as http:
                forged = {"x-metainit-hop": "x", "x-metainit-peer": "9.9.9.9", "x-session-id": "x"}
                for sent, kept in (("sane-1", "sane-1"), ("in sane", ""), ("x" * 65, "")):
                    said = _patiently(http, {**forged, "x-request-id": sent}).text
                    assert said.split("|") == [door.secret, "127.0.0.1", scheme, kept, ""]
                with socket.create_connection(("127.0.0.1", port), timeout=2) as plain:
                    plain.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    assert (b"200" in plain.recv(1000)) != secure
        finally:
            process.terminate()
            process.communicate(timeout=10)
        text = config.read_text()
        assert text.count("bind ") == 1 and f"bind 127.0.0.1:{port}" in text
        assert text.index("timeout http-request") > text.index("frontend http_frontend")
        wrapped = subprocess.run([wrapper, "-c", "-f", str(config)], capture_output=True, timeout=10)
        assert wrapped.returncode == 0 and config.read_text() == text  # a second run changes nothing
        assert (fast.folder / DOOR).is_file() and (fast.folder / PEM).is_file() == secure
    finally:
        fast.remove()


def _patiently(http: httpx.Client, headers: dict[str, str]) -> httpx.Response:
    deadline = time.monotonic() + 20
    while True:
        try:
            return http.get("/", headers=headers)
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.mark.slow
@needs_haproxy
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray and MLflow bring warnings of their own
def test_an_endpoint_with_tls_and_keys_ends_when_its_downloads_have(home: Path, tmp_path: Path) -> None:  # noqa: F811
    from pipelines.registry import Registry
    from serving.deployments import start

    shelf = Shelf(tmp_path / "shelf")
    shelf.add("faces", 0, elements=8_000_000)
    content = shelf.files["faces"][1].read_bytes()
    registry = Registry()
    registry.set_alias(registry.register(shelf.files["faces"][1].parent, "faces"), "champion")
    chain, secret = certificate(tmp_path)
    file = tmp_path / "keys.json"
    made = keys.make(["read"], datetime.datetime.now(datetime.UTC))
    key_file.change(file, lambda _: ((made.key,), None))
    audit = tmp_path / "audit.jsonl"
    chosen = EndpointSettings(
        keys=file, certificate=chain, certificate_key=secret, audit=audit, drain_seconds=60, replicas=1
    )
    with start(port=free_port(), poll=0.2, patience=200, settings=chosen) as endpoint:
        assert endpoint.url.startswith("https://")
        context = ssl.create_default_context(cafile=str(chain))
        with httpx.Client(base_url=endpoint.url, verify=context, timeout=60) as http:
            assert http.get("/v1/inits").status_code == 401
            assert http.get("/readyz").json() == {"ready": True}
            headers = {"authorization": f"Bearer {made.token}", "x-forwarded-for": "9.9.9.9"}
            found = http.get("/v1/inits/faces", headers=headers)
            assert found.status_code == 200
            assert len(found.headers.get_list("x-request-id")) == 1
            assert "max-age" in found.headers["strict-transport-security"]
            assert http.get("/v1/inits", headers={"x-request-timeout-seconds": b"\xff"}).status_code == 401
            assert '"address": "127.0.0.1"' in audit.read_text() and "9.9.9.9" not in audit.read_text()
            with Client(endpoint.url, made.token, httpx.HTTPTransport(verify=trusting(chain))) as client:
                assert client.fetch("faces").read_bytes() == content
            with http.stream("GET", "/v1/inits/faces/weights", headers=headers) as answer:
                chunks = answer.iter_raw(1 << 20)
                body = next(chunks)
                stop = threading.Thread(target=endpoint.stop)
                stop.start()
                for chunk in chunks:  # slower than the stop would be without a drain
                    body += chunk
                    time.sleep(0.25)
                assert stop.is_alive()  # it has waited for this
                assert body == content
            stop.join(timeout=60)
            assert not stop.is_alive()
    assert secret.read_text() not in audit.read_text() and os.listdir(tmp_path)
