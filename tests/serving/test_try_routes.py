"""Live fits over HTTP, in this process: jobs, events, limits and problems."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from metainit import checkpoint
from metainit.domains.images import BUNDLED_TRAIN
from serving.app import create_app
from serving.store import Store
from serving.tries import SAMPLES, sample_file
from tests.serving.inprocess import InProcess
from tests.serving.web_shelf import stocked


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("endpoint")
    store = Store(stocked(folder / "shelf"), folder / "store", poll=3600.0)
    with InProcess(create_app(store)) as transport:
        with httpx.Client(transport=transport, base_url="http://endpoint", timeout=60) as client:
            yield client


def told(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the events of a stream: their names and values."""
    found = []
    for block in text.replace("\r\n", "\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_an_image_is_fitted_and_both_weights_are_blobs(http: httpx.Client, tmp_path: Path) -> None:
    image = sample_file("coffee").read_bytes()
    begun = http.post("/v1/try?init=faces&steps=3", content=image, headers={"content-type": "image/png"})
    assert begun.status_code == 202, begun.text
    assert begun.headers["location"] == begun.json()["url"]
    answer = http.get(begun.json()["events"])
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    events = told(answer.text)
    assert [name for name, _ in events] == ["begin", *["frame"] * 8, "end"]
    assert events[0][1]["init"] == "faces/2"
    end = events[-1][1]
    for side in ("prior", "ordinary"):
        content = http.get(end["weights"][side]["blob"]).content
        assert len(content) == end["weights"][side]["size"]
        assert checkpoint.from_bytes(content).card.kind == "weights"
    state = http.get(begun.json()["url"]).json()
    assert state["state"] == "done" and state["last"]["event"] == "end"
    # Whoever lost the connection goes on behind the last event that came.
    rest = http.get(begun.json()["events"], headers={"last-event-id": "9"})
    assert [name for name, _ in told(rest.text)] == ["end"]


def test_the_events_can_be_the_answer_itself(http: httpx.Client) -> None:
    answer = http.post("/v1/try?init=faces/1&sample=chelsea&steps=1", headers={"accept": "text/event-stream"})
    assert answer.status_code == 200 and answer.headers["location"].startswith("/v1/try/")
    assert [name for name, _ in told(answer.text)] == ["begin", *["frame"] * 4, "end"]


def test_a_fit_can_be_stopped(http: httpx.Client) -> None:
    begun = http.post("/v1/try?init=faces&sample=chelsea&steps=200").json()
    assert http.delete(begun["url"]).status_code == 204
    events = told(http.get(begun["events"]).text)
    assert events[-1][0] == "problem" and events[-1][1]["type"] == "urn:metainit:problem:stopped"
    assert http.get(begun["url"]).json()["state"] == "stopped"


def test_more_fits_than_may_wait_are_refused(http: httpx.Client) -> None:
    begun = [http.post("/v1/try?init=faces&sample=chelsea&steps=200") for _ in range(6)]
    for one in begun:
        if one.status_code == 202:
            http.delete(one.json()["url"])
    assert [one.status_code for one in begun].count(429) >= 1
    refused = next(one for one in begun if one.status_code == 429)
    assert refused.json()["type"] == "urn:metainit:problem:busy" and int(refused.headers["retry-after"]) > 0
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if all(http.get(o.json()["url"]).json()["state"] != "running" for o in begun if o.status_code == 202):
            break
        time.sleep(0.05)
    for one in begun:
        if one.status_code == 202:
            http.get(one.json()["events"])  # waits for its end


@pytest.mark.parametrize(
    ("query", "content", "status", "kind"),
    [
        ("init=slices&sample=chelsea", b"", 409, "untriable"),
        ("init=hyper&sample=chelsea", b"", 409, "untriable"),
        ("init=nothing&sample=chelsea", b"", 404, "missing"),
        ("init=faces&sample=nothing", b"", 404, "missing"),
        ("init=../../etc/passwd&sample=chelsea", b"", 422, "invalid"),
        ("init=faces", b"", 422, "image"),
        ("init=faces", b"not an image", 422, "image"),
        ("init=faces", b"\x89PNG\r\n\x1a\n" + bytes(9 << 20), 413, "too-large"),
        ("init=faces&steps=0", b"", 422, "invalid"),
        ("init=faces&sample=chelsea&steps=5000", b"", 422, "invalid"),
        ("sample=chelsea", b"", 422, "invalid"),
    ],
)
def test_what_cannot_be_fitted_is_a_problem(
    http: httpx.Client, query: str, content: bytes, status: int, kind: str
) -> None:
    answer = http.post(f"/v1/try?{query}", content=content)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:metainit:problem:{kind}"


def test_unknown_fits_are_missing(http: httpx.Client) -> None:
    for method, path in (("GET", "/v1/try/none"), ("GET", "/v1/try/none/events"), ("DELETE", "/v1/try/none")):
        assert http.request(method, path).status_code == 404


def test_no_sample_is_of_what_bundled_priors_learn_from() -> None:
    assert set(SAMPLES).isdisjoint(BUNDLED_TRAIN)


def test_what_there_is_to_try_is_told(http: httpx.Client) -> None:
    options = http.get("/v1/try").json()
    assert [sample["name"] for sample in options["samples"]] == list(SAMPLES)
    for sample in options["samples"]:
        shown = http.get(sample["picture"])
        assert shown.headers["content-type"] == "image/png" and shown.content.startswith(b"\x89PNG")
        assert shown.headers["cache-control"].startswith("private, ")  # where keys are on, it takes one
