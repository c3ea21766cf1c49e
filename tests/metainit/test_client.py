"""The client against the real app in this process, and against every way a transfer goes wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import metainit
from metainit.client import CACHE, Client, resolve_url
from metainit.errors import EndpointError
from metainit.places import cache_folder
from metainit.references import Reference, parse_url
from metainit.transfer import Retry, file_sha256
from serving.app import create_app
from serving.store import Store
from tests.metainit.faults import URL, Fault, Wire, cut, flipped, refused, shortened, unavailable, unchanged
from tests.metainit.fetching import fetch_in_a_process
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    shelf = Shelf(tmp_path / "registry")
    shelf.add("faces", 0, "champion", elements=5000)
    shelf.add("faces", 1)
    return shelf


@pytest.fixture
def store(shelf: Shelf, tmp_path: Path) -> Store:
    return Store(shelf, tmp_path / "store", poll=3600.0)


@pytest.fixture
def wire(store: Store) -> Iterator[Wire]:
    with InProcess(create_app(store)) as transport:
        yield Wire(transport)


@pytest.fixture
def client(wire: Wire, tmp_path: Path) -> Iterator[Client]:
    retry = Retry(attempts=3, first_wait=0.0, longest_wait=0.0)
    with Client(URL, transport=wire, retry=retry, cache=tmp_path / "cache") as client:
        yield client


def parts(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.part"))


def test_list_show_fetch_and_checkpoint(client: Client, shelf: Shelf, tmp_path: Path) -> None:
    assert [item["name"] for item in client.list()] == ["faces"]
    assert client.show("faces@champion")["card"]["kind"] == "prior"
    path = client.fetch("faces", tmp_path / "out" / "mine.safetensors")
    assert path.read_bytes() == shelf.files["faces"][1].read_bytes()
    assert client.checkpoint("faces").tensors["layers.0.weight"].shape == (5000,)


def test_list_follows_pages(client: Client, shelf: Shelf, store: Store) -> None:
    for number in range(3):
        shelf.add(f"more{number}", number)
    store.refresh()
    pages = [client._run(client._call().json(f"{URL}/v1/inits?limit=2"))["next"]]
    assert pages == ["/v1/inits?limit=2&after=more0"]
    assert len(client.list()) == 4


def test_an_unchanged_alias_costs_one_304(client: Client, wire: Wire) -> None:
    first = client.fetch("faces@champion")
    wire.seen.clear()
    assert client.fetch("faces@champion") == first
    assert [(method, status) for method, _, _, status in wire.seen] == [("HEAD", 304)]


def test_an_alias_move_is_seen(client: Client, shelf: Shelf, store: Store) -> None:
    old = client.fetch("faces")
    shelf.point("faces", "champion", 2)
    store.refresh()
    new = client.fetch("faces")
    assert new != old and new.read_bytes() == shelf.files["faces"][2].read_bytes()


def test_a_pinned_version_in_the_cache_needs_no_endpoint(client: Client, wire: Wire) -> None:
    path = client.fetch("faces/1")
    wire.down = True
    assert client.fetch("faces/1") == path
    with pytest.raises(EndpointError, match="cannot reach http://endpoint after 3 tries"):
        client.fetch("faces@champion")


def test_a_blob_that_two_references_share_is_fetched_once(client: Client, wire: Wire) -> None:
    client.fetch("faces@champion")
    wire.seen.clear()
    client.fetch("faces/1")
    assert [method for method, *_ in wire.seen] == ["HEAD"]


@pytest.mark.parametrize("fault", [unavailable, refused])
@pytest.mark.parametrize("place", [0, 1])
def test_a_failure_that_passes_is_tried_again(
    client: Client, wire: Wire, shelf: Shelf, fault: Fault, place: int
) -> None:
    wire.faults = [unchanged] * place + [fault, fault]
    assert client.fetch("faces").read_bytes() == shelf.files["faces"][1].read_bytes()


def test_tries_are_bounded(client: Client, wire: Wire) -> None:
    wire.faults = [unavailable] * 100
    with pytest.raises(EndpointError, match="after 3 tries"):
        client.list()
    assert len(wire.seen) == 3


@pytest.mark.parametrize(("fault", "have"), [(cut(1000), 1000), (shortened(100), 100)])
def test_a_broken_transfer_is_resumed(
    client: Client, wire: Wire, shelf: Shelf, fault: Fault, have: int
) -> None:
    wire.faults = [unchanged, fault]
    assert client.fetch("faces").read_bytes() == shelf.files["faces"][1].read_bytes()
    assert [(ranged, status) for _, _, ranged, status in wire.seen] == [
        ("", 200),
        ("", 200),
        (f"bytes={have}-", 206),
    ]


def test_what_arrived_is_resumed_by_the_next_call(
    client: Client, wire: Wire, shelf: Shelf, tmp_path: Path
) -> None:
    wire.faults = [unchanged, cut(1000), cut(0), cut(0)]
    with pytest.raises(EndpointError, match="connection reset"):
        client.fetch("faces")
    assert parts(tmp_path)[0].stat().st_size == 1000
    wire.seen.clear()
    assert client.fetch("faces").read_bytes() == shelf.files["faces"][1].read_bytes()
    assert wire.seen[-1][2:] == ("bytes=1000-", 206)
    assert not parts(tmp_path)


def test_a_wrong_rest_from_an_earlier_call_is_discarded(
    client: Client, wire: Wire, shelf: Shelf, tmp_path: Path
) -> None:
    part = tmp_path / "cache/blobs" / f"{shelf.digests[shelf.files['faces'][1]]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"something else")
    assert client.fetch("faces").read_bytes() == shelf.files["faces"][1].read_bytes()


def test_wrong_bytes_get_one_clean_retry(client: Client, wire: Wire, shelf: Shelf) -> None:
    wire.faults = [unchanged, flipped]
    assert client.fetch("faces").read_bytes() == shelf.files["faces"][1].read_bytes()
    assert [method for method, *_ in wire.seen] == ["HEAD", "GET", "GET"]


def test_bytes_that_stay_wrong_are_an_error_and_are_not_kept(
    client: Client, wire: Wire, tmp_path: Path
) -> None:
    wire.faults = [unchanged, flipped, flipped]
    with pytest.raises(EndpointError, match="wrong, twice"):
        client.fetch("faces")
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert [path.suffix for path in files] in ([".lock"], [])


def test_a_cache_that_was_damaged_is_noticed(client: Client, shelf: Shelf) -> None:
    path = client.fetch("faces/1")
    path.write_bytes(b"x" * path.stat().st_size)
    assert client.fetch("faces/1").read_bytes() == shelf.files["faces"][1].read_bytes()


def test_more_bytes_than_announced_are_refused(client: Client, wire: Wire) -> None:
    def endless(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        return httpx.Response(200, stream=httpx.ByteStream(answer.content * 3))

    wire.faults = [unchanged, endless]
    with pytest.raises(EndpointError, match="more than the"):
        client.fetch("faces")


def test_a_full_disk_says_so(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("metainit.transfer.os.replace", replace)
    with pytest.raises(EndpointError, match="free some space"):
        client.fetch("faces")
    monkeypatch.undo()
    assert client.fetch("faces").is_file()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("fase", "did you mean 'faces'"),
        ("faces@champio", "did you mean 'champion'"),
        ("faces/9", "the newest is 2"),
        ("../x", "names no initialization"),
        ("faces@", "names no initialization"),
    ],
)
def test_what_does_not_exist_is_explained(client: Client, reference: str, said: str) -> None:
    with pytest.raises(EndpointError, match=said):
        client.fetch(reference)
    with pytest.raises(EndpointError, match=said):
        client.show(reference)


def test_another_server_is_recognised(tmp_path: Path) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text="<html>"))
    with Client(URL, transport=transport, cache=tmp_path) as client:
        for call in (client.list, lambda: client.fetch("faces")):
            with pytest.raises(EndpointError, match="is this a metainit endpoint"):
                call()


def test_the_key_goes_to_the_endpoint_alone_and_is_not_shown(tmp_path: Path) -> None:
    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    hosts = []

    def handle(request: httpx.Request) -> httpx.Response:
        hosts.append((request.url.host, request.headers.get("authorization")))
        headers = {"etag": f'"{digest}"', "content-location": f"http://elsewhere/{digest}"}
        return httpx.Response(200, headers=headers, content=content)

    transport = httpx.MockTransport(handle)
    with Client(URL, key="secret", transport=transport, cache=tmp_path) as client:
        assert client.fetch("faces").read_bytes() == content
        assert "secret" not in repr(client)
    assert set(hosts) == {("endpoint", "Bearer secret")}


def test_addresses() -> None:
    assert parse_url("http://h:8000/v1/inits/a") == ("http://h:8000", Reference("a"))
    assert parse_url("https://h/base/v1/inits/a@b") == ("https://h/base", Reference("a", "b"))
    assert parse_url("http://h/v1/inits/a/versions/3") == ("http://h", Reference("a", version=3))
    assert parse_url("http://h/v1/inits/a@b/weights") == ("http://h", Reference("a", "b"))
    for bad in ("http://h/", "ftp://h/v1/inits/a", "http://h/v1/inits/a/b/c", "http://h/v1/inits/"):
        with pytest.raises(EndpointError):
            parse_url(bad)
    with pytest.raises(EndpointError, match="is no endpoint"):
        Client("faces")


class Behind(httpx.BaseTransport):
    """A proxy that offers an endpoint under a path, which the endpoint does not know of, and short pages."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode().replace("limit=200", "limit=1")
        if not path.startswith("/team/"):
            return httpx.Response(404)
        inner = httpx.Request(
            request.method, request.url.copy_with(raw_path=path[5:].encode()), headers=request.headers
        )
        return self.inner.handle_request(inner)


def test_an_endpoint_behind_a_path(wire: Wire, shelf: Shelf, store: Store, tmp_path: Path) -> None:
    shelf.add("more", 7)
    store.refresh()
    with Client(f"{URL}/team", transport=Behind(wire), cache=tmp_path / "cache") as client:
        assert [item["name"] for item in client.list()] == ["faces", "more"]
        assert client.fetch("faces").read_bytes() == shelf.files["faces"][1].read_bytes()


@pytest.mark.parametrize(
    ("following", "said"),
    [
        ("http://elsewhere/v1/inits?after=a", "which is not on http://endpoint: not followed"),
        ("/v1/inits?limit=200", "names itself as the next page"),
    ],
)
def test_a_next_page_that_leads_nowhere_is_asked_once(following: str, said: str, tmp_path: Path) -> None:
    asked: list[str] = []

    def handle(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json={"items": [], "next": following})

    with Client(URL, transport=httpx.MockTransport(handle), cache=tmp_path) as client:
        with pytest.raises(EndpointError, match=said):
            client.list()
    assert asked == [f"{URL}/v1/inits?limit=200"]


def test_evidence_is_asked_for_once(client: Client, wire: Wire, shelf: Shelf) -> None:
    digest = client.fetch("faces/1").stem
    assert client.evidence("faces/1", digest) == {"metric": "psnr", "steps": [0, 2]}
    wire.down = True
    assert client.evidence("faces/1", digest) == {"metric": "psnr", "steps": [0, 2]}
    wire.down = False
    other = shelf.digests[shelf.files["faces"][2]]
    assert client.evidence("faces/1", other) is None


def test_an_answer_without_end_is_left_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metainit.client.MAX_EVIDENCE_BYTES", 100)
    with pytest.raises(EndpointError, match="sends more than 100 bytes"):
        client.show("faces")


def test_a_loaded_address_has_its_evidence(
    wire: Wire, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "shared"))
    made = httpx.Client
    monkeypatch.setattr(
        "metainit.client.httpx.Client", lambda **options: made(**{**options, "transport": wire})
    )
    monkeypatch.setattr("metainit.transfer.time.sleep", lambda _: None)
    first, second = (f"{URL}/v1/inits/faces/versions/{number}" for number in (1, 2))
    start = metainit.load(first)
    assert start.evidence == {"metric": "psnr", "steps": [0, 2]}
    Client(URL).fetch("faces/2")
    wire.down = True
    assert metainit.load(first).evidence == start.evidence
    assert metainit.load(second).evidence is None  # its weights are here, its evidence was never asked for


def test_evidence_of_other_weights_is_left_out(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = shelf.files["faces"][1].with_name("evidence.json")
    beside.write_text(json.dumps({"candidate_digest": "0" * 64}))
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "shared"))
    made = httpx.Client
    with InProcess(create_app(Store(shelf, tmp_path / "store", poll=3600.0))) as transport:
        monkeypatch.setattr(
            "metainit.client.httpx.Client", lambda **options: made(**{**options, "transport": transport})
        )
        assert resolve_url(f"{URL}/v1/inits/faces").evidence == {"candidate_digest": "0" * 64}
        assert metainit.load(f"{URL}/v1/inits/faces").evidence is None


def test_resolve_url_uses_the_shared_cache(
    wire: Wire, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "shared"))
    made = httpx.Client

    def in_process(**options: object) -> httpx.Client:
        return made(**{**options, "transport": wire})  # type: ignore[arg-type]

    monkeypatch.setattr("metainit.client.httpx.Client", in_process)
    path, evidence, kind = resolve_url("http://endpoint/v1/inits/faces@champion")
    assert evidence == {"metric": "psnr", "steps": [0, 2]} and kind == "prior" and path is not None
    assert path.is_relative_to(tmp_path / "shared") and path.is_relative_to(cache_folder(CACHE))
    assert file_sha256(path) == shelf.digests[shelf.files["faces"][1]]


def test_processes_share_one_download(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (os.urandom(200_000), tmp_path / "cache", tmp_path / "log")
    workers = [context.Process(target=fetch_in_a_process, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert (tmp_path / "log").read_text() == "x"
