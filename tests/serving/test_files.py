"""A file leaves byte by byte as it is, whatever the kernel holds of it."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from serving import files
from serving.files import CHUNKS_AT_ONCE, FileSlice
from serving.observed import Observed
from serving.seen import Seen
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


@pytest.mark.parametrize("call", ["stat", "open"])
def test_a_file_that_made_room_a_moment_ago_can_be_asked_for_again(
    http: httpx.Client, content: bytes, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    real, dropped = (Path.stat, os.open), False

    def stat(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        nonlocal dropped
        if call == "stat" and path.suffix == ".safetensors" and "blobs" in path.parts:
            dropped = True
            raise FileNotFoundError(path)
        return real[0](path, follow_symlinks=follow_symlinks)

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        nonlocal dropped
        if call == "open" and "blobs" in Path(path).parts:
            dropped = True
            raise FileNotFoundError(path)
        return real[1](path, flags, *more, **named)

    assert http.get(WEIGHTS).content == content
    monkeypatch.setattr(files.Path, "stat", stat)
    monkeypatch.setattr(files.os, "open", opened)
    answer = http.get(WEIGHTS)
    assert dropped and answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json()["type"].endswith("not-ready") and "ask again" in answer.json()["detail"]
    monkeypatch.undo()
    assert http.get(WEIGHTS).content == content


@pytest.mark.parametrize("leaves", [True, False])
def test_a_client_that_leaves_ends_the_reading_and_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaves: bool
) -> None:
    monkeypatch.setattr(files, "CHUNK_BYTES", 10)
    chunks = 10 * CHUNKS_AT_ONCE
    path = tmp_path / "file"
    path.write_bytes(bytes(10 * chunks))
    notes: list[Seen] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await FileSlice(path, 0, 10 * chunks, 200, "text/plain", {})(scope, receive, send)

    async def ask() -> None:
        left = asyncio.Event()
        came: list[Message] = [{"type": "http.request"}]

        async def receive() -> Message:
            if came:
                return came.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:  # as a server's: it does not wait for a client that left
            sent.append(message)
            if leaves and len(sent) == 3:
                asyncio.get_running_loop().call_soon(left.set)

        scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
        await Observed(app, sinks=[notes.append])(scope, receive, send)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing keeps watching"

    asyncio.run(ask())
    if leaves:
        assert len(sent) < 3 * CHUNKS_AT_ONCE and notes[0].status == 499
    else:
        assert len(sent) == chunks + 1 and notes[0].status == 200
        assert sum(len(message.get("body", b"")) for message in sent) == 10 * chunks
