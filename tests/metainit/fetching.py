"""A fetch in a process of its own; this module imports little, since each process pays for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx

from metainit.client import Client


def fetch_in_a_process(content: bytes, cache: Path, log: Path) -> None:
    digest = hashlib.sha256(content).hexdigest()

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            with open(log, "a") as stream:
                stream.write("x")
        headers = {"etag": f'"{digest}"'}
        if request.method == "HEAD":
            headers["content-length"] = str(len(content))
            return httpx.Response(200, headers=headers)
        return httpx.Response(200, headers=headers, content=content)

    with Client("http://endpoint", transport=httpx.MockTransport(handle), cache=cache) as client:
        assert client.fetch("faces").read_bytes() == content
