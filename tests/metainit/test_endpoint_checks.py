"""What `metainit doctor` says of an endpoint that is well, and of each way in which one is not."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from metainit.diagnosis import Finding
from metainit.endpoint_checks import examine
from serving.app import create_app
from serving.store import Store
from tests.metainit.faults import URL, Stripping
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

Change = Callable[[httpx.Request, httpx.Response], httpx.Response]
NOW = 1_800_000_000.0


class Changed(httpx.BaseTransport):
    """What lies between here and the endpoint."""

    def __init__(self, inner: httpx.BaseTransport, change: Change) -> None:
        self.inner, self.change = inner, change

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self.change(request, self.inner.handle_request(request))


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METAINIT_SERVER", "METAINIT_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    shelf = Shelf(tmp_path_factory.mktemp("registry"))
    shelf.add("faces", 0, "champion")
    return shelf


@pytest.fixture(scope="module")
def store(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(shelf, tmp_path_factory.mktemp("store"), poll=3600.0)


@pytest.fixture(scope="module")
def app(store: Store) -> Iterator[InProcess]:
    with InProcess(create_app(store)) as transport:
        yield transport


def found(transport: httpx.BaseTransport, key: str | None = None, url: str = URL) -> dict[str, Finding]:
    findings = examine(url, key, transport, clock=lambda: NOW)
    return {finding.subject: finding for finding in findings}


def wrong(findings: dict[str, Finding]) -> list[str]:
    return [f"{f.level} {f.subject}: {f.text}" for f in findings.values() if f.level != "ok"]


def headers_of(answer: httpx.Response, **changed: str) -> httpx.Response:
    kept = {**dict(answer.headers), **{name.replace("_", "-"): value for name, value in changed.items()}}
    return httpx.Response(answer.status_code, headers=kept, stream=httpx.ByteStream(answer.content))


def test_a_sound_endpoint(app: InProcess) -> None:
    findings = found(app)
    assert wrong(findings) == []
    assert findings["endpoint readiness"].text == "ready, and its registry is in reach"
    assert findings["endpoint weights"].text == "SHA-256, ranges and 304 arrive"
    assert findings["endpoint key"].text == "none is needed to read"
    assert findings["endpoint version"].text.startswith("0.")


def test_every_finding_says_what_and_how() -> None:
    finding = Finding("error", "disk", "full", "2048 MiB", "make room")
    assert finding.text == "full; expected 2048 MiB: make room"
    assert finding.to_dict() == {
        "level": "error",
        "subject": "disk",
        "found": "full",
        "expected": "2048 MiB",
        "remedy": "make room",
        "text": finding.text,
    }


@pytest.mark.parametrize(
    ("names", "subject", "level", "said"),
    [
        (("range",), "endpoint ranges", "warning", "let the proxy pass on Range"),
        (("if-none-match",), "endpoint ETag", "warning", "let the proxy pass on If-None-Match"),
        (("etag",), "endpoint weights", "error", "ETag none"),
        (("content-length",), "endpoint weights", "error", "Content-Length none"),
    ],
)
def test_a_proxy_that_takes_headers(
    app: InProcess, names: tuple[str, ...], subject: str, level: str, said: str
) -> None:
    finding = found(Stripping(app, *names))[subject]
    assert finding.level == level and said in finding.text


def test_a_proxy_that_packs(app: InProcess) -> None:
    def packed(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        tag = answer.headers.get("etag")
        return headers_of(answer, etag=f"W/{tag}", via="1.1 cache") if tag else answer

    finding = found(Changed(app, packed))["endpoint ETag"]
    assert finding.level == "warning" and "a weak one, via: 1.1 cache" in finding.text


def test_clocks(app: InProcess) -> None:
    def dated(seconds: float) -> Change:
        date = email.utils.formatdate(NOW + seconds, usegmt=True)
        return lambda request, answer: headers_of(answer, date=date)

    assert found(Changed(app, dated(2)))["endpoint clock"].level == "ok"
    for seconds, said in ((300, "300 s behind"), (-300, "300 s ahead of")):
        finding = found(Changed(app, dated(seconds)))["endpoint clock"]
        assert finding.level == "warning" and said in finding.text and "NTP" in finding.text
    assert abs(NOW - time.time()) > 0


def test_another_version(app: InProcess) -> None:
    def newer(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        return httpx.Response(200, json={"version": "9.9"}) if request.url.path == "/" else answer

    assert "metainit 9.9, this is" in found(Changed(app, newer))["endpoint version"].text


def test_a_registry_out_of_reach(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "registry")
    shelf.add("faces", 0, "champion")
    store = Store(shelf, tmp_path / "store", poll=3600.0)
    with InProcess(create_app(store)) as app:
        shelf.gone = True
        store.refresh()
        finding = found(app)["endpoint readiness"]
        assert finding.level == "warning" and "the registry does not answer" in finding.text
    unborn = Store(shelf, tmp_path / "other", poll=3600.0)
    with InProcess(create_app(unborn)) as app:
        finding = found(app)["endpoint readiness"]
        assert finding.level == "error" and finding.found.startswith("503 ")
        assert found(app)["endpoint weights"].text.startswith("nothing is registered yet")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"stale": True, "registry_error": "no route"}, "out of reach: no route"),
        ({"disk_full": True}, "its disk is full"),
        ({"quarantined": {"faces/2": "other bytes"}}, "faces/2 is damaged (other bytes)"),
    ],
)
def test_readiness_that_has_a_but(app: InProcess, body: dict[str, object], said: str) -> None:
    def told(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        if request.url.path != "/readyz":
            return answer
        return httpx.Response(200, json={"ready": True, **body})

    finding = found(Changed(app, told))["endpoint readiness"]
    assert finding.level == "warning" and said in finding.text


def guarded(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
    """An endpoint with keys: one that may read."""
    if request.url.path in ("/healthz", "/readyz", "/"):
        return answer
    came = request.headers.get("authorization")
    if came != "Bearer mi_reader":
        detail = "this key is not known here" if came else "a key is needed"
        return httpx.Response(401, json={"title": "A key is needed", "detail": detail})
    if request.url.path == "/metrics":
        return httpx.Response(403, json={"detail": "the key mi_r has read; this needs admin"})
    return answer


def test_keys(app: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    door = Changed(app, guarded)
    missing = found(door)["endpoint key"]
    assert missing.level == "error" and "a key is needed; expected a key with the scope read" in missing.text
    assert "not known here" in found(door, "mi_other")["endpoint key"].text
    known = found(door, "mi_reader")
    assert "the key mi_r has read" in known["endpoint key"].text and known["endpoint weights"].level == "ok"
    assert "not looked at" in found(app, "mi_any")["endpoint key"].text
    assert "mi_reader" not in str(known) and "mi_other" not in str(found(door, "mi_other"))
    # METAINIT_KEY goes to METAINIT_SERVER alone.
    monkeypatch.setenv("METAINIT_KEY", "mi_reader")
    monkeypatch.setenv("METAINIT_SERVER", "http://other")
    assert found(door)["endpoint key"].level == "error"
    monkeypatch.setenv("METAINIT_SERVER", URL)
    assert found(door)["endpoint key"].level == "ok"


def test_a_wrong_key_is_told_where_it_is_refused_everywhere(app: InProcess) -> None:
    def strict(request: httpx.Request, answer: httpx.Response) -> httpx.Response:
        return httpx.Response(401, json={}) if request.headers.get("authorization") else answer

    text = found(Changed(app, strict), "mi_wrong")["endpoint key"].text
    assert "unknown, expired or revoked" in text and "metainit keys list" in text and "mi_wrong" not in text


def test_a_key_in_the_clear(app: InProcess) -> None:
    levels = [f.text for f in examine(URL, "mi_any", app) if f.subject == "endpoint key"]
    assert any("others can read it; expected https" in text for text in levels)
    local = [f.text for f in examine("http://127.0.0.1:1", "mi_any", app) if f.subject == "endpoint key"]
    assert not any("https" in text for text in local)


def test_what_is_no_endpoint() -> None:
    page = httpx.MockTransport(lambda _: httpx.Response(200, html="<html>"))
    findings = found(page)
    assert list(findings) == [f"endpoint {URL}"]
    assert "is this the address of a metainit endpoint" in findings[f"endpoint {URL}"].text
    assert "expected e.g. http://" in found(page, url="nonsense")["endpoint nonsense"].text


def test_a_proxy_of_the_environment(app: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy:3128")
    monkeypatch.setenv("no_proxy", "")
    finding = found(app)["proxy"]
    assert finding.level == "ok" and "http://proxy:3128" in finding.text and "secret" not in finding.text
    assert found(app, url="http://127.0.0.1:1")["proxy"].level == "warning"
    monkeypatch.setenv("no_proxy", "endpoint")
    assert "proxy" not in found(app)
