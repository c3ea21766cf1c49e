"""Hypernetworks on a GPU: the same predictions, and training in either precision."""

from __future__ import annotations

import pytest
import torch

from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.prediction import predict
from hypernets.ghn.training import GhnTraining, TrainingConfig
from tests.hypernets.ghn.test_training import SHORT, SPACE, Blobs
from tests.hypernets.graphs import every_role

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("decoder", ["tiled", "low_rank"])
def test_predictions_are_those_of_the_cpu(decoder: str) -> None:
    torch.manual_seed(0)
    ghn = Ghn(GhnConfig.model_validate({"width": 16, "heads": 2, "block": 8, "decoder": decoder})).eval()
    here = predict(ghn, every_role(), seed=0)
    there = predict(ghn.to("cuda"), every_role(), seed=0)
    for name, value in here.items():
        assert there[name].device.type == "cpu"
        torch.testing.assert_close(there[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_lowers_the_loss(precision: str) -> None:
    torch.manual_seed(0)
    changes = {"steps": 40, "step_size": 3e-3, "warm_up": 5, "precision": precision}
    ghn = Ghn(GhnConfig(width=16, heads=2, layers=1, block=8, kernel=3)).to("cuda")
    learner = GhnTraining(TrainingConfig.model_validate(SHORT | changes), ghn, SPACE, Blobs())
    losses = [learner.apply(learner.gradient()) for _ in range(40)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all(value.is_cuda for value in learner.result().values())
    resumed = GhnTraining(
        TrainingConfig.model_validate(SHORT | changes), Ghn(ghn.config).to("cuda"), SPACE, Blobs()
    )
    resumed.restore(learner.state())
    assert resumed.step == 40
