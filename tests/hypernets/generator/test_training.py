from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hypernets.generator.conditions import Conditions, conditions_of
from hypernets.generator.config import ConditionConfig, GeneratorTrainingConfig
from hypernets.generator.model import Generator
from hypernets.generator.training import GeneratorTraining
from metainit.errors import ConditionError, CopyError, DataError, DivergenceError, MismatchError
from tests.hypernets.generator.gaussians import CONDITIONS, gaussian, small

ZOO = gaussian()
BRIEF = {
    "mean_steps": 3,
    "steps": 4,
    "distillation_steps": 3,
    "batch": 6,
    "warm_up": 1,
    "pairs": 10,
    "teacher_steps": 2,
}


def training(
    count: int = 40,
    seed: int = 0,
    task_loss: object = None,
    parts: dict[str, object] | None = None,
    **changes: object,
) -> GeneratorTraining:
    config = GeneratorTrainingConfig.model_validate(BRIEF | changes)
    members, held_out = ZOO.members(count), ZOO.members(30, seed=1)
    return GeneratorTraining(config, small(count, **(parts or {})), members, held_out, seed, task_loss)  # type: ignore[arg-type]


def run(learner: GeneratorTraining, steps: int) -> list[float]:
    return [learner.apply(learner.gradient()) for _ in range(steps)]


def trained(learner: GeneratorTraining) -> Generator:
    run(learner, learner.total - learner.step)
    learner.generator.load_state_dict(learner.result())
    return learner.generator.eval()


def asked(generator: Generator, label: int, seen: list[float], count: int) -> Conditions:
    return conditions_of(
        generator.config.conditions,
        count,
        classes=torch.full((count,), label),
        observations=torch.tensor(seen).expand(count, -1),
    )


@pytest.fixture(scope="module")
def learned() -> Generator:
    """A generator that has seen enough of the Gaussian zoo to know it."""
    return trained(
        training(
            800,
            mean_steps=200,
            steps=350,
            distillation_steps=250,
            batch=128,
            warm_up=20,
            step_size=5e-3,
            mean_step_size=1e-2,
            pairs=1024,
            teacher_steps=20,
            averaging=0.98,
        )
    )


def test_the_mean_is_that_of_the_condition(learned: Generator) -> None:
    labels, seen = torch.tensor([0, 1, 2, 2]), torch.tensor([[0.0, 0.0], [1.0, 0.5], [-1.0, 1.0], [0.3, 0.3]])
    conditions = conditions_of(CONDITIONS, 4, classes=labels, observations=seen)
    found = learned.sample(conditions, [0] * 4, "mean").deltas
    truth = ZOO.mean(labels, seen)
    assert (found - truth).norm() < 0.15 * truth.norm()


@pytest.mark.parametrize("what", ["sample", "one_step"])
def test_samples_have_the_mean_and_the_covariance_of_the_condition(learned: Generator, what: str) -> None:
    conditions = asked(learned, 1, [0.5, -0.5], 600)
    drawn = learned.sample(conditions, range(600), what, steps=25).deltas  # type: ignore[arg-type]
    truth = ZOO.mean(torch.tensor([1]), torch.tensor([[0.5, -0.5]]))[0]
    deviation = ZOO.covariance.diagonal().sqrt()
    assert ((drawn.mean(0) - truth) / deviation).abs().max() < 0.35
    ratio = drawn.std(0) / deviation
    assert 0.75 < ratio.min() and ratio.max() < 1.25
    off = drawn.T.corrcoef() - ZOO.covariance / deviation.outer(deviation)
    assert off.abs().max() < 0.25


def test_without_a_condition_samples_have_the_spread_of_the_zoo(learned: Generator) -> None:
    drawn = learned.sample(conditions_of(CONDITIONS, 600), range(600), steps=25).deltas
    deltas = ZOO.members(2000, seed=5).deltas
    ratio = drawn.std(0) / deltas.std(0)
    assert 0.7 < ratio.min() and ratio.max() < 1.3
    assert ((drawn.mean(0) - deltas.mean(0)) / deltas.std(0)).abs().max() < 0.3


def test_guidance_goes_beyond_the_condition(learned: Generator) -> None:
    conditions = asked(learned, 0, [1.0, 1.0], 200)
    overall = ZOO.members(2000, seed=5).deltas.mean(0)
    direction = ZOO.mean(torch.tensor([0]), torch.tensor([[1.0, 1.0]]))[0] - overall
    reached = [
        float((learned.sample(conditions, range(200), guidance=w).deltas.mean(0) - overall) @ direction)
        for w in (0.0, 1.0, 1.5)
    ]
    assert reached[0] < 0.3 * reached[1] < reached[1] < reached[2]


def test_a_sample_does_not_depend_on_its_batch(learned: Generator) -> None:
    for what in ("sample", "one_step"):
        conditions = asked(learned, 2, [0.0, 1.0], 5)
        together = learned.sample(conditions, [4, 7, 9, 7, 1], what, guidance=1.0).deltas  # type: ignore[arg-type]
        alone = learned.sample(conditions[2:3], [9], what).deltas  # type: ignore[arg-type]
        torch.testing.assert_close(together[2:3], alone, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(together[1], together[3], rtol=1e-4, atol=1e-7)
        assert (together[0] - together[1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {
            "denoiser": "transformer",
            "width": 16,
            "heads": 2,
            "scale": "predicted",
            "parameters": ("1.weight",),
            "prediction": "flow",
        },
    ],
)
def test_what_is_saved_goes_on_as_if_it_had_not_stopped(parts: dict[str, object]) -> None:
    whole = training(parts=parts)
    run(whole, 10)
    for stop in (2, 3, 5, 7, 9):
        begun = training(parts=parts)
        run(begun, stop)
        saved = {k: v.clone() for k, v in begun.state().items()}
        resumed = training(parts=parts)
        with torch.no_grad():
            for parameter in resumed.generator.parameters():
                parameter.fill_(0.3)
        resumed.restore(saved)
        run(resumed, 10 - stop)
        for name, value in whole.result().items():
            assert torch.equal(value, resumed.result()[name]), (stop, name)


def test_shares_add_up_to_the_whole() -> None:
    learner = training(task_loss=lambda deltas, indices: deltas.square().sum(-1), task_weight=0.1)
    for _ in range(3):
        whole, parts = learner.gradient(), [learner.gradient(slice(0, 2)), learner.gradient(slice(2, None))]
        assert [p.members for p in (whole, *parts)] == [6, 2, 4]
        for value, first, second in zip(whole.parameters, *(p.parameters for p in parts), strict=True):
            torch.testing.assert_close(value, first + second, rtol=1e-4, atol=1e-6)
        run(learner, 3)
    assert learner.gradient(slice(6, 9)).members == 0


def test_the_mean_follows_the_task_loss() -> None:
    """Tasks whose best delta is not the members': with enough weight the mean goes there."""
    target = torch.linspace(-0.02, 0.02, 8)

    def task_loss(deltas: Tensor, indices: Tensor) -> Tensor:
        return (100 * (deltas - target)).square().mean(-1)

    found = {}
    for weight in (0.0, 100.0):
        learner = training(
            200,
            task_loss=task_loss,
            task_weight=weight,
            mean_steps=200,
            steps=0,
            distillation_steps=0,
            batch=64,
            mean_step_size=1e-2,
            averaging=0.9,
        )
        generator = trained(learner)
        deltas = generator.sample(asked(generator, 0, [0.0, 0.0], 1), [0], "mean").deltas
        found[weight] = float(task_loss(deltas, torch.zeros(1)))
    assert found[100.0] < 0.05 * found[0.0]


def test_residuals_are_those_of_members_that_the_mean_has_not_seen() -> None:
    """Without any structure to learn, a mean learns by heart; cross-fitted residuals keep their spread."""
    changes = {
        "mean_steps": 250,
        "steps": 0,
        "distillation_steps": 0,
        "batch": 24,
        "mean_step_size": 1e-2,
        "dropout": 0.0,
        "averaging": 0.5,
    }
    ratios = {}
    for folds in (1, 3):
        learner = training(
            24, folds=folds, parts={"mean_width": 128, "mean_depth": 2, "embedding": 64}, **changes
        )
        values = learner.values = torch.randn(24, 8, generator=torch.Generator().manual_seed(3))
        run(learner, 250)
        ratios[folds] = float(learner.generator.residual.deviation.mean() / values.std(0).mean())
    assert ratios[1] < 0.5 and ratios[3] > 0.85


def test_a_scale_is_predicted_from_the_condition() -> None:
    config = GeneratorTrainingConfig.model_validate(
        BRIEF | {"mean_steps": 200, "batch": 64, "mean_step_size": 1e-2, "averaging": 0.95}
    )
    members = ZOO.members(300)
    sizes = 10.0 ** members.conditions["class"].float()
    deltas = members.deltas - ZOO.mean(members.conditions["class"], members.conditions["observation"])
    members = replace(members, deltas=sizes[:, None] * deltas)
    generator = small(200, scale="predicted", mean=False, parameters=("0.weight", "0.bias"))
    generator = trained(GeneratorTraining(config, generator, members[:200], members[200:]))
    drawn = [generator.sample(asked(generator, c, [0.0, 0.0], 50), range(50)).deltas for c in range(3)]
    assert all(torch.equal(d[:, 6:], torch.zeros(50, 2)) for d in drawn)
    spread = [float(d.square().mean().sqrt()) for d in drawn]
    assert 5 < spread[1] / spread[0] < 20 and 5 < spread[2] / spread[1] < 20


def test_copies_are_drawn_again_and_a_generator_that_only_copies_says_so() -> None:
    learner = training()
    generator, conditions = learner.generator, asked(learner.generator, 0, [0.0, 0.0], 6)
    clean = generator.sample(conditions, range(6))
    assert clean.refused.tolist() == [0] * 6
    drawn = generator.standardized(clean.deltas)
    # The second and the fifth sample become members: they are refused, and others take their place.
    generator.sketch.members[:2] = generator.sketch(drawn[[1, 4]])
    again = generator.sample(conditions, range(6))
    assert again.refused.tolist() == [0, 1, 0, 0, 1, 0]
    same = (again.deltas - clean.deltas).abs().amax(-1) < 1e-7
    assert same.tolist() == [True, False, True, True, False, True]
    alone = generator.sample(conditions[:1], [4])
    torch.testing.assert_close(alone.deltas[0], again.deltas[4])
    generator.sketch.threshold.fill_(torch.inf)
    with pytest.raises(CopyError, match=r"6 of 6 samples are copies .*more of them"):
        generator.sample(conditions, range(6))


def test_a_step_that_diverges_changes_nothing() -> None:
    learner = training()
    run(learner, 4)
    before = {k: v.clone() for k, v in learner.state().items()}
    gradient = learner.gradient()
    with pytest.raises(DivergenceError, match=r"step 5 \(diffusion\)"):
        learner.apply(replace(gradient, loss=torch.tensor(torch.nan)))
    gradient.parameters[0].fill_(torch.inf)
    with pytest.raises(DivergenceError):
        learner.apply(gradient)
    after = learner.state()
    assert before.keys() == after.keys()
    assert all(torch.equal(v, after[k]) for k, v in before.items())


def test_members_that_cannot_be_learned_from_are_refused() -> None:
    config, held_out = GeneratorTrainingConfig.model_validate(BRIEF), ZOO.members(20, seed=1)
    members = ZOO.members(20)
    with pytest.raises(DataError, match="at least 16 members, got 10"):
        GeneratorTraining(config, small(10), members[:10], held_out)
    with pytest.raises(DataError, match="20 members have the same weights"):
        GeneratorTraining(config, small(20), replace(members, deltas=torch.full((20, 8), 0.1)), held_out)
    broken = members.deltas.clone()
    broken[3, 2] = torch.nan
    with pytest.raises(DataError, match="1 of the members are not finite, such as '3'"):
        GeneratorTraining(config, small(20), replace(members, deltas=broken), held_out)
    with pytest.raises(MismatchError, match="members have 7 numbers each, the network 8"):
        GeneratorTraining(config, small(20), replace(members, deltas=members.deltas[:, 1:]), held_out)
    with pytest.raises(ConditionError, match="the members have no observation"):
        GeneratorTraining(
            config, small(20), replace(members, conditions={"class": members.conditions["class"]}), held_out
        )
    with pytest.raises(DataError, match="no task loss"):
        training(task_weight=1.0)


def test_validation_tells_learning_from_not() -> None:
    learner = training(
        200,
        mean_steps=150,
        steps=200,
        distillation_steps=0,
        batch=64,
        mean_step_size=1e-2,
        step_size=3e-3,
        averaging=0.9,
    )
    assert learner.validate() == {"validation_mean_error": pytest.approx(1.0)}
    run(learner, 150)
    start = learner.validate()
    assert start["validation_mean_error"] < 0.7
    run(learner, 200)
    assert learner.validate()["validation_loss"] < 0.8 * start["validation_loss"]


def test_every_text_says_its_class() -> None:
    config = GeneratorTrainingConfig.model_validate(
        BRIEF | {"mean_steps": 150, "batch": 64, "mean_step_size": 1e-2, "averaging": 0.9}
    )
    texts = ConditionConfig(text="ngrams")
    generator = small(200, conditions=texts)
    generator = trained(GeneratorTraining(config, generator, ZOO.members(200), ZOO.members(20, seed=1)))
    said = conditions_of(texts, 3, texts=["One ring", "two  squares", "three stars"])
    found = generator.sample(said, [0, 0, 0], "mean").deltas
    truth = ZOO.mean(torch.arange(3), torch.zeros(3, 2))
    assert torch.cdist(found, truth).argmin(-1).tolist() == [0, 1, 2]
