"""Predictions for several seeds at once are those of each seed alone, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.predicted import predicted_checkpoint, predicted_checkpoints
from hypernets.ghn.prediction import predict, predict_each
from metainit import checkpoint
from metainit.card import Card, Method
from metainit.errors import MismatchError
from tests.serving.test_prediction import graph_of

SMALL = {"width": 16, "heads": 2, "layers": 1, "block": 4, "kernel": 3}


@pytest.fixture(params=["tiled", "low_rank"])
def ghn(request: pytest.FixtureRequest) -> Iterator[Ghn]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GhnConfig(**SMALL, decoder=request.param, rank=2, channels=16)
        yield Ghn(config).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_seeds_are_each_seed_alone(ghn: Ghn, dtype: torch.dtype) -> None:
    graph, seeds = graph_of(), [3, None, 0, 3, None, 7]
    together = list(predict_each(ghn, graph, seeds, dtype=dtype))
    assert len(together) == len(seeds)
    for seed, weights in zip(seeds, together, strict=True):
        alone = predict(ghn, graph, seed=seed, exact=seed is None, dtype=dtype)
        assert list(weights) == list(alone)
        assert all(torch.equal(weights[name], alone[name]) for name in alone)
    assert not torch.equal(together[0]["0.weight"], together[2]["0.weight"])
    assert list(predict_each(ghn, graph, [])) == []


def test_checkpoints_for_many_seeds_have_the_bytes_of_each_alone(ghn: Ghn) -> None:
    source = Card(kind="ghn", name="digits", method=Method(name="ghn"))
    seeds = [1, None, 2]
    together = [checkpoint.to_bytes(*one) for one in predicted_checkpoints(ghn, source, graph_of(), seeds)]
    alone = [
        checkpoint.to_bytes(
            *predicted_checkpoint(ghn, source, graph_of(), seed=seed or 0, exact=seed is None)
        )
        for seed in seeds
    ]
    assert together == alone


def test_weights_that_are_not_finite_are_refused(ghn: Ghn) -> None:
    for parameter in ghn.decoder.parameters():
        parameter.fill_(torch.inf)
    with pytest.raises(MismatchError, match=r"not finite for 0\.weight"):
        list(predict_each(ghn, graph_of(), [0, 1]))
