"""What is asked of an endpoint, and answers that are not what was asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from metainit.asking import AT_ONCE, Generation, blob_of, blobs_of
from metainit.errors import DataError, EndpointError

SHA256 = "a" * 64


def test_a_large_request_is_asked_for_in_parts() -> None:
    asked = Generation(2 * AT_ONCE + 1, 7, condition="cat", what="mean")
    parts = list(asked.parts())
    assert [part.count for part in parts] == [AT_ONCE, AT_ONCE, 1]
    assert [part.seed for part in parts] == [7, 7 + AT_ONCE, 7 + 2 * AT_ONCE]
    assert json.loads(parts[2].body()) == {"count": 1, "seed": 71, "condition": "cat", "what": "mean"}


@pytest.mark.parametrize("observation", [[[1, 2], [3, 4]], torch.tensor([[1.0, 2.0], [3.0, 4.0]])])
def test_an_observation_travels_with_its_shape(observation: Any) -> None:
    value = json.loads(Generation(observation=observation).body())
    assert value["observation"] == {"shape": [2, 2], "values": [1.0, 2.0, 3.0, 4.0]}


@pytest.mark.parametrize("observation", [[[1], [2, 3]], ["a"], [float("nan")]])
def test_what_is_no_array_of_numbers_is_refused(observation: Any) -> None:
    with pytest.raises(DataError, match="observation"):
        Generation(observation=observation).body()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"items": "all"},
        {"items": [3]},
        {"items": [{"seed": 1, "sha256": SHA256, "size": 3}]},
        {"items": [{"seed": 0, "sha256": "../x", "size": 3}]},
        {"items": [{"seed": 0, "sha256": SHA256, "size": 0}]},
        {"items": [{"seed": 0, "sha256": SHA256, "size": 1 << 60}]},
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_is_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(EndpointError, match="http://there/x"):
        blobs_of(answer, Generation(1), "http://there/x", "http://there")


def test_a_blob_is_where_the_client_asks() -> None:
    blob = blob_of({"sha256": SHA256, "size": 3, "blob": "/elsewhere"}, "http://there/x", "http://there")
    assert blob.url == f"http://there/v1/blobs/{SHA256}" and blob.size == 3
