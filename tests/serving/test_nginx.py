"""The sample configuration of nginx: it is valid, and what it serves is what the endpoint serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

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


WITHOUT_KEYS = {
    "            auth_request /may-have; # without keys: take this line away\n": "",
    'Control "private, max-age=31536000, immutable"; # without keys: public': (
        'Control "public, max-age=31536000, immutable";'
    ),
}
"""What the page about blobs says to change in the sample."""


def adapted(folder: Path, port: int, endpoint: int, blobs: Path, changes: Mapping[str, str]) -> Path:
    """Write the sample with the places of this test in it; each has to be in the sample."""
    chain, key = certificate(folder)
    text = SAMPLE.read_text()
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    places = {
        "/run/nginx-metainit.pid": folder / "pid",
        "/var/log/nginx/metainit.log": folder / "access.log",
        "/var/log/nginx/metainit.error.log": folder / "error.log",
        "/etc/metainit/chain.pem": chain,
        "/etc/metainit/key.pem": key,
        "/var/cache/metainit/store/blobs": blobs,
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


@contextmanager
def listening(app: FastAPI) -> Iterator[int]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", proxy_headers=False, ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture
def endpoint(store: Store, tmp_path: Path) -> Iterator[tuple[int, str]]:
    """The endpoint behind a real server, which asks for keys and trusts nginx; and a key."""
    made = keys.make(["read"], datetime.now(UTC))
    key_file.change(tmp_path / "keys.json", lambda _: ((made.key,), None))
    chosen = EndpointSettings(
        keys=tmp_path / "keys.json",
        trusted_proxies=["127.0.0.1"],
        audit=tmp_path / "audit.jsonl",
    )
    with listening(create_app(store, settings=chosen)) as port:
        yield port, made.token


@contextmanager
def nginx(path: Path, port: int) -> Iterator[httpx.Client]:
    """Run nginx with a configuration, once it has been found valid; give a client of it."""
    assert PROGRAM is not None
    checked = subprocess.run([PROGRAM, "-t", "-c", str(path)], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr
    assert "warn" not in checked.stderr
    process = subprocess.Popen([PROGRAM, "-c", str(path), "-g", "daemon off;"], stderr=subprocess.PIPE)
    try:
        context = ssl.create_default_context(cafile=str(path.parent / "chain.pem"))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, timeout=20) as http:
            _wait_for(http)
            yield http
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_nginx_serves_the_blobs_from_disk_to_who_may_have_them(
    endpoint: tuple[int, str], store: Store, shelf: Shelf, tmp_path: Path
) -> None:
    inner, token = endpoint
    folder = tmp_path / "nginx"
    folder.mkdir()
    port = free_port()
    content = shelf.files["faces"][1].read_bytes()
    digest = shelf.digests[shelf.files["faces"][1]]
    blob = f"/v1/blobs/{digest}"
    with nginx(adapted(folder, port, inner, tmp_path / "store" / "blobs", {}), port) as http:
        assert http.get(blob).status_code == 401
        http.headers["authorization"] = f"Bearer {token}"
        direct = http.get(blob)
        assert direct.status_code == 200 and direct.content == content
        assert direct.headers["etag"] == f'"{digest}"'
        assert direct.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert direct.headers["server"].startswith("nginx")
        part = http.get(blob, headers={"range": "bytes=3-9"})
        assert part.status_code == 206 and part.content == content[3:10]
        _resumes(http, blob, digest, content)
        assert http.get("/may-have").status_code == 404
        weights = http.get("/v1/inits/faces/weights", headers={"x-forwarded-for": "192.0.2.7"})
        assert weights.content == content and "strict-transport-security" in weights.headers
        assert http.get("/v1/inits?after=" + "x" * 300).status_code == 422
        transport = httpx.HTTPTransport(verify=trusting(folder / "chain.pem"))
        with Client(f"https://127.0.0.1:{port}", token, transport, cache=tmp_path / "cache") as client:
            assert client.fetch("faces").read_bytes() == content
    assert token.split("_")[2] not in (folder / "access.log").read_text()
    told = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert {line["address"] for line in told} == {"127.0.0.1"}  # nginx's word, never the client's


def test_without_keys_two_lines_of_the_sample_change(store: Store, shelf: Shelf, tmp_path: Path) -> None:
    folder = tmp_path / "nginx"
    folder.mkdir()
    port = free_port()
    content = shelf.files["faces"][1].read_bytes()
    digest = shelf.digests[shelf.files["faces"][1]]
    with listening(create_app(store)) as inner:
        path = adapted(folder, port, inner, tmp_path / "store" / "blobs", WITHOUT_KEYS)
        with nginx(path, port) as http:
            direct = http.get(f"/v1/blobs/{digest}")
            assert direct.content == content and direct.headers["server"].startswith("nginx")
            assert direct.headers["cache-control"] == "public, max-age=31536000, immutable"
            _resumes(http, f"/v1/blobs/{digest}", digest, content)
            assert http.head(f"/v1/blobs/{digest}").headers["content-length"] == str(len(content))
            assert http.get("/v1/inits/faces").json()["sha256"] == digest


def test_the_page_about_blobs_has_no_sample_of_its_own() -> None:
    page = (SAMPLE.parent / "blobs-from-nginx.md").read_text()
    assert "(nginx.conf)" in page and "location" not in page
    unit = (SAMPLE.parents[1] / "deploy" / "systemd" / "metainit-endpoint.service").read_text()
    cache = re.search(r"--cache (\S+)", unit)
    assert cache is not None and f"alias {cache[1]}/blobs/" in SAMPLE.read_text()


def _resumes(http: httpx.Client, blob: str, digest: str, content: bytes) -> None:
    """What is conditional, and what is not there, is the endpoint's to answer."""
    resumed = http.get(blob, headers={"range": "bytes=5-", "if-range": f'"{digest}"'})
    assert resumed.status_code == 206 and resumed.content == content[5:]
    other = http.get(blob, headers={"range": "bytes=5-", "if-range": '"another"'})
    assert other.status_code == 200 and other.content == content
    assert http.get(blob, headers={"if-none-match": f'"{digest}"'}).status_code == 304
    missing = http.get("/v1/blobs/" + "0" * 64)
    assert missing.status_code == 404 and "problem+json" in missing.headers["content-type"]


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
