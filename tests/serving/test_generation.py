"""Generated weights over HTTP: what is sent, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

import metainit
from hypernets.generator.start import Generated
from metainit import checkpoint
from metainit.networks import build
from serving.app import create_app
from serving.generation import GenerationLimits
from serving.generator import Draw, Generators, LocalDrawer, Seen
from serving.store import Store
from serving.work import Outcome
from tests.one_thread import one_thread_inside_operations
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

__all__ = ["one_thread_inside_operations"]
GENERATE = "/v1/inits/shapes/generate"
BASE = "http://endpoint"
SEEN = {"shape": [2, 4], "values": [0.5] * 8}


@pytest.fixture
def shelf(shelf: Shelf) -> Shelf:
    shelf.add_generator("shapes", 0, "champion")
    shelf.add_generator("shapes", 1, "challenger")
    return shelf


class Counting(LocalDrawer):
    """Counts the draws; `hold` keeps them waiting until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[Draw] = []
        self.hold = threading.Event()
        self.hold.set()

    async def generate(self, draw: Draw) -> Outcome:
        self.draws.append(draw)
        await asyncio.to_thread(self.hold.wait, 20)
        return await super().generate(draw)


@pytest.fixture
def drawer() -> Counting:
    return Counting()


@pytest.fixture
def http(store: Store, drawer: Counting) -> Iterator[httpx.Client]:
    limits = GenerationLimits(body_bytes=2000, count=12, elements=150, waiting=12, seconds=120.0)
    app = create_app(store, drawer=drawer, generation_limits=limits)
    with InProcess(app) as transport, httpx.Client(transport=transport, base_url=BASE) as client:
        yield client


def blobs(answer: httpx.Response) -> list[str]:
    return [item["blob"] for item in answer.json()["items"]]


def local(shelf: Shelf, number: int = 1) -> Generated:
    return Generated(checkpoint.load(shelf.files["shapes"][number]))


def test_what_comes_is_what_the_command_writes(http: httpx.Client, shelf: Shelf) -> None:
    answer = http.post(GENERATE, json={"condition": "ring", "seed": 3, "count": 3, "observation": SEEN})
    value = answer.json()
    assert answer.status_code == 201, answer.text
    assert value["reference"] == "shapes/1" and value["what"] == "sample"
    assert [item["seed"] for item in value["items"]] == [3, 4, 5]
    seen = torch.full((2, 4), 0.5)
    expected = local(shelf).generate(3, 3, condition="ring", observation=seen)
    for item, one in zip(value["items"], expected, strict=True):
        blob = http.get(item["blob"])
        assert blob.headers["etag"] == f'"{item["sha256"]}"' and len(blob.content) == item["size"]
        assert blob.content == checkpoint.to_bytes(one.tensors, one.card)
        card = checkpoint.from_bytes(blob.content).card
        assert card.kind == "weights" and card.provenance.seeds == [item["seed"]]
        assert card.provenance.recipe["condition"] == "ring"


def test_requests_that_overlap_share_blobs(http: httpx.Client, drawer: Counting) -> None:
    first = http.post(GENERATE, json={"count": 8})
    assert first.status_code == 201 and len(set(blobs(first))) == 8 and len(drawer.draws) == 8
    inside = http.post(GENERATE, json={"count": 4, "seed": 2})
    assert inside.status_code == 200 and blobs(inside) == blobs(first)[2:6]
    beyond = http.post("/v1/inits/shapes/versions/1/generate", json={"count": 4, "seed": 6})
    assert beyond.status_code == 201 and blobs(beyond)[:2] == blobs(first)[6:]
    assert len(drawer.draws) == 10
    asked = {"count": 4, "seed": 2, "what": "sample"}
    assert http.post(GENERATE, json=asked).status_code == 200  # that is what the card says unless asked
    others: list[dict[str, Any]] = [
        {"condition": 1},
        {"observation": SEEN},
        {"what": "mean"},
        {"what": "one_step"},
        {"seed": 100},
    ]
    answers = [http.post(GENERATE, json=other) for other in others]
    answers.append(http.post("/v1/inits/shapes@challenger/generate", json={}))
    assert [answer.status_code for answer in answers] == [201] * 6
    assert len({blob for answer in (first, *answers) for blob in blobs(answer)}) == 14


def test_equal_requests_at_once_are_drawn_once(http: httpx.Client, drawer: Counting) -> None:
    drawer.hold.clear()
    found: list[httpx.Response] = []
    bodies = [{"count": 4}, {"count": 4}, {"count": 2, "seed": 1}]
    threads = [
        threading.Thread(target=lambda body=body: found.append(http.post(GENERATE, json=body)))
        for body in bodies
    ]
    for thread in threads:
        thread.start()
    while len(drawer.draws) < 4:
        pass
    drawer.hold.set()
    for thread in threads:
        thread.join(20)
    assert len(drawer.draws) == 4 and len({blob for answer in found for blob in blobs(answer)}) == 4


def test_too_many_at_once_are_sent_away_whole(http: httpx.Client, drawer: Counting) -> None:
    drawer.hold.clear()
    thread = threading.Thread(target=lambda: http.post(GENERATE, json={"count": 9}))
    thread.start()
    while len(drawer.draws) < 9:
        pass
    answer = http.post(GENERATE, json={"count": 4, "seed": 50})
    drawer.hold.set()
    thread.join(20)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert len(drawer.draws) == 9  # none of it was begun
    assert http.post(GENERATE, json={"count": 4, "seed": 50}).status_code == 201


WRONG: list[tuple[str, str, Any, int, str, str]] = [
    ("a prior", "faces", {}, 409, "no-generator", "faces/1 is a prior"),
    ("no such name", "shape", {}, 404, "missing", "'shapes'"),
    ("no JSON", "shapes", b"{", 422, "invalid", "body"),
    ("an unknown key", "shapes", {"sed": 3}, 422, "invalid", "body.sed"),
    ("a bad seed", "shapes", {"seed": -1}, 422, "invalid", "body.seed"),
    ("no count", "shapes", {"count": 0}, 422, "invalid", "body.count"),
    ("too many", "shapes", {"count": 13}, 413, "too-large", "expected at most 12"),
    ("too many numbers", "shapes", {"count": 12}, 413, "too-large", "limit of 150"),
    ("too large a body", "shapes", b" " * 2001, 413, "too-large", "2000 bytes"),
    ("an unknown class", "shapes", {"condition": "rign"}, 422, "condition", "ring"),
    ("a class too far", "shapes", {"condition": 3}, 422, "condition", "0 to 2"),
    ("a truth", "shapes", {"condition": True}, 422, "invalid", "body.condition"),
    ("another kind of draw", "shapes", {"what": "best"}, 422, "invalid", "body.what"),
    (
        "another shape",
        "shapes",
        {"observation": {"shape": [8], "values": [0.0] * 8}},
        422,
        "condition",
        "2 x 4",
    ),
    (
        "too few values",
        "shapes",
        {"observation": {"shape": [2, 4], "values": [0.0]}},
        422,
        "invalid",
        "8 values, got 1",
    ),
    (
        "what float32 cannot hold",
        "shapes",
        {"observation": {"shape": [2, 4], "values": [1e300] * 8}},
        422,
        "condition",
        "not finite",
    ),
    (
        "infinity",
        "shapes",
        b'{"observation": {"shape": [1], "values": [1e999]}}',
        422,
        "invalid",
        "observation",
    ),
]


@pytest.mark.parametrize(
    ("case", "name", "sent", "status", "kind", "words"), WRONG, ids=[row[0] for row in WRONG]
)
def test_what_is_wrong_is_a_problem(
    http: httpx.Client, case: str, name: str, sent: Any, status: int, kind: str, words: str
) -> None:
    content = {"content": sent} if isinstance(sent, bytes) else {"json": sent}
    answer = http.post(f"/v1/inits/{name}/generate", **content)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:metainit:problem:{kind}" and words in answer.json()["detail"]


class Failing:
    def __init__(self, outcome: Outcome | float) -> None:
        self.outcome = outcome

    async def generate(self, draw: Draw) -> Outcome:
        if isinstance(self.outcome, float):
            await asyncio.sleep(self.outcome)
            return Outcome()
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        (Outcome(fault="question", reason="it has no 'one_step'"), 422, "one_step"),
        (Outcome(fault="copies", reason="2 of 2 samples are copies"), 409, "copies"),
        (Outcome(fault="source", reason="it is damaged"), 502, "damaged"),
        (Outcome(fault="worker", reason="computing failed"), 503, "computing failed"),
        (Outcome(file="/nowhere/at/all"), 503, "cannot be kept"),
        (5.0, 503, "within 0.2 s"),
    ],
)
def test_a_drawer_that_fails(store: Store, outcome: Outcome | float, status: int, words: str) -> None:
    app = create_app(store, drawer=Failing(outcome), generation_limits=GenerationLimits(seconds=0.2))
    with InProcess(app) as transport, httpx.Client(transport=transport, base_url=BASE) as http:
        answer = http.post(GENERATE, json={"count": 2})
    assert answer.status_code == status and words in answer.json()["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)


def orders(shelf: Shelf, parts: Sequence[tuple[int, int, Any, Any]]) -> list[Draw]:
    found = []
    for version, seed, condition, seen in parts:
        path = shelf.files["shapes"][version]
        digest = shelf.digests[path]
        found.append(Draw(f"shapes/{version}", digest, str(path), "sample", seed, condition, seen))
    return found


def test_draws_of_one_batch_are_answered_as_if_alone(shelf: Shelf) -> None:
    seen = Seen((2, 4), np.ones(8, "<f4").tobytes())
    parts = [(1, 0, 0, None), (2, 0, 0, None), (1, 0, "star", None), (1, 0, 0, None), (1, 7, None, seen)]
    together = Generators().answer(orders(shelf, parts))
    assert together == [Generators().answer([o])[0] for o in orders(shelf, parts)]
    assert together[0] == together[3] and len({o.content for o in together}) == 4


def test_one_that_fails_does_not_take_the_others_along(shelf: Shelf) -> None:
    good, bad, text = Generators().answer(
        orders(shelf, [(1, 0, 0, None), (1, 0, 9, None), (1, 1, "nothing known", None)])
    )
    assert good.fault is None and good == Generators().answer(orders(shelf, [(1, 0, 0, None)]))[0]
    assert bad.fault == "condition" and "no class 9" in bad.reason
    assert text.fault == "condition"


def test_a_large_outcome_travels_as_a_file(
    store: Store, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.work.LARGE", 1)
    with (
        InProcess(create_app(store)) as transport,
        httpx.Client(transport=transport, base_url=BASE) as http,
    ):
        answer = http.post(GENERATE, json={"count": 2})
        assert answer.status_code == 201
        contents = [http.get(blob).content for blob in blobs(answer)]
    expected = local(shelf).generate(2, 0)
    assert contents == [checkpoint.to_bytes(one.tensors, one.card) for one in expected]
    assert not list(Path(store.predictions.inbox()).iterdir())


def test_what_is_generated_fills_the_network_of_the_card(http: httpx.Client, tmp_path: Path) -> None:
    answer = http.post(GENERATE, json={"what": "one_step"})
    path = tmp_path / "one.safetensors"
    path.write_bytes(http.get(blobs(answer)[0]).content)
    start = metainit.load(path)
    assert start.card.network is not None
    network = start.init_(build(start.card.network))
    assert all(bool(torch.isfinite(p).all()) for p in network.parameters())


def test_the_api_page_describes_it(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for prefix in ("/v1/inits/{name}/versions/{version}", "/v1/inits/{reference}"):
        route = paths[f"{prefix}/generate"]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == {"condition", "observation", "seed", "count", "what"}
        assert {"200", "201", "409", "413", "422", "429", "503"} <= route["responses"].keys()
