"""What is wrong with an endpoint, or with what lies between it and here."""

from __future__ import annotations

import email.utils
import json
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import httpx

import metainit
from metainit import settings
from metainit.client import TIMEOUT, endpoint_at, http_options
from metainit.diagnosis import Finding
from metainit.errors import EndpointError
from metainit.protocol import SHA256_TAG
from metainit.transfer import Patience, Retry, check, tried
from metainit.wire import Answer, Ask, Steps, Transient, ask, run

SKEW_SECONDS = 60.0
MAX_ANSWER = 16 << 20
LOOPBACK = ("localhost", "127.0.0.1", "::1")
RETRY = Retry(attempts=2, first_wait=0.25)


@dataclass(frozen=True)
class Line:
    """The way to an endpoint: an open httpx client, and the key that goes along."""

    http: httpx.Client
    url: str
    key: str | None
    clock: Callable[[], float]

    def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Exchange once, and a second time where no answer came; every status is an answer.

        Raises:
            EndpointError: there was none.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        question = Ask(method, f"{self.url}{path}", {"Accept": "application/json", **named}, limit=MAX_ANSWER)
        return run(tried(partial(_once, question), Patience(RETRY, self.url)), self.http)


def _once(question: Ask) -> Steps[Answer]:
    return (yield from ask(question))


def examine(
    url: str,
    key: str | None = None,
    transport: httpx.BaseTransport | None = None,
    clock: Callable[[], float] = time.time,
) -> list[Finding]:
    """Look at an endpoint; nothing there is changed, and a few small requests are made.

    Args:
        url: its address.
        key: METAINIT_KEY unless given, where METAINIT_SERVER is this endpoint.
        transport: an httpx transport, e.g. one that calls an app in the same process.
        clock: seconds since the epoch.
    """
    subject = f"endpoint {url}"
    key = settings.key_for(url) if key is None else key
    try:
        address = endpoint_at(url, RETRY, None, False).url
        options = http_options(address, key, TIMEOUT)
        # Closed, not entered: a transport that was handed in may be used again.
        with closing(httpx.Client(transport=transport, **options)) as http:
            return list(_examined(Line(http, address, key, clock), subject))
    except EndpointError as error:
        return [*_between(url), Finding("error", subject, str(error))]


def _examined(line: Line, subject: str) -> Iterator[Finding]:
    start = time.perf_counter()
    health = line.get("/healthz")
    seconds = time.perf_counter() - start
    if health.status == 401:  # who sends a key that is none is told so everywhere
        remedy = "set METAINIT_KEY to one that `metainit keys list` shows there, or unset it"
        found = "the key that is sent is unknown, expired or revoked"
        yield Finding("error", "endpoint key", found, "a key that the endpoint knows", remedy)
        return
    if health.status != 200 or _object(health).get("status") != "ok":
        remedy = "is this the address of a metainit endpoint, with the path that its proxy gives it?"
        found = f"answers GET /healthz with {health.status}"
        yield Finding("error", subject, found, '200 and {"status": "ok"}', remedy)
        return
    yield from _between(line.url)
    yield Finding("ok", subject, f"answers in {1000 * seconds:.0f} ms")
    yield from _clock(line, health)
    yield from _version(line)
    yield from _readiness(line)
    yield from _key(line)
    listed = line.get("/v1/inits?limit=1")
    if listed.status == 200:
        yield from _weights(line, _object(listed))


def _between(url: str) -> Iterator[Finding]:
    """Which proxy requests take, as the environment says."""
    with suppress(ValueError):
        parts = urlsplit(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if not parts.hostname or not proxy or urllib.request.proxy_bypass(parts.hostname):
            return
        found = f"requests to {parts.hostname} go through {_without_password(proxy)}"
        local = parts.hostname in LOOPBACK
        remedy = f"NO_PROXY={parts.hostname} goes straight there"
        yield Finding("warning" if local else "ok", "proxy", found, "", remedy if local else "")


def _without_password(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if "@" in parts.netloc else address


def _clock(line: Line, answer: Answer) -> Iterator[Finding]:
    with suppress(ValueError, TypeError):
        there = email.utils.parsedate_to_datetime(answer.headers.get("date", "")).timestamp()
        skew = line.clock() - there
        if abs(skew) > SKEW_SECONDS:
            found = (
                f"the clock here is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the endpoint's"
            )
            remedy = "set both by NTP: certificates and keys are judged by the clock"
            yield Finding("warning", "endpoint clock", found, f"at most {SKEW_SECONDS:.0f} s", remedy)
        else:
            yield Finding("ok", "endpoint clock", f"within {SKEW_SECONDS:.0f} s of the one here")


def _version(line: Line) -> Iterator[Finding]:
    there = _object(line.get("/")).get("version")
    ours = metainit.__version__
    if not isinstance(there, str):
        yield Finding("ok", "endpoint version", "it does not tell")
    elif there != ours:
        found = f"the endpoint is metainit {there}, this is {ours}"
        yield Finding("warning", "endpoint version", found, "", "use the same version on both sides")
    else:
        yield Finding("ok", "endpoint version", there)


def _readiness(line: Line) -> Iterator[Finding]:
    subject = "endpoint readiness"
    answer = line.get("/readyz")
    said = _object(answer)
    if answer.status != 200 or said.get("ready") is not True:
        yield Finding(
            "error",
            subject,
            f"{answer.status} {said.get('detail', '')}".strip(),
            "200",
            "bring back what it reads from (its registry), then ask again",
        )
        return
    good = True
    if said.get("stale"):
        why = f": {said['registry_error']}" if said.get("registry_error") else ""
        found = f"the registry behind it is out of reach{why}"
        yield Finding("warning", subject, found, "", "it serves what it has; bring the registry back")
        good = False
    if said.get("disk_full"):
        yield Finding("warning", subject, "its disk is full", "", "make room there: new versions cannot come")
        good = False
    for name, why in dict(said.get("quarantined") or {}).items():
        yield Finding("warning", subject, f"{name} is damaged ({why})", "", "register that version again")
        good = False
    if good:
        yield Finding("ok", subject, "ready, and its registry is in reach")


def _key(line: Line) -> Iterator[Finding]:
    subject = "endpoint key"
    answer = line.get("/v1/inits?limit=1")
    if line.key is None and "METAINIT_KEY" in os.environ:
        found = f"METAINIT_KEY is not sent: METAINIT_SERVER is {settings.server() or 'not set'}"
        yield Finding("warning", subject, found, line.url, f"METAINIT_SERVER={line.url}")
    if answer.status in (401, 403):
        remedy = (
            "ask whoever runs it for one (`metainit keys make`), and set METAINIT_KEY and METAINIT_SERVER"
        )
        yield Finding("error", subject, _detail(answer), "a key with the scope read", remedy)
        return
    if answer.status != 200:
        yield Finding("error", subject, f"GET /v1/inits -> {answer.status} {_detail(answer)}", "200")
        return
    parts = urlsplit(line.url)
    if line.key is None:
        yield Finding("ok", subject, "none is needed to read")
        return
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        remedy = "use https"
        yield Finding("warning", subject, "the key travels where others can read it", "https", remedy)
    if line.get("/v1/inits?limit=1", Authorization="").status == 200:
        yield Finding("ok", subject, "none is needed to read; the one that is set is not looked at")
        return
    # What only an administrator may see tells what others may do.
    more = line.get("/metrics")
    said = "it may everything" if more.status == 200 else _detail(more)
    yield Finding("ok", subject, f"accepted; {said}")


def _weights(line: Line, page: dict[str, Any]) -> Iterator[Finding]:
    """Whether what the client stands on arrives: SHA-256 as ETag, length, ranges, 304."""
    subject = "endpoint weights"
    items = page.get("items")
    if not isinstance(items, list) or not items:
        yield Finding("ok", subject, "nothing is registered yet, so nothing was tried")
        return
    name = items[0].get("name")
    path = f"/v1/inits/{name}/weights"
    head = line.get(path, "HEAD")
    via = "".join(f", {n}: {head.headers[n]}" for n in ("via", "x-cache", "cf-ray") if n in head.headers)
    if head.status != 200:
        reason = _detail(line.get(f"/v1/inits/{name}"))
        yield Finding("error", subject, f"HEAD {path} -> {head.status} {reason}{via}", "200")
        return
    tag = head.headers.get("etag", "")
    match, length = SHA256_TAG.fullmatch(tag), head.headers.get("content-length", "")
    if match is None or not length.isdecimal():
        found = f"ETag {tag or 'none'}, Content-Length {length or 'none'}{via}"
        remedy = "a proxy takes them away: let it pass on both, and leave compression of these files off"
        yield Finding("error", subject, found, "the SHA-256 and the size of the file", remedy)
        return
    good = True
    if tag.startswith("W/"):
        remedy = "switch off compression for application/vnd.safetensors in the proxy"
        yield Finding("warning", "endpoint ETag", f"a weak one{via}", "a strong one", remedy)
        good = False
    if line.get(path, "HEAD", If_None_Match=f'"{match["sha256"]}"').status != 304:
        remedy = "let the proxy pass on If-None-Match: an unchanged alias costs a download else"
        yield Finding("warning", "endpoint ETag", f"If-None-Match is not answered 304{via}", "304", remedy)
        good = False
    last = min(int(length), 8) - 1
    asked = {"Range": f"bytes=0-{last}", "If_Range": f'"{match["sha256"]}"', "Accept_Encoding": "identity"}
    with suppress(EndpointError):  # a whole file where a range was asked for is more than is read here
        part = line.get(f"/v1/blobs/{match['sha256']}", **asked)
        came = part.headers.get("content-range", "none")
        if part.status == 206 and came == f"bytes 0-{last}/{length}" and len(part.content) == last + 1:
            if good:
                yield Finding("ok", subject, f"SHA-256, ranges and 304 arrive{via}")
            return
    remedy = "let the proxy pass on Range and If-Range: what breaks off starts from nothing else"
    yield Finding("warning", "endpoint ranges", f"a range is answered whole{via}", "206", remedy)


def _object(answer: Answer) -> dict[str, Any]:
    try:
        value = json.loads(answer.content)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _detail(answer: Answer) -> str:
    """Say a refusal as the endpoint does."""
    try:
        check(answer)
    except (EndpointError, Transient) as error:
        return str(_object(answer).get("detail") or error)
    return f"{answer.status}"
