"""Predictions over HTTP: what is sent, what is kept, and what is refused."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from hypernets.architecture.graph import ArchitectureGraph, Edge, Node, Operation, Parameter, Role, SkipReason
from hypernets.architecture.serialize import to_json
from hypernets.ghn.predicted import stored_graph
from hypernets.ghn.prediction import predict
from metainit import checkpoint
from serving.app import create_app
from serving.prediction import FROM_GRAPHS, Limits
from serving.predictions import Predictions
from serving.predictor import Hypernetworks, LocalPredictor, Order
from serving.store import Store
from serving.work import Outcome
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

PREDICT = "/v1/inits/digits/predict"
BASE = "http://endpoint"


def graph_of(width: int = 9, **skipped: SkipReason) -> ArchitectureGraph:
    """Two linear layers, the first of them wider than the decoder's block."""
    first = (
        Parameter("0.weight", (width, 5), Role.WEIGHT),
        Parameter("0.bias", (width,), Role.BIAS),
    )
    second = (Parameter("2.weight", (3, width), Role.WEIGHT),)
    operations = (
        Node(Operation.INPUT),
        Node(Operation.LINEAR, first),
        Node(Operation.RELU),
        Node(Operation.LINEAR, second),
        Node(Operation.OUTPUT),
    )
    edges = tuple(Edge(i, i + 1) for i in range(4))
    return ArchitectureGraph(operations, edges, {k.replace("__", "."): v for k, v in skipped.items()})


def chain(length: int) -> ArchitectureGraph:
    return ArchitectureGraph(
        (Node(Operation.RELU),) * length, tuple(Edge(i, i + 1) for i in range(length - 1))
    )


def body(graph: ArchitectureGraph | None = None, **more: Any) -> dict[str, Any]:
    return {"graph": to_json(graph or graph_of()), **more}


@pytest.fixture
def shelf(shelf: Shelf) -> Shelf:
    shelf.add_hypernetwork("digits", 0, "champion")
    shelf.add_hypernetwork("digits", 1, "challenger")
    return shelf


class Counting(LocalPredictor):
    """Counts the orders; `hold` keeps them waiting until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.orders: list[Order] = []
        self.hold = threading.Event()
        self.hold.set()

    async def predict(self, order: Order) -> Outcome:
        self.orders.append(order)
        await asyncio.to_thread(self.hold.wait, 20)
        return await super().predict(order)


@pytest.fixture
def predictor() -> Counting:
    return Counting()


@pytest.fixture
def http(store: Store, predictor: Counting) -> Iterator[httpx.Client]:
    limits = Limits(body_bytes=4000, nodes=20, elements=1000, waiting=2, seconds=20.0)
    with (
        InProcess(create_app(store, predictor, limits)) as transport,
        httpx.Client(transport=transport, base_url=BASE) as client,
    ):
        yield client


def test_what_comes_is_what_the_hypernetwork_predicts(http: httpx.Client, shelf: Shelf) -> None:
    graph = graph_of(**{"head__bias": SkipReason.KEPT})
    answer = http.post(PREDICT, json=body(graph, seed=7))
    value = answer.json()
    assert answer.status_code == 201 and answer.headers["location"] == value["blob"]
    assert value["reference"] == "digits/1" and value["graph"] == graph.hash and value["seed"] == 7
    assert value["parameters"] == 3 and value["elements"] == graph.numel
    assert value["skipped"] == {"head.bias": "the caller keeps it"}
    blob = http.get(answer.headers["location"])
    assert blob.headers["etag"] == f'"{value["sha256"]}"' and len(blob.content) == value["size"]
    stored = checkpoint.from_bytes(blob.content)
    from hypernets.ghn.initialization import hypernetwork_of

    source = checkpoint.load(shelf.files["digits"][1])
    expected = predict(hypernetwork_of(source), graph, seed=7)
    assert stored.tensors.keys() == expected.keys()
    for name, value in expected.items():  # up to rounding, which the number of threads changes
        torch.testing.assert_close(stored.tensors[name], value, rtol=1e-3, atol=1e-5)
    card = stored.card
    assert card.kind == "weights" and card.graph == graph.hash and card.provenance.seeds == [7]
    assert card.provenance.recipe["digest"] == source.card.digest and stored_graph(card) == graph


def test_the_same_question_is_answered_from_what_is_kept(
    http: httpx.Client, predictor: Counting, store: Store
) -> None:
    first = http.post(PREDICT, json=body())
    again = http.post("/v1/inits/digits/versions/1/predict", json=body(seed=0))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.headers["location"] == again.headers["location"] and len(predictor.orders) == 1
    others = [
        http.post(PREDICT, json=body(seed=1)),
        http.post(PREDICT, json=body(graph_of(8))),
        http.post("/v1/inits/digits@challenger/predict", json=body()),
        http.post(PREDICT, json=body(exact=True)),
    ]
    assert [answer.status_code for answer in others] == [201] * 4
    assert len({answer.headers["location"] for answer in (first, *others)}) == 5
    assert http.post(PREDICT, json=body(exact=True, seed=9)).status_code == 200
    # a later process finds it too, and a damaged file is predicted again
    later = Predictions(store.predictions.folder)
    sha256 = first.json()["sha256"]
    path = later.blob(sha256)
    assert path is not None
    path.write_bytes(b"damaged")
    fresh = Predictions(store.predictions.folder)
    assert fresh.blob(sha256) is None and not path.exists()
    store.predictions = fresh
    assert http.get(first.headers["location"]).status_code == 404


def test_equal_questions_at_once_are_computed_once(http: httpx.Client, predictor: Counting) -> None:
    predictor.hold.clear()
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(http.post(PREDICT, json=body()))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    while not predictor.orders:
        pass
    predictor.hold.set()
    for thread in threads:
        thread.join(20)
    assert len(predictor.orders) == 1 and len({a.headers["location"] for a in answers}) == 1


def test_too_many_at_once_are_sent_away(http: httpx.Client, predictor: Counting) -> None:
    predictor.hold.clear()
    threads = [
        threading.Thread(target=lambda seed=seed: http.post(PREDICT, json=body(seed=seed)))
        for seed in range(2)
    ]
    for thread in threads:
        thread.start()
    while len(predictor.orders) < 2:
        pass
    answer = http.post(PREDICT, json=body(seed=2))
    predictor.hold.set()
    for thread in threads:
        thread.join(20)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"].endswith(":busy")
    assert http.post(PREDICT, json=body(seed=2)).status_code == 201


WRONG: list[tuple[str, Any, int, str, str]] = [
    ("a prior", body(), 409, "no-predictor", "faces/1 is a prior"),
    ("no such name", body(), 404, "missing", "'digits'"),
    ("no JSON", b"{", 422, "invalid", "body"),
    ("no graph", {"seed": 3}, 422, "invalid", "body.graph"),
    ("a graph that is none", {"graph": {"nodes": []}}, 422, "graph", "version"),
    ("an unknown key", body(sed=3), 422, "invalid", "body.sed"),
    ("a bad seed", body(seed=-1), 422, "invalid", "body.seed"),
    ("too many elements", body(graph_of(200)), 422, "graph", "expected at most 1000"),
    ("too many operations", body(chain(21)), 422, "graph", "nodes: expected at most 20"),
    ("too large a body", b" " * 4001, 413, "too-large", "4000 bytes"),
]
PLACES = {"a prior": "faces", "no such name": "digit"}


@pytest.mark.parametrize(("case", "sent", "status", "kind", "words"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_a_problem(
    http: httpx.Client, case: str, sent: Any, status: int, kind: str, words: str
) -> None:
    content = {"content": sent} if isinstance(sent, bytes) else {"json": sent}
    answer = http.post(f"/v1/inits/{PLACES.get(case, 'digits')}/predict", **content)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"urn:metainit:problem:{kind}" and words in answer.json()["detail"]


def test_a_hypernetwork_that_walks_the_network_is_refused_before_anything_is_opened(
    store: Store, shelf: Shelf, predictor: Counting
) -> None:
    shelf.add_published("published", "champion")
    store.refresh()
    with (
        InProcess(create_app(store, predictor)) as transport,
        httpx.Client(transport=transport, base_url=BASE) as http,
    ):
        answer = http.post("/v1/inits/published/predict", json=body())
    assert answer.status_code == 409 and answer.json()["type"].endswith(":no-predictor")
    detail = answer.json()["detail"]
    assert "published/1 was made by ghn3" in detail and "metainit.load(file).init_" in detail
    assert not predictor.orders


def test_the_methods_that_predict_here_are_those_that_take_a_graph() -> None:
    from hypernets.ghn.initialization import Predicted
    from hypernets.ghn.kinds import METHODS

    assert set(FROM_GRAPHS) == {name for name, start in METHODS.items() if start is Predicted}


def test_a_body_of_unknown_length_is_left_off(http: httpx.Client) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1000

    assert http.post(PREDICT, content=endless()).status_code == 413


class Failing:
    def __init__(self, outcome: Outcome | float) -> None:
        self.outcome = outcome

    async def predict(self, order: Order) -> Outcome:
        if isinstance(self.outcome, float):
            await asyncio.sleep(self.outcome)
            return Outcome()
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "status", "words"),
    [
        (Outcome(fault="question", reason="the weights are not finite"), 422, "not finite"),
        (Outcome(fault="source", reason="it is damaged"), 502, "damaged"),
        (Outcome(fault="worker", reason="predicting failed"), 503, "predicting failed"),
        (5.0, 503, "within 0.2 s"),
    ],
)
def test_a_predictor_that_fails(store: Store, outcome: Outcome | float, status: int, words: str) -> None:
    app = create_app(store, Failing(outcome), Limits(seconds=0.2))
    with InProcess(app) as transport, httpx.Client(transport=transport, base_url=BASE) as http:
        answer = http.post(PREDICT, json=body())
    assert answer.status_code == status and words in answer.json()["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)


def test_a_damaged_hypernetwork_is_not_the_fault_of_the_graph(shelf: Shelf, tmp_path: Path) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(b"nothing")
    order = Order("digits/1", "0" * 64, str(file), "{}", 0, False)
    (outcome,) = Hypernetworks().answer([order])
    assert outcome.fault == "source" and "truncated" in outcome.reason


def test_orders_of_one_batch_are_answered_as_if_alone(shelf: Shelf) -> None:
    from metainit.card import canonical_json

    def order(version: int, width: int, seed: int = 0) -> Order:
        path = shelf.files["digits"][version]
        graph = canonical_json(to_json(graph_of(width)))
        return Order(f"digits/{version}", shelf.digests[path], str(path), graph, seed, False)

    orders = [order(1, 9), order(2, 9), order(1, 6), order(1, 9), order(1, 9, 1)]
    together = Hypernetworks(most=1).answer(orders)
    assert together == [Hypernetworks().answer([o])[0] for o in orders]
    assert together[0] == together[3] and len({o.content for o in together}) == 4


def test_the_folder_of_predictions_stays_small(tmp_path: Path) -> None:
    kept = Predictions(tmp_path, most_bytes=25)
    first = [kept.keep(f"key-{n}", bytes([n]) * 10) for n in range(2)]
    assert kept.find("key-0") == first[0]  # and is the younger of the two now
    third = kept.keep("key-2", b"c" * 10)
    assert kept.find("key-1") is None and kept.find("key-0") == first[0] and kept.find("key-2") == third
    assert len(list(tmp_path.glob("orders/*/*"))) == 2
    large = kept.keep("key-3", b"d" * 100)
    assert kept.find("key-3") == large and kept.blob(third.sha256) is None
    assert kept.blob("../" + large.sha256) is None


def test_the_api_page_describes_it(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    for prefix in ("/v1/inits/{name}/versions/{version}", "/v1/inits/{reference}"):
        route = paths[f"{prefix}/predict"]["post"]
        schema = route["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["properties"]) == {"graph", "seed", "exact"}
        assert {"200", "201", "409", "413", "422", "429", "503"} <= route["responses"].keys()
