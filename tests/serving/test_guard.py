"""Keys and rates at the endpoint: no route without its scope, no secret told, no header that breaks it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import iter_route_contexts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import Mount

from serving import key_file, keys
from serving.app import create_app
from serving.keys import Key, Made
from serving.scopes import SCOPES, TABLE, needs_of, shape
from serving.settings import EndpointSettings
from serving.store import Store
from tests.serving.inprocess import InProcess

WEIGHTS = "/v1/inits/faces/weights"
WIDE = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
Opened = Callable[..., Any]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def add(file: Path, *scopes: str, ago: timedelta = timedelta(0), lifetime: timedelta | None = None) -> Made:
    made = keys.make(scopes, datetime.now(UTC) - ago, lifetime=lifetime)
    put(file, made.key)
    return made


def put(file: Path, *new: Key) -> None:
    key_file.change(file, lambda _: (new, None))


def bearer(made: Made | str) -> dict[str, str]:
    return {"authorization": f"Bearer {made if isinstance(made, str) else made.token}"}


@contextmanager
def serving(store: Store, **chosen: Any) -> Iterator[httpx.Client]:
    app = create_app(store, settings=EndpointSettings(**chosen))
    with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://endpoint") as http:
        yield http


def looked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the endpoint look at the file with each request."""
    monkeypatch.setattr("serving.key_file.LOOK_SECONDS", 0.0)


# --- scopes


def test_every_route_is_in_the_table(store: Store) -> None:
    app = create_app(store)
    found = []
    for context in iter_route_contexts(app.routes):
        if isinstance(context.original_route, Mount):
            found.append(("GET", f"{context.path}/{{path}}"))
            continue
        found += [
            (method, shape(str(context.path))) for method in (context.methods or ()) if method != "HEAD"
        ]
    assert len(found) > 15
    assert [route for route in found if route not in TABLE] == []


def test_a_route_that_is_not_in_the_table_is_closed(store: Store, file: Path) -> None:
    everything = add(file, *SCOPES)
    app = create_app(store, settings=EndpointSettings(keys=file))

    @app.get("/v1/forgotten")
    async def forgotten() -> dict[str, str]:
        return {"secret": "told"}

    @app.put("/v1/inits")
    async def also_forgotten() -> dict[str, str]:
        return {"secret": "told"}

    with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://endpoint") as http:
        assert http.get("/v1/forgotten").status_code == 401
        assert http.get("/v1/forgotten", headers=bearer(everything)).status_code == 404
        answer = http.put("/v1/inits", headers=bearer(everything))
        assert answer.status_code == 405 and answer.headers["allow"] == "GET"
        answer = http.head("/v1/inits", headers=bearer(everything))
        assert answer.status_code == 405 and answer.headers["allow"] == "GET"
        answer = http.put(WEIGHTS, headers=bearer(everything))
        assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"


CALLS = (
    ("GET", "/v1/inits", "read"),
    ("GET", "/v1/inits/faces", "read"),
    ("GET", "/v1/inits/faces/versions/1", "read"),
    ("GET", "/v1/inits/faces/pictures/steps.png", "read"),
    ("GET", WEIGHTS, "read"),
    ("HEAD", WEIGHTS, "read"),
    ("GET", "/openapi.json", "read"),
    ("GET", "/docs", "read"),
    ("GET", "/v1/blobs/" + "0" * 64, "read"),
    ("POST", "/v1/inits/faces/predict", "predict"),
    ("POST", "/v1/inits/faces/versions/1/predict", "predict"),
    ("POST", "/v1/inits/faces/generate", "generate"),
    ("POST", "/v1/try", "predict"),
    ("GET", "/metrics", "admin"),
)


def test_each_scope_opens_its_routes_and_no_others(store: Store, file: Path) -> None:
    owned = {scope: add(file, scope) for scope in SCOPES}
    with serving(store, keys=file) as http:
        for method, path, needed in CALLS:
            assert http.request(method, path).status_code == 401, path
            for scope, made in owned.items():
                status = http.request(method, path, headers=bearer(made)).status_code
                assert (status != 403) == (scope == needed), (path, scope, status)
                assert status not in (401, 500)


def test_what_holds_no_data_needs_no_key(store: Store, file: Path) -> None:
    reader = add(file, "read")
    with serving(store, keys=file) as http:
        assert http.get("/healthz").status_code == 200
        assert http.get("/readyz").json() == {"ready": True}
        assert http.get("/readyz", headers=bearer(reader)).json()["inits"] == 2
        page = http.get("/", headers={"accept": "text/html"})
        assert page.status_code == 200 and "faces" not in page.text
        assert page.text == http.get("/", headers={"accept": "text/html", **bearer(reader)}).text
        for name in set(re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)):
            assert http.get(f"/{name}").status_code == 200
        assert http.get("/v1/overview").status_code == http.get("/v1/try").status_code == 401
        assert http.get("/readyz", headers=bearer("mi_wrong")).status_code == 401


def test_metrics_can_be_opened(store: Store, file: Path) -> None:
    add(file, "read")
    with serving(store, keys=file, open_metrics=True) as http:
        assert http.get("/metrics").status_code == 200
        assert http.get("/v1/inits").status_code == 401


def test_refusals_say_what_is_missing(store: Store, file: Path) -> None:
    reader = add(file, "read")
    with serving(store, keys=file) as http:
        none = http.get("/v1/inits")
        assert none.headers["www-authenticate"].startswith("Bearer")
        assert none.json()["type"].endswith("unauthorized")
        lacking = http.get("/metrics", headers=bearer(reader))
        assert lacking.status_code == 403 and "admin" in lacking.json()["detail"]
        assert 'error="insufficient_scope", scope="admin"' in lacking.headers["www-authenticate"]
        assert lacking.headers["content-type"] == "application/problem+json"


def test_blobs_are_for_shared_caches_only_while_keys_are_off(store: Store, file: Path) -> None:
    reader = add(file, "read")
    with serving(store, keys=file) as http:
        blob = http.head(WEIGHTS, headers=bearer(reader)).headers["content-location"]
        cache = http.head(blob, headers=bearer(reader)).headers["cache-control"]
    assert cache == "private, max-age=31536000, immutable"


# --- the life of a key


@pytest.mark.parametrize("kind", ["Basic", "bearer", "BEARER", "Bearer  ", "", "Token"])
def test_forms_of_the_header(store: Store, file: Path, kind: str) -> None:
    reader = add(file, "read")
    with serving(store, keys=file) as http:
        status = http.get("/v1/inits", headers={"authorization": f"{kind} {reader.token}"}).status_code
    assert status == (200 if kind.strip().lower() == "bearer" else 401)


def test_expired_revoked_and_rotated_keys(store: Store, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_again(monkeypatch)
    day = timedelta(days=1)
    expired = add(file, "read", ago=2 * day, lifetime=day)
    first = add(file, "read")
    with serving(store, keys=file) as http:
        gone = http.get("/v1/inits", headers=bearer(expired))
        assert gone.status_code == 401 and "expired" in gone.json()["detail"]
        now = datetime.now(UTC)
        old, second = keys.rotate(key_file.read(file), first.key.id, now, grace=day)
        put(file, old, second.key)
        assert [http.get("/v1/inits", headers=bearer(m)).status_code for m in (first, second)] == [200, 200]
        put(file, old.model_copy(update={"expires": now}))
        assert http.get("/v1/inits", headers=bearer(first)).status_code == 401
        put(file, keys.revoke(key_file.read(file), second.key.id, now))
        closed = http.get("/v1/inits", headers=bearer(second))
        assert closed.status_code == 401 and "revoked" in closed.json()["detail"]


def test_a_revocation_arrives_within_five_seconds(store: Store, file: Path) -> None:
    import time

    reader = add(file, "read")
    with serving(store, keys=file) as http:
        assert http.get("/v1/inits", headers=bearer(reader)).status_code == 200
        put(file, keys.revoke(key_file.read(file), reader.key.id, datetime.now(UTC)))
        began = time.monotonic()
        while http.get("/v1/inits", headers=bearer(reader)).status_code == 200:
            assert time.monotonic() - began < 5
            time.sleep(0.05)


def test_a_file_that_cannot_be_read_lets_nobody_in(
    store: Store, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_again(monkeypatch)
    reader = add(file, "read")
    with serving(store, keys=file) as http:
        file.write_text("damaged")
        answer = http.get("/v1/inits", headers=bearer(reader))
        assert answer.status_code == 503 and "retry-after" in answer.headers
        assert str(file) not in answer.text
        assert http.get("/v1/inits").status_code == 401
        assert http.get("/healthz").status_code == 200


# --- rates


def test_wrong_keys_are_limited_and_good_ones_are_not(store: Store, file: Path) -> None:
    reader = add(file, "read")
    with serving(store, keys=file, failures="3/minute") as http:
        wrong = [http.get("/v1/inits", headers=bearer("mi_" + "0" * 12 + "_" + "0" * 64)) for _ in range(5)]
        assert [answer.status_code for answer in wrong] == [401, 401, 401, 429, 429]
        assert int(wrong[-1].headers["retry-after"]) in range(1, 61)
        assert http.get("/v1/inits", headers=bearer(reader)).status_code == 200


def test_rates_are_counted_by_scope_and_by_key(store: Store, file: Path) -> None:
    first, second = add(file, "read", "predict"), add(file, "read")
    with serving(store, keys=file, rates={"read": "2/minute"}) as http:
        for made in (first, second):
            answers = [http.get("/v1/inits", headers=bearer(made)) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [200, 200, 429]
        refused = answers[-1]
        assert refused.headers["ratelimit-policy"] == '"read";q=2;w=60'
        assert refused.headers["ratelimit"].startswith('"read";r=0;t=')
        assert refused.json()["type"].endswith("rate") and refused.headers["retry-after"].isdigit()
        assert http.post("/v1/inits/faces/predict", headers=bearer(first)).status_code != 429
        assert http.get("/healthz").status_code == 200


def test_rates_without_keys_are_counted_by_address(store: Store) -> None:
    with serving(store, rates={"read": "2/minute"}, trusted_proxies=["127.0.0.0/8"]) as http:
        statuses = {}
        for address in ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"):
            came = {"x-forwarded-for": f"203.0.113.9, {address}"}
            statuses[address] = [http.get("/v1/inits", headers=came).status_code for _ in range(2)]
        assert statuses["192.0.2.1"] == statuses["192.0.2.2"] == [200, 200]
        assert statuses["2001:db8::2"] == [429, 429]  # one customer's network
        assert http.get("/v1/inits", headers={"x-forwarded-for": "192.0.2.1"}).status_code == 429


def test_a_window_moves(store: Store) -> None:
    import time

    with serving(store, rates={"read": "1/second"}) as http:
        assert http.get("/v1/inits").status_code == 200
        refused = http.get("/v1/inits")
        assert refused.status_code == 429
        time.sleep(int(refused.headers["retry-after"]) + 0.1)
        assert http.get("/v1/inits").status_code == 200


# --- secrets and noise


def test_no_secret_reaches_logs_audit_or_answers(
    store: Store,
    file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving import logs

    reader = add(file, "read")
    secret = reader.token.split("_")[2]
    audit, log = tmp_path / "audit.jsonl", tmp_path / "log.jsonl"
    chosen = EndpointSettings(
        keys=file, audit=audit, log_file=log, log_format="json", log_requests=True, rates={"read": "7/minute"}
    )
    caplog.set_level(logging.DEBUG)
    handler = logs.configure(chosen)
    logger = logging.getLogger(logs.ROOT)
    logger.propagate = True
    try:
        app = create_app(store, settings=chosen)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError(f"unforeseen, with {reader.token}")

        monkeypatch.setattr("serving.app.readiness", broken)
        said = []
        with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://e") as http:
            said += [http.get(WEIGHTS, headers=bearer(reader)) for _ in range(9)]
            said.append(http.get("/metrics", headers=bearer(reader)))
            said.append(http.get("/readyz"))
            said.append(http.get("/v1/inits", headers=bearer(reader.token[:-1])))
        wrong = reader.token[:-1] + ("0" if reader.token[-1] != "0" else "1")
        with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://e") as http:
            said.append(http.get("/v1/inits", headers=bearer(wrong)))
            http.get(f"/v1/inits/{reader.token}", headers=bearer(reader))
    finally:
        logger.removeHandler(handler)
        handler.close()
    written = audit.read_text() + log.read_text()
    assert {200, 401, 403, 429, 500} <= {answer.status_code for answer in said}
    assert reader.key.id in written and secret[:32] not in written
    assert all(secret[:32] not in answer.text + str(answer.headers) for answer in said)
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    first = lines[0]
    assert first["key"] == reader.key.id and first["status"] == 200 and first["bytes"] > 0
    assert first["request_id"] == said[0].headers["x-request-id"]
    assert [line["problem"] for line in lines if line["status"] == 403] == ["forbidden"]
    assert audit.stat().st_mode & 0o077 == 0
    assert all(json.loads(line)["level"] for line in log.read_text().splitlines())


NAMES = st.sampled_from(
    [
        "authorization", "x-request-id", "range", "if-none-match", "if-range", "accept", "content-length",
        "content-type", "x-forwarded-for", "x-forwarded-proto", "host", "origin", "traceparent",
        "access-control-request-method", "accept-encoding", "transfer-encoding", "cookie",
    ]
)  # fmt: skip
VALUES = st.binary(max_size=60).map(lambda b: b.replace(b"\r", b" ").replace(b"\n", b" "))
LIKELY = st.sampled_from(
    [b"Bearer ", b"Bearer mi_", b"bytes=-", b"bytes=0-0", b'W/"', b"*", b"9" * 5000, b"["]
)
PATHS = st.sampled_from(
    [
        "/",
        "/readyz",
        "/v1/inits",
        WEIGHTS,
        "/v1/inits/faces/predict",
        "/metrics",
        "/docs",
        "/no",
        "/v1/inits/",
    ]
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[httpx.Client]]:
    from contextlib import ExitStack

    from tests.serving.shelf import Shelf

    folder = tmp_path_factory.mktemp("fuzz")
    shelf = Shelf(folder / "registry")
    shelf.add("faces", 0, "champion")
    add(folder / "keys.json", "read")
    store = Store(shelf, folder / "store", poll=3600.0)
    with ExitStack() as stack:
        yield [
            stack.enter_context(serving(store, trusted_proxies=["127.0.0.0/8"], cors_origins=["*"])),
            stack.enter_context(serving(store, keys=folder / "keys.json")),
        ]


@WIDE
@given(
    st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "BREW"]),
    PATHS,
    st.lists(st.tuples(NAMES, VALUES | LIKELY | st.tuples(LIKELY, VALUES).map(b"".join)), max_size=6),
)
def test_headers_of_any_kind_are_answered(
    fuzzed: list[httpx.Client], method: str, path: str, headers: list[tuple[str, bytes]]
) -> None:
    for http in fuzzed:
        request = http.build_request(method, path, headers=[(n.encode(), v) for n, v in headers])
        answer = http.send(request)
        assert answer.status_code < 500, (answer.status_code, answer.text)
        assert len(answer.headers.get_list("x-request-id")) == 1
        if answer.status_code >= 400 and method != "HEAD" and method != "OPTIONS":
            assert answer.headers["content-type"] == "application/problem+json"


def test_the_table_knows_a_path_by_its_parts() -> None:
    assert needs_of("/v1/inits/a/versions/2/weights") == {"GET": "read"}
    for path in (
        "/v1/inits/a/b",
        "/v1/inits/",
        "//v1/inits",
        "/V1/inits",
        "/web/",
        "",
        "/v1",
    ):
        assert needs_of(path) == {}, path
