"""Some tensors of a file on an endpoint, read by byte ranges: its header, then what was asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from metainit.errors import CheckpointError, EndpointError
from metainit.headers import LENGTH_BYTES, Place, header_length, parse_header
from metainit.protocol import Endpoint, Located
from metainit.references import Reference
from metainit.transfer import PROGRESS_BYTES, Blob, check
from metainit.variants import missing, named
from metainit.wire import Answer, Ask, Steps, Transient, ask, work

FIRST_BYTES = 64 << 10
"""How much of a file is asked for at first: enough for most headers."""
GAP_BYTES = 64 << 10
"""Tensors that lie closer are read with what is between them, in one request."""


class NoRanges(EndpointError):
    """Whoever answers does not give byte ranges of the weights that were meant."""


def tensors(endpoint: Endpoint, reference: Reference, names: Iterable[str]) -> Steps[dict[str, Tensor]]:
    """Return some tensors, from the cache where the file is there, else by ranges, else by fetching all.

    Raises:
        EndpointError: there is no such tensor, or the endpoint cannot be reached.
    """
    wanted = named(names)
    located = yield from endpoint.located(reference)
    blob = located.blob
    if blob is None or (yield from work(partial(endpoint.kept.has, blob.sha256))):
        return (yield from _whole(endpoint, located, wanted))
    try:
        places = yield from _places(endpoint, blob)
        error = missing(wanted, places, reference)
        if error is not None:
            raise error
        if len(wanted) == len(places):
            return (yield from _whole(endpoint, located, wanted))
        chosen = sorted((places[name] for name in wanted), key=lambda place: place.start)
        pieces: dict[str, bytes] = {}
        for start, end in spans(chosen):
            content = yield from _read(endpoint, blob, start, end)
            inside = (p for p in chosen if start <= p.start and p.end <= end)
            pieces |= {p.name: content[p.start - start : p.end - start] for p in inside}
    except NoRanges:  # a proxy strips them: the file as a whole serves too, and is verified
        return (yield from _whole(endpoint, located, wanted))
    return _assembled(chosen, pieces, blob.url)


def _whole(endpoint: Endpoint, located: Located, names: Collection[str]) -> Steps[dict[str, Tensor]]:
    path = yield from endpoint.fetched(located)
    return (yield from work(partial(_from_file, path, names, located.reference)))


def _from_file(path: Path, names: Collection[str], what: object) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stored:
            error = missing(names, stored.keys(), what)
            if error is not None:
                raise error
            return {name: stored.get_tensor(name).clone() for name in names}
    except SafetensorError as error:
        raise EndpointError(f"the weights of {what} are no safetensors file: {error}") from error


def _places(endpoint: Endpoint, blob: Blob) -> Steps[dict[str, Place]]:
    """Read the header of a file, in one request if it is short."""
    content = yield from _read(endpoint, blob, 0, min(FIRST_BYTES, blob.size))
    try:
        first = LENGTH_BYTES + header_length(content, blob.size)
        if len(content) < first:
            content += yield from _read(endpoint, blob, len(content), first)
        return parse_header(content[LENGTH_BYTES:first], blob.size - first)
    except CheckpointError as error:
        raise EndpointError(f"{blob.url}: {error}") from error


def spans(places: Iterable[Place]) -> list[tuple[int, int]]:
    """Return the byte ranges that hold all places, which are in order; near ones are joined.

    Example:
        >>> near = [Place('a', 'U8', (9,), 100, 109), Place('b', 'U8', (9,), 200, 209)]
        >>> spans([*near, Place('c', 'U8', (1,), 1_000_000, 1_000_001)])
        [(100, 209), (1000000, 1000001)]
    """
    joined: list[tuple[int, int]] = []
    for place in places:
        if joined and place.start - joined[-1][1] <= GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], place.end))
        else:
            joined.append((place.start, place.end))
    return joined


def _read(endpoint: Endpoint, blob: Blob, start: int, end: int) -> Steps[bytes]:
    """Read bytes `start` to `end` of a blob; what broke off goes on where it stopped."""
    content = bytearray()
    patience, most = endpoint.patience, 0
    while len(content) < end - start:
        span = _Span(blob, start + len(content), end, content)
        headers = {
            "Accept-Encoding": "identity",
            "Range": f"bytes={span.start}-{end - 1}",
            "If-Range": f'"{blob.sha256}"',
        }
        try:
            check((yield from ask(Ask("GET", blob.url, headers, sink=span))))
            if len(content) < end - start:
                raise Transient(f"the transfer ended after {len(content)} of {end - start} bytes")
        except Transient as error:
            if len(content) - most >= PROGRESS_BYTES:
                most = len(content)
                patience.renew()
            yield from patience.pause(error)
    return bytes(content)


class _Span:
    """The sink of one byte range: memory, and never more than was asked for."""

    def __init__(self, blob: Blob, start: int, end: int, content: bytearray) -> None:
        self.start = start
        self._blob, self._end, self._content = blob, end, content
        self._room = end - start

    def begin(self, answer: Answer) -> None:
        came = answer.headers.get("content-range", "none")
        if answer.status != 206 or came != f"bytes {self.start}-{self._end - 1}/{self._blob.size}":
            raise NoRanges(f"{self._blob.url} answered {answer.status} with range {came}")

    def write(self, content: bytes) -> None:
        self._room -= len(content)
        if self._room < 0:
            raise EndpointError(f"{self._blob.url} sends more than the range that was asked for")
        self._content += content

    def told(self) -> None:
        """A few tensors have no progress."""

    def close(self) -> None:
        """Memory needs no closing."""


def _assembled(places: Iterable[Place], pieces: Mapping[str, bytes], origin: str) -> dict[str, Tensor]:
    """Make a small safetensors file of the pieces, which its own reader then takes apart and checks."""
    header, body = {}, bytearray()
    for place in places:
        offsets = [len(body), len(body) + len(pieces[place.name])]
        header[place.name] = {"dtype": place.dtype, "shape": place.shape, "data_offsets": offsets}
        body += pieces[place.name]
    head = json.dumps(header).encode()
    try:
        return safetensors.torch.load(len(head).to_bytes(8, "little") + head + body)
    except (SafetensorError, KeyError) as error:
        raise EndpointError(f"{origin} holds tensors that cannot be read: {error}") from error
