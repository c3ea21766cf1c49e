"""Downloads from a real server: killed and gone on with, shared, cancelled; and how patient a client is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
import uvicorn

from metainit.async_client import AsyncClient
from metainit.client import Client
from metainit.errors import EndpointError
from metainit.kept import Kept
from metainit.transfer import Patience, Retry, file_sha256
from metainit.wire import Pause, Transient
from serving.app import create_app
from serving.store import Store
from tests.serving.shelf import Shelf

ELEMENTS = 1 << 21
FETCH = """
import sys
from pathlib import Path
from metainit.client import Client
with Client(sys.argv[1], cache=Path(sys.argv[2])) as client:
    print(client.fetch("faces"))
"""


@dataclass
class Slow:
    """The app behind a line that takes its time for each piece of a body, and notes what was asked."""

    app: Any
    seconds: float = 0.0
    ranges: list[str] = field(default_factory=list)

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "GET" and "/blobs/" in scope["path"]:
            asked = dict(scope["headers"])
            self.ranges.append(asked.get(b"range", b"").decode())
            if asked.get(b"range"):
                assert asked[b"if-range"].startswith(b'"')

        async def later(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body" and len(message.get("body", b"")) > 1000:
                await asyncio.sleep(self.seconds)
            await send(message)

        await self.app(scope, receive, later)


@dataclass(frozen=True)
class Running:
    url: str
    line: Slow
    shelf: Shelf

    @property
    def content(self) -> bytes:
        return self.shelf.files["faces"][1].read_bytes()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("served")
    shelf = Shelf(folder / "registry")
    shelf.add("faces", 0, "champion", elements=ELEMENTS)
    line = Slow(create_app(Store(shelf, folder / "store", poll=3600.0)))
    server = uvicorn.Server(uvicorn.Config(line, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        for _ in range(600):
            if server.started:
                break
            time.sleep(0.05)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", line, shelf)
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def endpoint(served: Running) -> Running:
    served.line.ranges.clear()
    served.line.seconds = 0.0
    return served


def parts(cache: Path) -> list[Path]:
    return list((cache / "blobs").glob("*.part"))


def part_of(cache: Path, size: int) -> int:
    """Wait until a part has so many bytes, at most half a minute, and return how many it has."""
    for _ in range(3000):
        with suppress(OSError):
            if parts(cache) and parts(cache)[0].stat().st_size >= size:
                return parts(cache)[0].stat().st_size
        time.sleep(0.01)
    raise AssertionError("nothing arrived")


def fetching(endpoint: Running, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FETCH, endpoint.url, str(cache)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_download_goes_on_where_it_stopped(endpoint: Running, tmp_path: Path) -> None:
    endpoint.line.seconds = 0.3
    killed = fetching(endpoint, tmp_path)
    try:
        part_of(tmp_path, 1 << 20)
    finally:
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=30)
    have = parts(tmp_path)[0].stat().st_size
    assert 1 << 20 <= have < len(endpoint.content)
    endpoint.line.seconds = 0.0
    with Client(endpoint.url, cache=tmp_path) as client:  # its lock went with the process
        assert client.fetch("faces").read_bytes() == endpoint.content
    assert endpoint.line.ranges == ["", f"bytes={have}-"]
    assert not parts(tmp_path)


def test_processes_share_one_download(endpoint: Running, tmp_path: Path) -> None:
    endpoint.line.seconds = 0.1
    both = [fetching(endpoint, tmp_path) for _ in range(2)]
    try:
        paths = {one.communicate(timeout=120)[0].strip() for one in both}
    finally:
        for one in both:
            one.kill()
    assert [one.returncode for one in both] == [0, 0] and len(paths) == 1
    assert file_sha256(Path(paths.pop())) == endpoint.shelf.digests[endpoint.shelf.files["faces"][1]]
    assert endpoint.line.ranges == [""]


def test_tasks_share_one_download(endpoint: Running, tmp_path: Path) -> None:
    endpoint.line.seconds = 0.02

    async def main() -> list[Path]:
        async with AsyncClient(endpoint.url, cache=tmp_path) as client:
            return list(await asyncio.gather(*(client.fetch("faces") for _ in range(6))))

    assert {path.read_bytes() == endpoint.content for path in asyncio.run(main())} == {True}
    assert endpoint.line.ranges == [""]


def test_threads_share_one_download(endpoint: Running, tmp_path: Path) -> None:
    with Client(endpoint.url, cache=tmp_path) as client, ThreadPoolExecutor(4) as threads:
        found = list(threads.map(client.fetch, ["faces"] * 8))
    assert len(set(found)) == 1 and endpoint.line.ranges == [""]


def test_what_was_cancelled_is_gone_on_with(endpoint: Running, tmp_path: Path) -> None:
    endpoint.line.seconds = 0.3

    async def main() -> bytes:
        async with AsyncClient(endpoint.url, cache=tmp_path) as client:
            with anyio.move_on_after(1.5) as scope:
                await client.fetch("faces")
            assert scope.cancelled_caught
            endpoint.line.seconds = 0.0
            path = await client.fetch("faces")  # the lock was given back
            return path.read_bytes()

    assert asyncio.run(main()) == endpoint.content
    first, second = endpoint.line.ranges
    assert first == "" and second.startswith("bytes=") and int(second[6:-1]) >= 1 << 20


def test_a_loop_goes_on_while_a_client_waits_for_a_lock(endpoint: Running, tmp_path: Path) -> None:
    sha256 = endpoint.shelf.digests[endpoint.shelf.files["faces"][1]]
    lock = Kept(tmp_path).lock(sha256)
    Path(lock.lock_file).parent.mkdir(parents=True)

    async def main() -> None:
        async with AsyncClient(endpoint.url, cache=tmp_path) as client:
            with lock:
                task = asyncio.create_task(client.fetch("faces"))
                beats = 0
                for _ in range(20):
                    await asyncio.sleep(0.02)
                    beats += 1
                assert not task.done() and beats == 20 and endpoint.line.ranges == []
            assert (await asyncio.wait_for(task, 30)).read_bytes() == endpoint.content

    asyncio.run(main())


# --- patience


def waits(retry: Retry, asked: list[float | None], tick: Callable[[], None] = lambda: None) -> list[float]:
    """The pauses between tries that fail one after the other, until the client gives up."""
    patience, found = Patience(retry, "http://endpoint"), list[float]()
    for wish in asked:
        tick()
        try:
            for need in patience.pause(Transient("no", wish)):
                assert isinstance(need, Pause)
                found.append(need.seconds)
        except EndpointError:
            break
    return found


def test_four_tries_and_ten_seconds_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits(Retry(), [None] * 9) == [1.4, 2.8, 5.6]  # longer than a proxy takes to start again
    assert waits(Retry(), [3.0, 4.0, None, 5.0]) == [3.0, 4.0, 5.6]  # Retry-After is honoured
    assert waits(Retry(), [30.0] * 3) == []  # and not cut short: no try would be begun in time
    now = [0.0]
    monkeypatch.setattr("metainit.transfer.time.monotonic", lambda: now[0])

    def tick() -> None:
        now[0] += 4.0

    assert waits(Retry(attempts=100), [3.0] * 9, tick) == [3.0, 3.0], "2 s are left, 3 are asked for"
    assert waits(Retry(attempts=100), [None] * 9, tick) == [1.4, 2.8, 2.0], "the last wait is cut to the time"


def test_another_call_begins_anew() -> None:
    patience = Patience(Retry(attempts=2), "http://endpoint")
    list(patience.pause(Transient("no")))
    assert len(list(patience.anew().pause(Transient("no")))) == 1
    with pytest.raises(EndpointError, match="after 2 tries"):
        list(patience.pause(Transient("no")))


def test_a_wish_that_is_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(EndpointError, match=r"after 1 try: no \(it asks to wait 30 s\)"):
        list(Patience(Retry(), "http://endpoint").pause(Transient("no", 30.0)))
