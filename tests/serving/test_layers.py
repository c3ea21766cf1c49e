"""The layers around the app: bounds, peers, request ids, headers, logs, metrics, readiness, traces."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Request

from serving.app import create_app
from serving.logs import Lines
from serving.peers import HOP, PEER, SCHEME, Door
from serving.seen import seen
from serving.settings import EndpointSettings
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.scraped import scraped
from tests.serving.shelf import Shelf

WEIGHTS = "/v1/inits/faces/weights"


@contextmanager
def serving(store: Store, door: Door | None = None, **chosen: Any) -> Iterator[httpx.Client]:
    """The endpoint, with a route that tells who asks and one that waits as long as it is told to."""
    app = create_app(store, settings=EndpointSettings(**chosen), door=door)

    @app.get("/web/who")
    async def who(request: Request) -> dict[str, Any]:
        note = seen(request.scope)
        return {"address": note.address, "scheme": request.scope["scheme"], "id": note.request_id}

    @app.post("/web/wait")
    async def wait(request: Request, seconds: float = 0.0) -> int:
        await asyncio.sleep(seconds)
        return len(await request.body())

    with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://endpoint") as http:
        yield http


# --- bounds


def test_addresses_headers_and_bodies_are_bounded(store: Store) -> None:
    with serving(store, path_chars=100, header_bytes=600, body_bytes=100) as http:
        answers = {
            414: http.get("/v1/inits?after=" + "x" * 100),
            431: http.get("/v1/inits", headers={"x-large": "x" * 600}),
            413: http.post("/web/wait", content=b"x" * 101),
        }
        for status, answer in answers.items():
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
        assert http.post("/web/wait", content=b"x" * 100).json() == 100
        assert http.post("/web/wait", headers={"content-length": "9" * 200}).status_code == 413


def test_a_body_that_grows_over_the_limit_is_left_off(store: Store) -> None:
    """Without an announced length, as chunked transfer is; the in-process transport announces one."""
    app = create_app(store, settings=EndpointSettings(body_bytes=100))
    sent: list[Any] = []

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"x" * 60, "more_body": True}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"transfer-encoding", b"chunked"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/v1/inits/faces/predict", "query_string": b""}
        await app({**scope, "headers": headers, "client": ("127.0.0.1", 1), "scheme": "http"}, receive, send)

    store.refresh()
    asyncio.run(run())
    assert sent[0]["status"] == 413


def test_too_many_at_once_are_told_to_come_back_and_probes_are_not(store: Store) -> None:
    with serving(store, in_flight=1) as http:
        waiting = threading.Thread(target=http.post, args=("/web/wait?seconds=1.0",))
        waiting.start()
        statuses = set()
        while waiting.is_alive():
            answer = http.get("/v1/inits")
            statuses.add(answer.status_code)
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "1"
                assert answer.json()["type"].endswith("overloaded")
                assert http.get("/readyz").status_code == http.get("/healthz").status_code == 200
        waiting.join()
        assert 503 in statuses and statuses <= {200, 503}
        assert http.get("/v1/inits").status_code == 200


def test_no_answer_in_time_is_a_503(store: Store) -> None:
    with serving(store, start_seconds=0.2) as http:
        answer = http.post("/web/wait?seconds=5")
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["type"].endswith("slow")


def test_what_has_begun_in_time_may_take_its_time(store: Store) -> None:
    app = create_app(store, settings=EndpointSettings(start_seconds=0.2))

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield b"x"
            await asyncio.sleep(0.1)

    @app.get("/web/slow")
    async def slow() -> Any:
        from starlette.responses import StreamingResponse

        return StreamingResponse(slowly())

    with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://e") as http:
        assert http.get("/web/slow").content == b"xxxx"


def test_every_answer_says_how_it_may_be_kept(store: Store) -> None:
    with serving(store) as http:
        for path in ("/v1/inits", "/v1/inits/faces/versions", "/v1/overview", "/", "/readyz", "/v1/try"):
            assert http.get(path).headers["cache-control"] == "no-cache", path
        blob = http.get(http.get(WEIGHTS).headers["content-location"])
        assert "immutable" in blob.headers["cache-control"]
        again = http.get(blob.url, headers={"if-none-match": blob.headers["etag"]})
        assert again.status_code == 304 and "immutable" in again.headers["cache-control"]


# --- peers


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("198.51.100.7, 10.0.0.9, 127.0.0.3", "198.51.100.7"),
        ("10.0.0.1", "10.0.0.1"),
        ("made up", "127.0.0.1"),
        ("", "127.0.0.1"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_a_trusted_proxy_tells_who_asks(store: Store, forwarded: str, address: str) -> None:
    headers = {"x-forwarded-for": forwarded, "x-forwarded-proto": "https"}
    with serving(store, trusted_proxies=["127.0.0.0/8", "10.0.0.0/8"]) as http:
        who = http.get("/web/who", headers=headers)
        assert who.json()["address"] == address and who.json()["scheme"] == "https"
        assert who.headers["strict-transport-security"] == "max-age=31536000"
        twice = [("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "198.51.100.7")]
        assert http.get("/web/who", headers=twice).json()["address"] == "198.51.100.7"
    with serving(store) as http:  # nobody is trusted
        who = http.get("/web/who", headers=headers)
        assert who.json()["address"] == "127.0.0.1" and who.json()["scheme"] == "http"
        assert "strict-transport-security" not in who.headers


def test_there_is_no_way_around_the_front_door(store: Store) -> None:
    with serving(store, door=Door("secret")) as http:
        for hop in (None, "", "secre", "secret2"):
            headers = {PEER: "1.2.3.4"} if hop is None else {PEER: "1.2.3.4", HOP: hop}
            answer = http.get("/healthz", headers=headers)
            assert answer.status_code == 403 and "secret" not in answer.text
        came = {HOP: "secret", PEER: "192.0.2.1", SCHEME: "https", "x-forwarded-for": "1.1.1.1"}
        who = http.get("/web/who", headers=came).json()
        assert who["address"] == "192.0.2.1" and who["scheme"] == "https"
    assert "secret" not in repr(Door("secret"))


def test_a_base_path_is_part_of_every_address(store: Store) -> None:
    with serving(store, base_path="/team/starts") as http:
        for path in ("/v1/inits", "/team/starts/v1/inits"):  # the proxy may strip it, or not
            listed = http.get(path).json()["items"]
            assert listed[0]["url"] == "/team/starts/v1/inits/ct"
        assert http.get(listed[0]["url"]).status_code == 200
        assert http.get("/openapi.json").json()["servers"] == [{"url": "/team/starts"}]
        assert http.get("/team/starts").json() == http.get("/team/starts/").json()


# --- request ids, headers, CORS


@pytest.mark.parametrize("given", ["abc-123", "A.b_c", "x" * 64])
def test_a_sane_request_id_is_kept(store: Store, given: str) -> None:
    with serving(store) as http:
        answer = http.get("/v1/inits/none", headers={"x-request-id": given})
        assert answer.headers["x-request-id"] == answer.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", 'a"b', "a<b"])
def test_any_other_is_replaced(store: Store, given: str) -> None:
    with serving(store) as http:
        made = {http.get("/healthz", headers={"x-request-id": given}).headers["x-request-id"] for _ in "12"}
    assert given not in made and len(made) == 2 and all(len(one) == 32 for one in made)


def test_every_answer_has_the_headers_of_caution(store: Store) -> None:
    with serving(store) as http:
        for path in ("/", "/docs", "/v1/inits", WEIGHTS, "/none", "/v1/inits/faces/pictures/steps.png"):
            headers = http.get(path).headers
            assert headers.get_list("x-content-type-options") == ["nosniff"]
            assert headers["referrer-policy"] == "no-referrer"
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline'" not in http.get("/").headers["content-security-policy"].split("style-src")[0]


def test_pages_of_other_origins_may_ask_only_when_told_so(store: Store) -> None:
    asked = {"origin": "https://lab.example", "access-control-request-method": "GET"}
    asked["access-control-request-headers"] = "authorization"
    with serving(store) as http:
        assert "access-control-allow-origin" not in http.get("/v1/inits", headers=asked).headers
    with serving(store, cors_origins=["https://lab.example"]) as http:
        allowed = http.options("/v1/inits", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://lab.example"
        assert (
            "x-request-id"
            in http.get("/v1/inits", headers=asked).headers["access-control-expose-headers"].lower()
        )
        assert (
            http.options("/v1/inits", headers={**asked, "origin": "https://evil.example"}).status_code == 400
        )


# --- logs, metrics, readiness


def test_an_unforeseen_error_is_a_problem_with_an_id(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(store)

    @app.get("/web/broken")
    async def broken() -> None:
        raise ZeroDivisionError("details")

    with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://e") as http:
        answer = http.get("/web/broken")
        text = http.get("/metrics").text
    assert answer.status_code == 500 and answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "nosniff" in answer.headers["x-content-type-options"] and "details" not in answer.text
    assert scraped(text, "metainit_problems_total", kind="internal") == 1
    assert scraped(text, "metainit_requests_total", route="/web/broken", status="500") == 1


def test_metrics_tell_of_requests_caches_models_and_build(store: Store) -> None:
    with serving(store) as http:
        tag = http.get(WEIGHTS).headers["etag"]
        http.get(WEIGHTS, headers={"if-none-match": tag})
        http.get("/v1/inits/none")
        http.request("BREW", "/v1/inits")
        http.request("BOIL", "/v1/inits")
        text = http.get("/metrics").text
    brewed = {"method": "other", "route": "/v1/inits", "status": "405"}
    assert scraped(text, "metainit_cache_total", found="hit", of="client") == 1
    assert scraped(text, "metainit_cache_total", found="miss", of="client") == 1
    assert scraped(text, "metainit_problems_total", kind="missing") == 1
    assert scraped(text, "metainit_requests_total", **brewed) == 2
    assert scraped(text, "metainit_in_flight") == 1
    assert scraped(text, "metainit_queue") == 0
    assert scraped(text, "metainit_registry_stale") == 0
    assert scraped(text, "metainit_models_unnamed") == 0
    assert scraped(text, "metainit_model_info", alias="champion", kind="prior", name="faces") == 1
    assert scraped(text, "metainit_build_info") == 1
    assert scraped(text, "metainit_request_seconds_bucket", le="+Inf") >= 5
    assert "BREW" not in text


def test_model_versions_are_of_bounded_number(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.metrics.MOST_MODELS", 2)
    with serving(store) as http:
        text = http.get("/metrics").text
    assert text.count("\nmetainit_model_info{") == 2 and scraped(text, "metainit_models_unnamed") == 2


def test_log_lines_carry_the_request(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "metainit.requests")
    with serving(store, log_requests=True) as http:
        answer = http.get("/v1/inits/faces%0Ax")
        http.get("/healthz")
    lines = [record.getMessage() for record in caplog.records if record.name == "metainit.requests"]
    assert len(lines) == 1 and answer.headers["x-request-id"] in lines[0]
    assert "\n" not in lines[0] and " 422 " in lines[0]


def test_lines_follow_a_file_that_is_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.logs.LOOK_SECONDS", 0.0)
    file = tmp_path / "audit" / "audit.jsonl"
    lines = Lines(file)
    lines.append("one")
    file.rename(tmp_path / "old")
    lines.append("two")
    assert (tmp_path / "old").read_text() == "one\n" and file.read_text() == "two\n"
    assert file.stat().st_mode & 0o077 == 0


def test_a_registry_out_of_reach_is_told(store: Store, shelf: Shelf) -> None:
    with serving(store) as http:
        assert "x-metainit-stale" not in http.get(WEIGHTS).headers
        shelf.gone = True
        store.refresh()
        answer = http.get(WEIGHTS)
        assert answer.status_code == 200 and int(answer.headers["x-metainit-stale"]) >= 0
        blob = http.get(answer.headers["content-location"])
        assert blob.status_code == 200 and "x-metainit-stale" not in blob.headers
        ready = http.get("/readyz").json()
        assert ready["ready"] and ready["stale"] and ready["stale_seconds"] >= 0
        assert "does not answer" in ready["registry_error"]
        assert scraped(http.get("/metrics").text, "metainit_registry_stale") == 1
        shelf.gone = False
        store.refresh()
        assert "x-metainit-stale" not in http.get(WEIGHTS).headers
        assert http.get("/readyz").json()["stale"] is False


def test_a_look_that_does_not_end_is_told(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    store = Store(shelf, tmp_path / "store", poll=1.0)
    store.refresh()
    assert store.stale_for() is None
    now = time.monotonic()
    monkeypatch.setattr("serving.store.time.monotonic", lambda: now + 60)
    stale = store.stale_for()
    assert stale is not None and 59 < stale < 70


def test_a_full_disk_and_damaged_versions_are_told(store: Store, shelf: Shelf) -> None:
    shelf.add("broken", 5, "champion")
    path = shelf.files["broken"][1]
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with serving(store, least_free_bytes=1 << 60) as http:
        store.keep_free(0)  # nothing was brought while there was no room
        store.refresh()
        ready = http.get("/readyz").json()
        assert ready["ready"] and ready["disk_full"] and ready["disk_free_bytes"] > 0
        assert list(ready["quarantined"]) == ["broken/1"]
        assert scraped(http.get("/metrics").text, "metainit_quarantined") == 1
    with serving(store) as http:
        assert http.get("/readyz").json()["disk_full"] is False


# --- traces


class Collector(HTTPServer):
    """Takes what an OTLP exporter posts."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Taker)


class _Taker(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        assert isinstance(self.server, Collector)
        self.server.bodies.append(gzip.decompress(body) if self.headers["content-encoding"] else body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_traces_reach_a_collector(store: Store, collector: Collector, tmp_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    trace = "0af7651916cd43dd8448eb211c80319c"
    audit = tmp_path / "audit.jsonl"
    url = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    with serving(store, traces=url, audit=audit) as http:
        http.get(WEIGHTS, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01", "x-request-id": "mine"})
        http.get("/healthz")
    spans = []
    for body in collector.bodies:
        request = ExportTraceServiceRequest.FromString(body)
        spans += [
            span for group in request.resource_spans for part in group.scope_spans for span in part.spans
        ]
    (span,) = spans
    facts = {item.key: item.value.string_value for item in span.attributes}
    assert span.name == "GET /v1/inits/{reference}/weights" and span.trace_id.hex() == trace
    assert facts["http.route"] == "/v1/inits/{reference}/weights"
    assert facts["metainit.request_id"] == "mine"
    (line,) = [json.loads(text) for text in audit.read_text().splitlines()]
    assert line["trace_id"] == trace
