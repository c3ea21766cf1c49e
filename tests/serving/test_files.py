"""A file leaves byte by byte as it is, whatever the kernel holds of it."""

from __future__ import annotations

import errno
import os
from typing import Any

import httpx
import pytest

from serving import files
from tests.serving.shelf import Shelf

WEIGHTS = "/v1/inits/faces/weights"


@pytest.fixture
def content(shelf: Shelf) -> bytes:
    return shelf.files["faces"][1].read_bytes()


@pytest.mark.parametrize("refused", [errno.EAGAIN, errno.EOPNOTSUPP, None])
def test_bytes_come_from_memory_and_from_disk(
    http: httpx.Client, content: bytes, monkeypatch: pytest.MonkeyPatch, refused: int | None
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 100)
    if refused is None:
        monkeypatch.delattr(os, "RWF_NOWAIT", raising=False)
    else:

        def preadv(*_: object) -> int:
            raise OSError(refused, os.strerror(refused))

        monkeypatch.setattr(os, "preadv", preadv)
    assert http.get(WEIGHTS).content == content
    part = http.get(WEIGHTS, headers={"range": "bytes=7-350"})
    assert part.status_code == 206 and part.content == content[7:351]


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="needs reads that do not wait")
def test_a_short_read_goes_on_where_it_ended(
    http: httpx.Client, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.preadv

    def short(handle: int, buffers: list[bytearray], at: int, flags: int) -> int:
        return read(handle, [memoryview(buffers[0])[: 1 + at % 50]], at, flags)

    monkeypatch.setattr(os, "preadv", short)
    assert http.get(WEIGHTS).content == content


def test_a_disk_that_fails_at_once_is_told(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    answer = http.get(WEIGHTS)
    assert answer.status_code == 500 and answer.headers["content-type"] == "application/problem+json"
