"""Weights in another type, and some of the tensors: what comes, what it says, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

import metainit
from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, Method, Spec
from metainit.errors import MismatchError
from metainit.networks import build
from serving.app import create_app
from serving.derived import DerivationLimits, Deriving
from serving.making import TooLarge
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.shelf import Shelf

SPEC = Spec(name="siren", arguments={"in_features": 1, "out_features": 1, "width": 4, "depth": 2})
WEIGHTS = "/v1/inits/waves/weights"


@pytest.fixture
def shelf(shelf: Shelf) -> Shelf:
    network = build(SPEC, seed=0)
    tensors = {name: value.detach().clone() for name, value in network.state_dict().items()}
    sizes = {f"{checkpoint.STEP_SIZE_PREFIX}{n}": torch.full((2, *v.shape), 0.01) for n, v in tensors.items()}
    routine = AdaptationRoutine(steps=2, step_size=0.01, per_parameter=True)
    card = Card(kind="prior", name="waves", method=Method(name="maml"), network=SPEC, routine=routine)
    shelf.files["waves"] = {}
    shelf._put("waves", 1, {**tensors, **sizes, "count": torch.tensor(3)}, card, ("champion",))
    shelf.add_hypernetwork("digits", 0, "champion")
    return shelf


@pytest.fixture
def http(store: Store) -> Iterator[httpx.Client]:
    with (
        InProcess(create_app(store)) as transport,
        httpx.Client(transport=transport, base_url="http://endpoint") as client,
    ):
        yield client


def loaded(answer: httpx.Response) -> checkpoint.Checkpoint:
    assert answer.status_code == 200, answer.text
    return checkpoint.from_bytes(answer.content)


def test_weights_in_bfloat16_are_a_checkpoint_of_their_own(
    http: httpx.Client, shelf: Shelf, tmp_path: Path
) -> None:
    plain = http.get(WEIGHTS)
    source = loaded(plain)
    half = http.get(WEIGHTS, params={"dtype": "bfloat16"})
    stored = loaded(half)
    assert half.headers["etag"] != plain.headers["etag"]
    sha256 = half.headers["etag"].strip('"')
    assert half.headers["content-location"] == f"/v1/blobs/{sha256}"
    assert http.get(f"/v1/blobs/{sha256}").content == half.content
    for name, value in source.tensors.items():
        own = name.startswith(checkpoint.STEP_SIZE_PREFIX) or not value.is_floating_point()
        expected = value if own else value.bfloat16()
        assert stored.tensors[name].dtype == expected.dtype and torch.equal(stored.tensors[name], expected)
    said = stored.card.provenance.recipe["derived_from"]
    assert said == {
        "digest": source.card.digest,
        "sha256": shelf.digests[shelf.files["waves"][1]],
        "dtype": "bfloat16",
    }
    assert stored.card.digest not in ("", source.card.digest) and stored.card.routine == source.card.routine


def test_a_prior_in_bfloat16_fills_a_network(http: httpx.Client, tmp_path: Path) -> None:
    names = [name for name, _ in build(SPEC).named_parameters()]
    path = tmp_path / "half.safetensors"
    asked = {"dtype": "bfloat16", "tensors": ",".join(names)}
    path.write_bytes(http.get(WEIGHTS, params=asked).content)
    network = metainit.load(path).init_(build(SPEC, seed=5))
    expected = build(SPEC, seed=0)
    for value, truth in zip(network.parameters(), expected.parameters(), strict=True):
        assert value.dtype == torch.float32 and torch.equal(value, truth.bfloat16().float())


def test_some_tensors_are_a_checkpoint_of_their_own(http: httpx.Client, tmp_path: Path) -> None:
    source = loaded(http.get(WEIGHTS))
    one, two = sorted(source.weights)[:2]
    answers = [
        http.get(WEIGHTS, params={"tensors": f"{one},{two}"}),
        http.get(WEIGHTS, params=[("tensor", two), ("tensor", one), ("tensor", one)]),
        http.get(f"/v1/inits/waves/versions/1/weights?tensors={two}&tensor={one}"),
    ]
    assert len({answer.headers["etag"] for answer in answers}) == 1
    stored = loaded(answers[0])
    assert stored.tensors.keys() == {one, two} and len(answers[0].content) < len(http.get(WEIGHTS).content)
    assert all(torch.equal(stored.tensors[n], source.tensors[n]) for n in (one, two))
    assert stored.card.provenance.recipe["derived_from"]["tensors"] == [one, two]
    path = tmp_path / "part.safetensors"
    path.write_bytes(answers[0].content)
    with pytest.raises(MismatchError, match="missing"):  # a part fills no network in silence
        metainit.load(path).init_(build(SPEC))


def test_what_would_be_the_same_is_the_version_itself(http: httpx.Client) -> None:
    plain = http.get(WEIGHTS)
    every = ",".join(loaded(plain).tensors)
    for params in ({"dtype": "float32"}, {"tensors": every}):
        assert http.get(WEIGHTS, params=params).headers["etag"] == plain.headers["etag"]


def test_headers_and_ranges_work_as_for_a_whole_file(http: httpx.Client, store: Store) -> None:
    params = {"dtype": "bfloat16"}
    whole = http.get(WEIGHTS, params=params)
    head = http.head(WEIGHTS, params=params)
    assert head.headers["etag"] == whole.headers["etag"] and head.content == b""
    assert int(head.headers["content-length"]) == len(whole.content)
    part = http.get(WEIGHTS, params=params, headers={"range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == whole.content[10:20]
    again = http.get(WEIGHTS, params=params, headers={"if-none-match": whole.headers["etag"]})
    assert again.status_code == 304
    assert len(list(store.predictions.folder.glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("name", "query", "words"),
    [
        ("waves", "tensors=layers.0.weigth", "did you mean"),
        ("waves", "tensors=nothing", "the choices are: "),
        ("waves", "tensors=", "no tensor is named"),
        ("waves", "dtype=int8", "dtype"),
        ("digits", "dtype=bfloat16", "digits/1 is a ghn"),
    ],
)
def test_what_there_is_not_is_a_problem(http: httpx.Client, name: str, query: str, words: str) -> None:
    answer = http.get(f"/v1/inits/{name}/weights?{query}")
    assert answer.status_code == 422 and words in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.anyio
async def test_what_is_too_large_is_not_derived(store: Store) -> None:
    from metainit.references import Reference

    store.refresh()
    entry = store.get(Reference.parse("waves"))
    with pytest.raises(TooLarge, match="expected at most 10"):
        await Deriving(store.predictions, DerivationLimits(bytes=10)).derived(entry, "bfloat16", ())


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def test_one_tensor_comes_with_two_ranges(http: httpx.Client) -> None:
    """What the guide tells a client without metainit to do, held against safetensors."""
    page = (Path(__file__).parents[2] / "docs" / "endpoint-compute.md").read_text()
    (text,) = re.findall(r"```python\n(import json\n.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(text, "endpoint-compute.md", "exec"), names)
    for name, expected in safetensors.torch.load(http.get(WEIGHTS).content).items():
        dtype, shape, content = names["one_tensor"](http, WEIGHTS, name)
        kind = {"F32": torch.float32, "I64": torch.int64}[dtype]
        assert torch.equal(torch.frombuffer(bytearray(content), dtype=kind).reshape(shape), expected)
