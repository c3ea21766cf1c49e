from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.training import GhnTraining, TrainingConfig
from metainit.errors import DivergenceError
from metainit.meta.engine import task_threads

SPACE = SpaceConfig(size=6, classes=3, families={"cnn": 1.0, "mlp": 1.0}, max_macs=200_000)
SHORT = {"steps": 6, "meta_batch": 3, "images": 8, "pool": 5, "warm_up": 2}


class Blobs:
    """Images whose class is the third of them that is bright."""

    def batch(self, seed: int, index: int, count: int, split: str = "train") -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index + 7 * len(split))
        labels = torch.randint(3, (count,), generator=generator)
        images = torch.randn(count, 1, 6, 6, generator=generator)
        bright = torch.arange(6)[None] // 2 == labels[:, None]
        return images + 3.0 * bright[:, None, :, None], labels

    def size(self, split: str) -> int | None:
        return None


class FewBlobs(Blobs):
    """Of which there are twenty to validate with."""

    def batch(self, seed: int, index: int, count: int, split: str = "train") -> tuple[Tensor, Tensor]:
        assert split != "validation" or count <= 20
        return super().batch(seed, index, count, split)

    def size(self, split: str) -> int | None:
        return 20 if split == "validation" else None


def training(seed: int = 0, **changes: object) -> GhnTraining:
    torch.manual_seed(seed)
    ghn = Ghn(GhnConfig(width=16, heads=2, layers=1, block=8, kernel=3))
    return GhnTraining(TrainingConfig.model_validate(SHORT | changes), ghn, SPACE, Blobs(), seed)


def run(learner: GhnTraining, steps: int) -> None:
    for _ in range(steps):
        learner.apply(learner.gradient())


def test_the_gradient_is_that_of_the_summed_losses() -> None:
    learner = training(penalty=0.01)
    found = learner.gradient()
    members = [learner.member(i) for i in range(3)]
    predicted = learner.ghn([m.graph for m in members])
    total, losses = torch.zeros(()), torch.zeros(())
    for i, (member, weights) in enumerate(zip(members, predicted, strict=True)):
        images, labels = Blobs().batch(0, i, 8)
        loss = cross_entropy(functional_call(member.network, weights, (images,)), labels, label_smoothing=0.1)
        losses = losses + loss.detach()
        total = total + loss + 0.01 * torch.stack([w.norm() for w in weights.values()]).sum()
    expected = torch.autograd.grad(total, list(learner.ghn.parameters()), allow_unused=True)
    torch.testing.assert_close(found.loss, losses)
    assert found.networks == 3
    for value, truth in zip(found.parameters, expected, strict=True):
        torch.testing.assert_close(value, torch.zeros_like(value) if truth is None else truth)


def test_shares_add_up_to_the_whole() -> None:
    learner = training()
    whole, parts = learner.gradient(), [learner.gradient(slice(0, 2)), learner.gradient(slice(2, 3))]
    assert [p.networks for p in parts] == [2, 1]
    for value, first, second in zip(whole.parameters, *(p.parameters for p in parts), strict=True):
        torch.testing.assert_close(value, first + second, rtol=1e-4, atol=1e-6)
    nothing = learner.gradient(slice(3, 3))
    assert nothing.networks == 0
    assert all(v.abs().sum() == 0 for v in nothing.parameters)


def test_the_pool_holds_no_weights() -> None:
    learner = training()
    learner.gradient()
    learner.validate(2, 8)
    parameters = [p for i in range(3) for p in learner.member(i).network.parameters()]
    assert parameters and all(p.is_meta for p in parameters)


def test_validation_takes_no_more_images_than_there_are() -> None:
    learner = training()
    learner.images = FewBlobs()
    assert learner.validate(2, 500)["validation_accuracy"] * 40 == pytest.approx(
        round(learner.validate(2, 20)["validation_accuracy"] * 40)
    )


def test_no_step_has_a_network_twice() -> None:
    """Threads would take turns in filling the one module."""
    with pytest.raises(ValidationError, match="pool is 2, expected at least 3"):
        training(pool=2)


def test_threads_change_nothing() -> None:
    alone = training().gradient()
    with task_threads(2) as pool:
        threaded = training().gradient(pool=pool)
    for a, b in zip(alone.parameters, threaded.parameters, strict=True):
        # Rounding alone: with one thread inside an operation sums run in another order than with two.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_saved_goes_on_as_if_it_had_not_stopped() -> None:
    whole = training()
    run(whole, 6)
    begun = training()
    run(begun, 3)
    saved = {k: v.clone() for k, v in begun.state().items()}
    resumed = training(seed=0)
    with torch.no_grad():
        for parameter in resumed.ghn.parameters():
            parameter.zero_()
    resumed.restore(saved)
    run(resumed, 3)
    assert resumed.step == 6
    for name, value in whole.result().items():
        assert torch.equal(value, resumed.result()[name]), name


def test_a_network_that_overflows_is_left_out() -> None:
    learner, healthy = training(), training().gradient()
    learner.member(1).network.register_forward_hook(lambda module, inputs, output: output * torch.inf)
    gradient = learner.gradient()
    assert (gradient.networks, healthy.networks) == (2, 3)
    assert float(gradient.loss) < float(healthy.loss)
    assert all(torch.isfinite(v).all() for v in gradient.parameters)


def test_a_step_without_one_finite_loss_is_a_divergence() -> None:
    learner = training()
    with torch.no_grad():
        next(learner.ghn.parameters()).fill_(torch.nan)
    with pytest.raises(DivergenceError, match=r"no network of step 1 .*step_size"):
        learner.apply(learner.gradient())
    assert learner.step == 0


def test_training_predicts_better_networks() -> None:
    learner = training(steps=60, meta_batch=4, images=32, pool=12, warm_up=5, step_size=3e-3, averaging=0.9)
    before = learner.validate(8, 60)["validation_accuracy"]
    run(learner, 60)
    after = learner.validate(8, 60)
    assert after["validation_accuracy"] > max(0.6, before + 0.15)
    assert after["validation_accuracy_least"] <= after["validation_accuracy"]
