"""The configuration of the page on nginx, with its places filled in, in front of a real app."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from metainit.client import Client
from serving.app import create_app
from serving.haproxy import free_port
from serving.store import Store
from tests.serving.shelf import Shelf

NGINX = "/usr/sbin/nginx"
PAGE = Path(__file__).parents[2] / "docs" / "blobs-from-nginx.md"
FRAME = """daemon off; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ }}
http {{ access_log off; client_body_temp_path {folder}/b; proxy_temp_path {folder}/p;
fastcgi_temp_path {folder}/f;
uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
{text} }}
"""

pytestmark = pytest.mark.skipif(not os.access(NGINX, os.X_OK), reason="needs nginx")


@pytest.fixture
def endpoint(store: Store) -> Iterator[int]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(store), host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield port
    server.should_exit = True
    thread.join(20)


def configured(folder: Path, endpoint: int, port: int, blobs: Path, text: str) -> Path:
    for before, after in (
        ("127.0.0.1:8000", f"127.0.0.1:{endpoint}"),
        ("127.0.0.1:8080", f"127.0.0.1:{port}"),
        ("/var/lib/metainit/store/blobs", str(blobs)),
    ):
        assert before in text
        text = text.replace(before, after)
    user = "user root;" if os.getuid() == 0 else ""
    path = folder / "nginx.conf"
    path.write_text(FRAME.format(folder=folder, user=user, text=text))
    return path


@pytest.fixture
def nginx(endpoint: int, tmp_path: Path) -> Iterator[str]:
    block = re.search("```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block is not None
    port = free_port()
    path = configured(tmp_path, endpoint, port, tmp_path / "store" / "blobs", block[1])
    process = subprocess.Popen([NGINX, "-c", str(path), "-p", str(tmp_path)], stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/healthz", timeout=10).raise_for_status()
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline and process.poll() is None, "nginx did not start"
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def test_blobs_come_from_nginx_and_all_else_from_the_endpoint(
    nginx: str, shelf: Shelf, store: Store, tmp_path: Path
) -> None:
    path = shelf.files["faces"][1]
    content, sha256 = path.read_bytes(), shelf.digests[path]
    with httpx.Client(base_url=nginx) as http:
        whole = http.get(f"/v1/blobs/{sha256}")
        assert whole.content == content and whole.headers["server"].startswith("nginx")
        assert whole.headers["etag"] == f'"{sha256}"' and "immutable" in whole.headers["cache-control"]
        assert whole.headers["content-type"] == "application/vnd.safetensors"
        resume = {"range": "bytes=10-", "if-range": f'"{sha256}"'}
        part = http.get(f"/v1/blobs/{sha256}", headers=resume)
        assert part.status_code == 206 and part.content == content[10:]
        other = {"range": "bytes=10-", "if-range": '"another"'}
        assert http.get(f"/v1/blobs/{sha256}", headers=other).status_code == 200
        assert http.head(f"/v1/blobs/{sha256}").headers["content-length"] == str(len(content))
        assert http.get("/v1/inits/faces").json()["sha256"] == sha256
        missing = http.get(f"/v1/blobs/{'0' * 64}")
        assert missing.status_code == 404 and "problem+json" in missing.headers["content-type"]
    with Client(nginx, cache=tmp_path / "cache") as client:
        assert client.fetch("faces@champion").read_bytes() == content
