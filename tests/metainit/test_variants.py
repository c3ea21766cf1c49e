"""Weights in another type, and some of the tensors: what is asked for is what is got, or an error."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import anyio.from_thread
import httpx
import pytest
import torch

from metainit.checkpoint import load, save, to_bytes
from metainit.errors import EndpointError
from metainit.transfer import Retry
from metainit.variants import Variant
from serving.app import create_app
from serving.store import Store
from tests.metainit.faults import Caller, Wire, made
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf


class Deriving(httpx.BaseTransport):
    """Answers for derived weights beside an endpoint that knows of none."""

    def __init__(self, inner: httpx.BaseTransport, source: Path) -> None:
        self.inner, self.source = inner, source
        self.made: dict[str, bytes] = {}

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        asked = request.url.params
        sha256 = request.url.path.rpartition("/")[2]
        if request.url.path.endswith("/weights") and asked:
            stored = load(self.source)
            names = asked.get_list("tensor") or list(stored.tensors)
            dtype = getattr(torch, asked.get("dtype", "float32"))
            if unknown := set(names) - set(stored.tensors):
                problem = {"title": "The request is not valid", "detail": f"no tensor {unknown.pop()}"}
                headers = {"content-type": "application/problem+json"}
                return httpx.Response(422, headers=headers, json=problem)
            content = to_bytes({n: stored.tensors[n].to(dtype) for n in names}, stored.card)
            sha256 = hashlib.sha256(content).hexdigest()
            self.made[sha256] = content
            headers = {"etag": f'"{sha256}"', "content-length": str(len(content))}
            if request.headers.get("if-none-match") == headers["etag"]:
                return httpx.Response(304, headers=headers)
            return httpx.Response(200, headers=headers)
        if sha256 in self.made:
            return httpx.Response(200, content=self.made[sha256])
        return self.inner.handle_request(request)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path / "registry")
    shelf.add("faces", 0, "champion")
    card = load(shelf.files["faces"][1]).card
    tensors = {n: torch.randn(8) for n in ("a", "b", "c")}
    shelf._put("faces", 2, tensors, card, ("champion",))
    return shelf


@pytest.fixture
def app(shelf: Shelf, tmp_path: Path) -> Iterator[InProcess]:
    with InProcess(create_app(Store(shelf, tmp_path / "store", poll=3600.0))) as transport:
        yield transport


@pytest.fixture
def portal() -> Iterator[anyio.from_thread.BlockingPortal]:
    with anyio.from_thread.start_blocking_portal() as portal:
        yield portal


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wire(app: InProcess, shelf: Shelf) -> Wire:
    return Wire(Deriving(app, shelf.files["faces"][2]))


@pytest.fixture
def call(kind: str, wire: Wire, portal: anyio.from_thread.BlockingPortal, tmp_path: Path) -> Caller:
    return Caller(made(kind, wire, tmp_path / "cache", retry=Retry(attempts=2, first_wait=0.0)), portal)


def test_a_type_and_some_tensors(call: Caller, shelf: Shelf, tmp_path: Path) -> None:
    full = load(shelf.files["faces"][2]).tensors
    half = load(call("fetch", "faces", dtype="bfloat16")).tensors
    assert all(torch.equal(half[n], full[n].bfloat16()) for n in full)
    some = load(call("fetch", "faces", tmp_path / "some.safetensors", tensors=["c", "a"])).tensors
    assert set(some) == {"a", "c"} and torch.equal(some["c"], full["c"])
    both = load(call("fetch", "faces", dtype="bfloat16", tensors=["b"])).tensors
    assert both["b"].dtype == torch.bfloat16 and set(both) == {"b"}
    assert load(call("fetch", "faces")).tensors.keys() == full.keys()  # each has a place of its own


def test_each_variant_is_kept(call: Caller, wire: Wire) -> None:
    first = call("fetch", "faces/2", tensors=["a", "b"])
    wire.seen.clear()
    assert call("fetch", "faces/2", tensors=["b", "a"]) == first and not wire.seen
    call("fetch", "faces@champion", dtype="bfloat16")
    wire.seen.clear()
    call("fetch", "faces@champion", dtype="bfloat16")
    assert [status for *_, status in wire.seen] == [304]
    wire.down = True
    with pytest.raises(EndpointError, match="cannot reach"):
        call("fetch", "faces/2", tensors=["a"])


def test_what_is_not_there_is_explained(call: Caller) -> None:
    with pytest.raises(EndpointError, match="422 The request is not valid: no tensor z"):
        call("fetch", "faces", tensors=["z"])
    with pytest.raises(EndpointError, match="'float8'"):
        call("fetch", "faces", dtype="float8")
    with pytest.raises(EndpointError, match="names no tensor"):
        call("fetch", "faces", tensors=[])
    with pytest.raises(EndpointError, match="ask in several calls, or with fetch_tensors"):
        call("fetch", "faces", tensors=[f"layers.{i}.weight" for i in range(500)])


@pytest.mark.parametrize(
    ("asked", "said"), [({"dtype": "bfloat16"}, "got F32"), ({"tensors": ["a"]}, "1 tensors of faces, got 3")]
)
def test_an_older_endpoint_is_noticed(
    kind: str,
    app: InProcess,
    portal: anyio.from_thread.BlockingPortal,
    tmp_path: Path,
    asked: dict[str, object],
    said: str,
) -> None:
    class Older(httpx.BaseTransport):
        """Knows no parameters, and so leaves them out."""

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            plain = httpx.Request(request.method, request.url.copy_with(query=None), headers=request.headers)
            return app.handle_request(plain)

    caller = Caller(made(kind, Older(), tmp_path), portal)
    for _ in range(2):  # and not taken for granted the next time
        with pytest.raises(EndpointError, match=said):
            caller("fetch", "faces", **asked)


def test_step_sizes_and_integers_keep_their_type(shelf: Shelf, tmp_path: Path) -> None:
    card = load(shelf.files["faces"][1]).card
    mixed = {"a": torch.ones(2).bfloat16(), "step_size.a": torch.ones(2), "n": torch.arange(3)}
    save(tmp_path / "mixed.safetensors", mixed, card)
    Variant.of("bfloat16", None).check(tmp_path / "mixed.safetensors", "faces")
    with pytest.raises(EndpointError, match="got BF16"):
        Variant.of("float32", None).check(tmp_path / "mixed.safetensors", "faces")
