"""Fine-tuning, the search for step sizes, starts, and the evidence that comes of them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from hypernets.architecture.space import build_architecture, distinct
from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.evidence import measure_predictor
from hypernets.ghn.finetuning import FineTuning, accuracy, choose_step_sizes, finetune, tuned_curves
from hypernets.ghn.starts import analytic, predicted, scale_only
from metainit.domains.labelled_images import LabelledImagesConfig, read_labelled_images
from metainit.errors import MismatchError, RecipeError
from metainit.evidence.report import plot_curves, text_table

SPACE = SpaceConfig(size=8, families={"mlp": 1.0})
HOW = FineTuning(steps=(0, 3, 10), batch=32, recalibration=64)


@pytest.fixture(scope="module")
def digits():
    return read_labelled_images(LabelledImagesConfig())


@pytest.fixture(scope="module")
def networks():
    return distinct(SPACE, 0, 5, "test")


def trained(data):
    """Return a predictor that knows the answer: it trains each network first."""

    def predict(network, seed):
        tuned = copy.deepcopy(network)
        optimizer = torch.optim.Adam(tuned.parameters(), 0.01)
        for step in range(60):
            images, labels = data.batch(7 + seed, step, 64)
            loss = functional.cross_entropy(tuned(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return dict(tuned.named_parameters())

    return predict


def test_a_step_is_that_of_sgd(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    before = copy.deepcopy(network.state_dict())
    found = finetune(network, digits, 0.1, FineTuning(steps=(0, 1), batch=32), seed=3)
    images, labels = digits.batch(3, 1, 32)
    functional.cross_entropy(network(images), labels).backward()
    by_hand = copy.deepcopy(network)
    with torch.no_grad():
        for own, value in zip(by_hand.parameters(), network.parameters(), strict=True):
            own -= 0.1 * value.grad
    test = digits.parts["test"]
    assert found == [accuracy(network, *test), accuracy(by_hand, *test)]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_an_earlier_accuracy_does_not_depend_on_later_steps(digits, networks):
    network = build_architecture(networks[0], 0)
    long, short = (finetune(network, digits, 0.03, HOW, steps=steps) for steps in ((0, 3, 10), (3,)))
    assert long[1] == short[0]


def test_a_diverging_run_is_worst(digits):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    assert finetune(network, digits, 1e30, HOW)[1:] == [0.0, 0.0]


def test_the_grid_grows_until_the_best_is_inside(digits, networks):
    how = FineTuning(steps=(10,), grid=(1e-4, 2e-4, 3e-4, 4e-4, 1e-3), extensions=12, batch=32)
    choice = choose_step_sizes(analytic("kaiming"), networks[:2], digits, how, build_architecture)
    assert choice.inside and len(choice.tried) > 5
    assert min(choice.tried) < choice.step_sizes[10] < max(choice.tried)
    assert choice.step_sizes[10] > 1e-3


def test_each_number_of_steps_has_its_own_step_size(digits, networks):
    start = analytic("kaiming")
    choice = choose_step_sizes(start, networks[:2], digits, HOW, build_architecture)
    values = tuned_curves(start, choice, networks[2:4], digits, HOW, build_architecture, seed=1)
    for row, spec in zip(values, networks[2:4], strict=True):
        network = build_architecture(spec, 1)
        start.fill(network, 1)
        for column, steps in enumerate(HOW.steps):
            rate = choice.step_sizes.get(steps, 0.1)
            assert row[column] == finetune(network, digits, rate, HOW, 1, steps=[steps])[0]


def test_scale_only_keeps_each_tensor_s_scale_and_nothing_else():
    network = nn.Sequential(nn.Linear(300, 200), nn.BatchNorm1d(200))
    weights = {k: torch.randn(p.shape) * 0.3 + 2 for k, p in network.named_parameters()}
    scale_only(lambda net, seed: weights).fill(network, 0)
    first = network[0].weight.detach().clone()
    assert float(first.std()) == pytest.approx(0.3, rel=0.02) and abs(float(first.mean())) < 0.01
    assert float(network[1].weight.detach().mean()) == pytest.approx(2, abs=0.15)
    assert (
        abs(float(torch.corrcoef(torch.stack([first.flatten(), weights["0.weight"].flatten()]))[0, 1])) < 0.02
    )
    scale_only(lambda net, seed: weights).fill(network, 1)
    assert not torch.equal(first, network[0].weight)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.ones(1, 2)}, "missing: bias"),
        (
            {"weight": torch.ones(2, 1), "bias": torch.ones(1)},
            r"mis-shaped: weight \(2, 1\) \(expected \(1, 2\)\)",
        ),
        ({"weight": torch.ones(1, 2), "bias": torch.ones(1), "b": torch.ones(1)}, "unexpected: b"),
        ({"weight": torch.full((1, 2), torch.nan), "bias": torch.ones(1)}, "not finite: weight"),
    ],
)
def test_filling_is_all_or_nothing(weights, message):
    layer = nn.Linear(2, 1)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(MismatchError, match=message):
        predicted(lambda network, seed: weights).fill(layer, 0)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_evidence_shows_a_start_that_is_better_by_construction(digits, networks, tmp_path):
    record = measure_predictor(
        trained(digits), networks[2:], networks[:2], digits, HOW, seeds=(0, 1), analytic_controls=("kaiming",)
    )
    assert record.metric == "accuracy" and record.network is None and len(record.task_ids) == 3
    assert record.headline.steps == 10 and record.headline.gain > 0 and record.headline.low > 0
    curves = {c.source: c for c in record.curves}
    assert curves["predicted"].mean[0] > 0.8 > 0.4 > curves["scale_only"].mean[0]
    assert type(record).model_validate_json(record.model_dump_json()) == record
    assert "predicted" in text_table(record) and "after 10 steps" in text_table(record)
    plot_curves(record, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_reported_architectures_may_not_choose(digits, networks):
    with pytest.raises(RecipeError, match="both reported and chosen on"):
        measure_predictor(trained(digits), networks[:2], networks[1:3], digits)


def test_predicted_fills_what_is_predicted(networks):
    network = build_architecture(networks[0])
    predicted(lambda net, seed: {k: torch.full_like(p, seed) for k, p in net.named_parameters()}).fill(
        network, 3
    )
    assert all((p == 3).all() for p in network.parameters())
