"""Mutated inputs find nothing, and every one can be made again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks.endpoint_fuzz import KINDS, check, try_all
from benchmarks.mutants import altered, mutants, of_bytes, of_json

INPUTS, SEED = 2000, 7
REQUESTS = 200


def test_mutants_are_the_same_for_a_seed() -> None:
    mutant = of_json([{"a": [1, {"b": "text"}], "c": 2.5}])
    first = list(mutants(1, 200, mutant))
    assert first == list(mutants(1, 200, mutant)) and first != list(mutants(2, 200, mutant))
    assert len(set(first)) > 150


def test_the_corpus_is_left_as_it_is() -> None:
    value = {"a": [1, {"b": "text"}]}
    for seed in range(100):
        altered(value, random.Random(seed))
    assert value == {"a": [1, {"b": "text"}]}
    assert of_bytes([b""])(random.Random(0)) is not None


def test_what_goes_wrong_is_counted() -> None:
    def target(content: bytes) -> int:
        if content == b"2":
            raise KeyError("unforeseen")
        if content == b"3":
            raise ValueError("refused")
        return 200

    found = try_all([b"1", b"2", b"3"], target, (ValueError,))
    assert (found.inputs, found.taken, found.refused, found.failures) == (3, 1, 1, 1)
    assert "unforeseen" in found.bad[0] and found.answers == {"200": 1}


@pytest.mark.parametrize(
    ("status", "fields", "body"),
    [
        (500, {}, b""),
        (503, {}, b""),
        (200, {"etag": '"x"', "content-length": "3"}, b"abd"),
        (206, {"etag": '"x"', "content-length": "1", "content-range": "bytes 1-1/3"}, b"a"),
        (200, {"etag": '"x"', "content-length": "2"}, b"ab"),
    ],
)
def test_a_wrong_answer_is_seen(status: int, fields: dict[str, str], body: bytes) -> None:
    with pytest.raises(ValueError, match=r"status|503|wrong bytes|announced"):
        check(status, fields, body, "GET", {'"x"': b"abc"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # schemathesis and what traces a network bring their own
def test_nothing_is_mishandled(kind: str, tmp_path: Path) -> None:
    found = KINDS[kind](REQUESTS if kind == "openapi" else INPUTS, SEED, tmp_path)
    assert found.failures == 0, found.bad
    assert found.inputs >= (REQUESTS // 2 if kind == "openapi" else INPUTS)
    assert found.grown_mb < 300
