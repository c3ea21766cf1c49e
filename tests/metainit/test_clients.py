"""One table of behaviours for both clients, over the real app in this process; and whatever goes wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio.from_thread
import httpx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metainit
from metainit.async_client import AsyncClient
from metainit.checkpoint import load
from metainit.client import Client
from metainit.errors import EndpointError
from metainit.transfer import Retry, file_sha256
from serving.app import create_app
from serving.store import Store
from tests.metainit import faults
from tests.metainit.faults import Caller, Fault, Stripping, Wire, cut, flipped, made, unchanged
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

QUICK = Retry(first_wait=0.0, longest_wait=0.0)
KINDS = ("sync", "async")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = Shelf(tmp_path_factory.mktemp("registry"))
    shelf.add("faces", 0, "champion", elements=5000)
    shelf.add("faces", 1)
    tensors = {f"layers.{i}.weight": torch.full((40_000,), float(i)) for i in range(6)}
    shelf.files.setdefault("many", {})
    card = load(shelf.files["faces"][1]).card.model_copy(update={"name": "many"})
    shelf._put("many", 1, tensors, card, ("champion",))
    return shelf


@pytest.fixture(scope="module")
def store(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(shelf, tmp_path_factory.mktemp("store"), poll=3600.0)


@pytest.fixture(scope="module")
def app(store: Store) -> Iterator[InProcess]:
    with InProcess(create_app(store)) as transport:
        yield transport


@pytest.fixture(scope="module")
def portal() -> Iterator[anyio.from_thread.BlockingPortal]:
    with anyio.from_thread.start_blocking_portal() as portal:
        yield portal


@pytest.fixture
def wire(app: InProcess) -> Wire:
    return Wire(app)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def call(kind: str, wire: Wire, portal: anyio.from_thread.BlockingPortal, tmp_path: Path) -> Iterator[Caller]:
    caller = Caller(made(kind, wire, tmp_path / "cache", retry=QUICK), portal)
    yield caller
    caller("close")


def content_of(shelf: Shelf, name: str = "faces", version: int = 1) -> bytes:
    return shelf.files[name][version].read_bytes()


# --- what both do


def test_the_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) == public(AsyncClient)
    assert metainit.AsyncClient is AsyncClient


def test_list_show_and_evidence(call: Caller, shelf: Shelf) -> None:
    assert [item["name"] for item in call("list")] == ["faces", "many"]
    assert call("show", "faces@champion")["card"]["kind"] == "prior"
    digest = call("fetch", "faces/1").stem
    assert call("evidence", "faces/1", digest) == {"metric": "psnr", "steps": [0, 2]}
    assert call("evidence", "faces/2", digest) is None


def test_fetch_and_checkpoint(call: Caller, shelf: Shelf, tmp_path: Path) -> None:
    path = call("fetch", "faces", tmp_path / "out" / "mine.safetensors")
    assert path == tmp_path / "out" / "mine.safetensors" and path.read_bytes() == content_of(shelf)
    assert call("checkpoint", "faces").tensors["layers.0.weight"].shape == (5000,)
    assert call("fetch", f"{faults.URL}/v1/inits/faces").read_bytes() == content_of(shelf)


def test_located_and_fetched(call: Caller, shelf: Shelf) -> None:
    found = call("located", "faces/2")
    assert found.kind == "prior" and found.blob.sha256 == shelf.digests[shelf.files["faces"][2]]
    assert call("fetched", found).read_bytes() == content_of(shelf, version=2)


def test_an_unchanged_alias_costs_one_304(call: Caller, wire: Wire) -> None:
    first = call("fetch", "faces@champion")
    wire.seen.clear()
    assert call("fetch", "faces@champion") == first
    assert [(method, status) for method, _, _, status in wire.seen] == [("HEAD", 304)]


def test_a_blob(call: Caller, wire: Wire, shelf: Shelf) -> None:
    digest = shelf.digests[shelf.files["faces"][1]]
    assert call("blob", digest).read_bytes() == content_of(shelf)
    wire.down = True
    assert call("blob", digest).read_bytes() == content_of(shelf)
    with pytest.raises(EndpointError, match="no SHA-256"):
        call("blob", "../x")


def test_a_pinned_version_in_the_cache_needs_no_endpoint(call: Caller, wire: Wire) -> None:
    path = call("fetch", "faces/1")
    wire.down = True
    assert call("fetch", "faces/1") == path
    with pytest.raises(EndpointError, match="cannot reach http://endpoint after 4 tries"):
        call("fetch", "faces@champion")


@pytest.mark.parametrize(
    ("reference", "said"),
    [("fase", "did you mean 'faces'"), ("faces/9", "the newest is 2"), ("../x", "names no")],
)
def test_what_does_not_exist_is_explained(call: Caller, reference: str, said: str) -> None:
    for method in ("fetch", "show"):
        with pytest.raises(EndpointError, match=said):
            call(method, reference)


def test_progress_ends_with_all(call: Caller, wire: Wire, shelf: Shelf) -> None:
    size, told = len(content_of(shelf)), list[tuple[int, int]]()
    wire.faults = [unchanged, cut(7000)]
    call("fetch", "faces", progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[0][0] >= 7000 and told[-1] == (size, size)
    told.clear()
    call("fetch", "faces", progress=lambda done, total: told.append((done, total)))
    assert told == [(size, size)]


# --- tries


@pytest.mark.parametrize("fault", [faults.unavailable, faults.refused, faults.slow])
@pytest.mark.parametrize("place", [0, 1])
def test_a_failure_that_passes_is_tried_again(
    call: Caller, wire: Wire, shelf: Shelf, fault: Fault, place: int
) -> None:
    wire.faults = [unchanged] * place + [fault, fault]
    assert call("fetch", "faces").read_bytes() == content_of(shelf)


def test_tries_are_bounded(call: Caller, wire: Wire) -> None:
    wire.faults = [faults.unavailable] * 100
    with pytest.raises(EndpointError, match="after 4 tries"):
        call("list")
    assert len(wire.seen) == 4


def test_all_requests_of_a_call_share_its_tries(call: Caller, wire: Wire, shelf: Shelf) -> None:
    wire.faults = [faults.unavailable, unchanged, cut(1000), faults.slow, faults.refused]
    with pytest.raises(EndpointError, match="after 4 tries"):
        call("fetch", "faces")
    wire.faults, wire.seen = [], []
    wire.faults = [faults.unavailable, faults.slow, faults.refused]
    assert call("fetch", "faces").read_bytes() == content_of(shelf)  # the next call has its own
    wire.faults = [faults.unavailable, unchanged, unchanged, faults.slow, faults.refused, cut(100)]
    with pytest.raises(EndpointError, match="after 4 tries"):
        call("fetch_tensors", "many", ["layers.5.weight"])


def test_a_passing_refusal_is_not_asked_for_its_reason(call: Caller, wire: Wire) -> None:
    wire.faults = [faults.unavailable] * 100
    with pytest.raises(EndpointError, match="503 Service Unavailable"):
        call("fetch", "faces")
    assert [(method, status) for method, _, _, status in wire.seen] == [("HEAD", 503)] * 4


def test_what_is_measured_is_not_packed(
    kind: str, app: InProcess, portal: anyio.from_thread.BlockingPortal, shelf: Shelf, tmp_path: Path
) -> None:
    packed: list[str] = []

    class Noting(Wire):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            packed.append(request.headers["accept-encoding"])
            return super().handle_request(request)

    caller = Caller(made(kind, Noting(app), tmp_path, retry=QUICK), portal)
    caller("fetch", "faces")
    caller("blob", shelf.digests[shelf.files["faces"][2]])
    assert set(packed) == {"identity"} and len(packed) == 4


@pytest.mark.parametrize(("fault", "have"), [(cut(1000), 1000), (faults.shortened(100), 100)])
def test_a_broken_transfer_is_resumed(
    call: Caller, wire: Wire, shelf: Shelf, fault: Fault, have: int
) -> None:
    wire.faults = [unchanged, fault]
    assert call("fetch", "faces").read_bytes() == content_of(shelf)
    assert [(ranged, status) for _, _, ranged, status in wire.seen[1:]] == [
        ("", 200),
        (f"bytes={have}-", 206),
    ]


def test_a_range_that_is_another_is_thrown_away(call: Caller, wire: Wire, shelf: Shelf) -> None:
    wire.faults = [unchanged, cut(1000), faults.shifted]
    assert call("fetch", "faces").read_bytes() == content_of(shelf)
    assert [ranged for _, _, ranged, _ in wire.seen[1:]] == ["", "bytes=1000-", ""]


def test_wrong_bytes_get_one_clean_retry(call: Caller, wire: Wire, shelf: Shelf, tmp_path: Path) -> None:
    wire.faults = [unchanged, flipped]
    assert call("fetch", "faces").read_bytes() == content_of(shelf)
    wire.faults = [unchanged, flipped, flipped]
    with pytest.raises(EndpointError, match="wrong, twice"):
        call("fetch", "faces/2")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.parametrize(
    ("fault", "said"), [(faults.longer, "more than the"), (faults.page, "metainit endpoint")]
)
def test_a_stranger_is_recognised(call: Caller, wire: Wire, fault: Fault, said: str) -> None:
    wire.faults = [unchanged, fault] if fault is faults.longer else [fault]
    with pytest.raises(EndpointError, match=said):
        call("fetch", "faces")


# --- offline


@pytest.fixture
def offline(
    kind: str, wire: Wire, call: Caller, portal: anyio.from_thread.BlockingPortal, tmp_path: Path
) -> Caller:
    """A client of the same cache that asks nobody."""
    wire.down = True
    return Caller(made(kind, wire, tmp_path / "cache", offline=True), portal)


def test_offline_gives_what_was_fetched(call: Caller, offline: Caller, wire: Wire, shelf: Shelf) -> None:
    wire.down = False
    digest = call("fetch", "faces@champion").stem
    call("evidence", "faces@champion", digest)
    wire.down = True
    assert offline("fetch", "faces@champion").read_bytes() == content_of(shelf)  # as it was last seen
    assert offline("checkpoint", "faces@champion").card.name == "faces"
    assert offline("blob", digest).stem == digest
    assert offline("evidence", "faces@champion", digest) == {"metric": "psnr", "steps": [0, 2]}
    assert set(offline("fetch_tensors", "faces@champion", ["layers.0.weight"])) == {"layers.0.weight"}


@pytest.mark.parametrize(
    ("method", "arguments", "said"),
    [
        ("fetch", ("faces/2",), "faces/2 of http://endpoint is not in the cache .*METAINIT_OFFLINE unset"),
        ("blob", ("0" * 64,), "the blob 0000"),
        ("evidence", ("faces", "0" * 64), "the evidence of faces"),
        ("predicted", ("faces", {}), "the prediction of faces"),
        ("show", ("faces",), "answered by the endpoint alone"),
        ("list", (), "answered by the endpoint alone"),
        ("fetch_tensors", ("many", ["layers.0.weight"]), "many of http://endpoint is not in the cache"),
    ],
)
def test_offline_names_what_is_missing(offline: Caller, method: str, arguments: tuple, said: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(EndpointError, match=said):
        offline(method, *arguments)


def test_the_environment_takes_it_offline(
    kind: str,
    wire: Wire,
    portal: anyio.from_thread.BlockingPortal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("METAINIT_OFFLINE", "1")
    with pytest.raises(EndpointError, match="this client is offline"):
        Caller(made(kind, wire, tmp_path), portal)("fetch", "faces")
    assert not wire.seen
    monkeypatch.setenv("METAINIT_OFFLINE", "0")
    assert Caller(made(kind, wire, tmp_path), portal)("fetch", "faces").is_file()
    monkeypatch.setenv("METAINIT_OFFLINE", "perhaps")
    with pytest.raises(EndpointError, match="neither yes nor no"):
        made(kind, wire, tmp_path)


# --- keys


def test_a_key_goes_with_every_request_and_only_to_its_endpoint(
    kind: str, portal: anyio.from_thread.BlockingPortal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[str | None] = []

    def handle(request: httpx.Request) -> httpx.Response:
        came.append(request.headers.get("authorization"))
        return httpx.Response(401, json={"title": "A key is needed"})

    for server, expected in ((faults.URL, "Bearer mi_secret"), ("http://other", None)):
        monkeypatch.setenv("METAINIT_SERVER", server)
        monkeypatch.setenv("METAINIT_KEY", "mi_secret")
        caller = Caller(made(kind, httpx.MockTransport(handle), tmp_path), portal)
        with pytest.raises(EndpointError, match="401.*pass a key") as error:
            caller("show", "faces")
        assert came.pop() == expected
        assert "mi_secret" not in f"{caller.client!r} {error.value}"
    with pytest.raises(EndpointError, match="other characters") as error:
        made(kind, httpx.MockTransport(handle), tmp_path, key="geheim\nß")
    assert "geheim" not in str(error.value)


# --- some tensors


def test_tensors_are_read_by_their_ranges(call: Caller, wire: Wire, shelf: Shelf, tmp_path: Path) -> None:
    names = ["layers.4.weight", "layers.1.weight"]
    found = call("fetch_tensors", "many", names)
    assert {n: float(t.mean()) for n, t in found.items()} == {"layers.4.weight": 4.0, "layers.1.weight": 1.0}
    assert all(t.shape == (40_000,) and t.dtype == torch.float32 for t in found.values())
    assert wire.sent < 2 * 160_000 + 70_000 < len(content_of(shelf, "many"))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_neighbours_are_read_at_once(call: Caller, wire: Wire) -> None:
    call("fetch_tensors", "many", ["layers.2.weight", "layers.3.weight"])
    assert [method for method, *_ in wire.seen] == ["HEAD", "GET", "GET"]


def test_a_range_that_breaks_off_goes_on(call: Caller, wire: Wire) -> None:
    wire.faults = [unchanged, cut(100), unchanged, cut(50_000), faults.refused]
    found = call("fetch_tensors", "many", ["layers.5.weight"])
    assert bool((found["layers.5.weight"] == 5.0).all())


def test_all_tensors_are_the_verified_file(call: Caller, shelf: Shelf, tmp_path: Path) -> None:
    found = call("fetch_tensors", "faces", ["layers.0.weight"])
    assert torch.equal(found["layers.0.weight"], load(shelf.files["faces"][1]).tensors["layers.0.weight"])
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1


def test_a_file_that_is_here_is_read(call: Caller, wire: Wire) -> None:
    call("fetch", "many/1")
    wire.down = True
    assert float(call("fetch_tensors", "many/1", ["layers.3.weight"])["layers.3.weight"][0]) == 3.0
    with pytest.raises(EndpointError, match="did you mean 'layers.3.weight'"):
        call("fetch_tensors", "many/1", ["layer.3.weight"])


@pytest.mark.parametrize("names", [["layers.9.weight"], [], "layers.0.weight"])
def test_tensors_that_are_not_there(call: Caller, names: list[str]) -> None:
    with pytest.raises(EndpointError, match="no tensor"):
        call("fetch_tensors", "many", names)


def test_a_proxy_without_ranges_costs_the_whole_file(
    kind: str, app: InProcess, portal: anyio.from_thread.BlockingPortal, tmp_path: Path
) -> None:
    caller = Caller(made(kind, Stripping(app, "range"), tmp_path, retry=QUICK), portal)
    assert float(caller("fetch_tensors", "many", ["layers.2.weight"])["layers.2.weight"][7]) == 2.0
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


@pytest.mark.parametrize("head", [b"\xff" * 8, (10).to_bytes(8, "little") + b"not JSON! "])
def test_a_damaged_header_is_refused(call: Caller, wire: Wire, head: bytes) -> None:
    def damaged(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        stream = httpx.ByteStream(head + answer.content[len(head) :])
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)

    wire.faults = [unchanged, damaged]
    with pytest.raises(EndpointError, match="header"):
        call("fetch_tensors", "many", ["layers.2.weight"])


# --- whatever happens

FAULTS = st.one_of(
    st.sampled_from(
        [
            unchanged,
            faults.unavailable,
            faults.refused,
            faults.slow,
            faults.longer,
            flipped,
            faults.shifted,
            faults.page,
            faults.unpacked,
        ]
    ),
    st.integers(0, 30_000).map(cut),
    st.integers(0, 30_000).map(faults.shortened),
)


@pytest.mark.parametrize("kind", KINDS)
@given(broken=st.lists(FAULTS, max_size=8))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_exact_bytes_or_an_error(
    kind: str, app: InProcess, portal: anyio.from_thread.BlockingPortal, shelf: Shelf, broken: list[Fault]
) -> None:
    content = content_of(shelf)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        wire, target = Wire(app), Path(folder) / "out.safetensors"
        caller = Caller(made(kind, wire, Path(folder) / "cache", retry=QUICK), portal)
        stack.callback(caller, "close")
        wire.faults = list(broken)
        try:
            assert caller("fetch", "faces", target).read_bytes() == content
        except EndpointError:
            assert not target.exists()
        for path in Path(folder).rglob("cache/blobs/*.safetensors"):
            assert file_sha256(path) == path.stem
        wire.faults.clear()
        assert caller("fetch", "faces", target).read_bytes() == content  # and nothing stands in the way
