"""The sample configuration of nginx: it is valid, and what it serves is what the endpoint serves."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import uvicorn

from metainit.client import Client
from serving import key_file, keys
from serving.app import create_app
from serving.front_door import trusting
from serving.haproxy import free_port
from serving.settings import EndpointSettings
from serving.store import Store
from tests.serving.shelf import Shelf
from tests.serving.test_front_door import certificate

SAMPLE = Path(__file__).parents[2] / "docs" / "nginx.conf"
PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no nginx on this machine")


def adapted(folder: Path, port: int, endpoint: int, blobs: Path) -> Path:
    """Write the sample with the places of this test in it; each has to be in the sample."""
    chain, key = certificate(folder)
    text = SAMPLE.read_text()
    places = {
        "/run/nginx-metainit.pid": folder / "pid",
        "/var/log/nginx/metainit.log": folder / "access.log",
        "/var/log/nginx/metainit.error.log": folder / "error.log",
        "/etc/metainit/chain.pem": chain,
        "/etc/metainit/key.pem": key,
        "/var/lib/metainit/store/blobs": blobs,
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "server 127.0.0.1:8000": f"server 127.0.0.1:{endpoint}",
        "worker_processes auto": "worker_processes 1",
    }
    for place, here in places.items():
        assert place in text
        text = text.replace(place, str(here))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    own = "".join(f"    {kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    text = text.replace("http {\n", f"http {{\n{own}", 1)
    if os.geteuid() == 0:
        text = f"user root;\n{text}"  # else its workers could not read this test's folder
    path = folder / "nginx.conf"
    path.write_text(text)
    return path


@pytest.fixture
def endpoint(store: Store, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The endpoint behind a real server, which asks for keys and trusts nginx; and a key."""
    made = keys.make(["read"], datetime.now(UTC))
    key_file.change(tmp_path / "keys.json", lambda _: ((made.key,), None))
    chosen = EndpointSettings(keys=tmp_path / "keys.json", trusted_proxies=["127.0.0.1"])  # type: ignore[arg-type]
    port = free_port()
    app = create_app(store, settings=chosen)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", proxy_headers=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    yield port, made.token
    server.should_exit = True
    thread.join(timeout=30)


def test_nginx_serves_the_blobs_from_disk_to_who_may_have_them(
    endpoint: tuple[int, str], store: Store, shelf: Shelf, tmp_path: Path
) -> None:
    assert PROGRAM is not None
    inner, token = endpoint
    folder = tmp_path / "nginx"
    folder.mkdir()
    port = free_port()
    path = adapted(folder, port, inner, tmp_path / "store" / "blobs")
    checked = subprocess.run([PROGRAM, "-t", "-c", str(path)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
    process = subprocess.Popen([PROGRAM, "-c", str(path), "-g", "daemon off;"], stderr=subprocess.PIPE)
    content = shelf.files["faces"][1].read_bytes()
    digest = shelf.digests[shelf.files["faces"][1]]
    blob = f"/v1/blobs/{digest}"
    try:
        context = ssl.create_default_context(cafile=str(folder / "chain.pem"))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=20) as http:
            _wait_for(http)
            assert http.get(blob).status_code == 401
            http.headers["authorization"] = f"Bearer {token}"
            direct = http.get(blob)
            assert direct.status_code == 200 and direct.content == content
            assert direct.headers["etag"] == f'"{digest}"' and "immutable" in direct.headers["cache-control"]
            assert direct.headers["server"].startswith("nginx")
            part = http.get(blob, headers={"range": "bytes=3-9"})
            assert part.status_code == 206 and part.content == content[3:10]
            resumed = http.get(blob, headers={"range": "bytes=5-", "if-range": f'"{digest}"'})
            assert resumed.status_code == 206 and resumed.content == content[5:]
            assert http.get(blob, headers={"if-none-match": f'"{digest}"'}).status_code == 304
            assert http.get("/v1/blobs/" + "0" * 64).status_code == 404
            assert http.get("/may-have").status_code == 404
            weights = http.get("/v1/inits/faces/weights")
            assert weights.content == content and "strict-transport-security" in weights.headers
            assert http.get("/v1/inits?after=" + "x" * 300).status_code == 422
        transport = httpx.HTTPTransport(verify=trusting(folder / "chain.pem"))
        with Client(f"https://127.0.0.1:{port}", token, transport, cache=tmp_path / "cache") as client:
            assert client.fetch("faces").read_bytes() == content
        (tmp_path / "store" / "blobs" / f"{digest}.safetensors").chmod(0o644)
        assert token.split("_")[2] not in (folder / "access.log").read_text()
    finally:
        process.terminate()
        process.communicate(timeout=20)


def _wait_for(http: httpx.Client) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            http.get("/healthz")
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
