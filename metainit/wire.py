"""The client without its waiting: steps that say what they need, and two ways to run them.

A protocol is a generator. It yields an `Ask` (one HTTP exchange), a `Pause` or some `Work` (anything that
blocks: reading a file, hashing it) and is sent what came of it. `run` does these things one after the other
in this thread, `run_async` in an event loop; whatever goes wrong is raised inside the protocol, where it is
handled once for both.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import anyio
import anyio.to_thread
import httpx

from metainit.errors import EndpointError

PROBLEM_BYTES = 1 << 20
"""How much of a refusal is read."""
BLOCK_BYTES = 1 << 20
"""How much gathers before a thread is asked to write it."""
T = TypeVar("T")


class Transient(Exception):
    """A failure that another try may heal; `asked` is the server's Retry-After in seconds."""

    def __init__(self, text: str, asked: float | None = None) -> None:
        """Keep what the server asked for."""
        super().__init__(text)
        self.asked = asked


@dataclass(frozen=True)
class Answer:
    """What came back; `content` is empty where a sink took it."""

    method: str
    url: str
    status: int
    headers: httpx.Headers
    content: bytes = b""


class Sink(Protocol):
    """Takes the content of a good answer as it arrives."""

    def begin(self, answer: Answer) -> None:
        """Look at status and headers before anything is written; raise to refuse."""

    def write(self, content: bytes) -> None:
        """Take the next bytes; may be called from another thread, never twice at once."""

    def told(self) -> None:
        """Report progress, in the caller's own thread."""

    def close(self) -> None:
        """No more comes, for good or bad."""


@dataclass(frozen=True)
class Ask:
    """One exchange. The content of a good answer goes to `sink`, else into memory up to `limit` bytes."""

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | None = None
    timeout: httpx.Timeout | None = None
    sink: Sink | None = None
    limit: int = PROBLEM_BYTES


@dataclass(frozen=True)
class Pause:
    """Nothing for some seconds."""

    seconds: float


@dataclass(frozen=True)
class Work(Generic[T]):
    """Something that blocks its thread."""

    function: Callable[[], T]


Steps: TypeAlias = Generator[Ask | Pause | Work[Any], Any, T]
"""A protocol that ends with a `T`."""


def ask(question: Ask) -> Steps[Answer]:
    """Exchange once.

    Raises:
        Transient: no answer, or it broke off.
        EndpointError: the answer is larger than the limit, or the connection is not to be trusted.
    """
    answer: Answer = yield question
    return answer


def pause(seconds: float) -> Steps[None]:
    """Wait."""
    yield Pause(seconds)


def work(function: Callable[[], T]) -> Steps[T]:
    """Call something that blocks."""
    result: T = yield Work(function)
    return result


def run(steps: Steps[T], http: httpx.Client) -> T:
    """Run a protocol in this thread."""
    try:
        need = next(steps)
        while True:
            try:
                came = _perform(need, http)
            except BaseException as error:
                need = steps.throw(error)
            else:
                need = steps.send(came)
    except StopIteration as end:
        result: T = end.value
        return result


async def run_async(steps: Steps[T], http: httpx.AsyncClient) -> T:
    """Run a protocol in the event loop (asyncio's or trio's) that this is awaited in."""
    try:
        need = next(steps)
        while True:
            try:
                came = await _perform_async(need, http)
            except BaseException as error:
                need = steps.throw(error)
            else:
                need = steps.send(came)
    except StopIteration as end:
        result: T = end.value
        return result


def _perform(need: Ask | Pause | Work[Any], http: httpx.Client) -> Any:
    if isinstance(need, Pause):
        return time.sleep(need.seconds)
    if isinstance(need, Work):
        return need.function()
    with _told(need), http.stream(need.method, need.url, **_options(need)) as response:
        arriving = _Arriving(need, response)
        try:
            for chunk in response.iter_bytes():
                arriving.take(chunk)
                arriving.told()
        finally:
            arriving.close()
        return arriving.answer()


async def _perform_async(need: Ask | Pause | Work[Any], http: httpx.AsyncClient) -> Any:
    if isinstance(need, Pause):
        return await anyio.sleep(need.seconds)
    if isinstance(need, Work):
        return await anyio.to_thread.run_sync(need.function)
    with _told(need):
        async with http.stream(need.method, need.url, **_options(need)) as response:
            arriving = _Arriving(need, response)
            gathered = bytearray()
            try:
                async for chunk in response.aiter_bytes():
                    gathered += chunk
                    if len(gathered) >= BLOCK_BYTES or not arriving.to_disk:
                        block, gathered = bytes(gathered), bytearray()
                        if arriving.to_disk:
                            await anyio.to_thread.run_sync(arriving.take, block)
                        else:
                            arriving.take(block)
                        arriving.told()
            finally:
                try:
                    arriving.take(bytes(gathered))  # what has arrived is resumed from, whatever broke it off
                finally:
                    arriving.close()
            arriving.told()
            return arriving.answer()


class _Arriving:
    """One answer as it comes: a refusal and small content into memory, the rest into the sink."""

    def __init__(self, need: Ask, response: httpx.Response) -> None:
        self._head = Answer(need.method, need.url, response.status_code, response.headers)
        self._sink = need.sink if response.status_code < 300 else None
        self._limit = need.limit if response.status_code < 400 else PROBLEM_BYTES
        self._content = bytearray()
        if self._sink is not None:
            self._sink.begin(self._head)

    @property
    def to_disk(self) -> bool:
        return self._sink is not None

    def take(self, content: bytes) -> None:
        if self._sink is not None:
            self._sink.write(content)
            return
        self._content += content
        if len(self._content) > self._limit:
            raise EndpointError(f"{self._head.url} sends more than {self._limit} bytes")

    def told(self) -> None:
        if self._sink is not None:
            self._sink.told()

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()

    def answer(self) -> Answer:
        head = self._head
        return Answer(head.method, head.url, head.status, head.headers, bytes(self._content))


def _options(need: Ask) -> dict[str, Any]:
    options: dict[str, Any] = {"headers": dict(need.headers), "content": need.content}
    return options | ({} if need.timeout is None else {"timeout": need.timeout})


@contextmanager
def _told(need: Ask) -> Iterator[None]:
    """Turn what httpx raises into what a protocol handles."""
    try:
        yield
    except httpx.ConnectError as error:
        if _untrusted(error):
            raise EndpointError(
                f"{need.url}: the certificate is not trusted ({error}); name the file of the authority that "
                "signed it with SSL_CERT_FILE"
            ) from error
        raise Transient(_said(error)) from error
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Transient(_said(error)) from error
    except (httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise EndpointError(f"{need.url} cannot be asked: {_said(error)}") from error


def _untrusted(error: BaseException | None) -> bool:
    """Whether a certificate that failed verification is among the causes."""
    for _ in range(8):
        if error is None or isinstance(error, ssl.SSLCertVerificationError):
            break
        error = error.__cause__ or error.__context__
    return isinstance(error, ssl.SSLCertVerificationError)


def _said(error: Exception) -> str:
    return str(error) or type(error).__name__
