"""The probe: which start is best for a network and its data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import metainit
from metainit.errors import DataError, SourceError
from metainit.evidence.probing import Batch, probe
from tests.metainit.evidence.toys import write_prior

TRUTH = torch.tensor([[1.0, -2.0, 0.5]])
mse: Callable[[Tensor, Tensor], Tensor] = nn.functional.mse_loss


def batches(count: int, seed: int = 0) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(32, 3, generator=generator) for _ in range(count)]
    return [(x, x @ TRUTH.T) for x in inputs]


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """A start beside the truth."""
    weights = {"weight": TRUTH + 0.01, "bias": torch.zeros(1)}
    return write_prior(tmp_path / "near.safetensors", weights, None, network=None)


def test_a_start_that_is_better_by_construction_comes_first(near: Path) -> None:
    network = nn.Linear(3, 1)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    report = probe(network, ["default", near, "kaiming"], batches(6), mse, steps=(0, 1, 3))
    assert report.best == str(near)
    assert [row.loss[3] for row in report.rows] == sorted(row.loss[3] for row in report.rows)
    assert report.rows[0].loss[0] == pytest.approx(3 * 0.01**2, rel=0.2)
    assert report.rows[0].spread == {0: 0.0, 1: 0.0, 3: 0.0}  # a prior is the same whatever the seed
    assert all(row.spread[0] > 0 for row in report.rows[1:])
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training


def test_it_is_judged_on_batches_that_neither_trained_nor_chose(near: Path) -> None:
    """The last third has other answers, so only a start that ignores the first two thirds could do well."""
    seen, unseen = batches(4), [(x, y + 100) for x, y in batches(2, seed=1)]
    report = probe(nn.Linear(3, 1), [near], [*seen, *unseen], mse, steps=(0, 5))
    expected = sum(float(mse(x @ (TRUTH + 0.01).T, y)) for x, y in unseen) / 2
    assert report.rows[0].loss[0] == pytest.approx(expected, rel=1e-5)
    assert report.rows[0].loss[5] == pytest.approx(100.0**2, rel=0.05)


@pytest.mark.parametrize("count", [3, 4, 5, 7, 9])
def test_the_thirds_share_no_batch(count: int) -> None:
    """Each batch counts for one purpose: the loss sees its number in the inputs."""
    trained: set[int] = set()
    looked: set[int] = set()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        (trained if torch.is_grad_enabled() else looked).add(int(targets[0, 0]))
        return (outputs - 0.5).square().mean()

    numbered = [(torch.randn(4, 3), torch.full((4, 1), float(i))) for i in range(count)]
    probe(nn.Linear(3, 1), ["default"], numbered, loss_fn, steps=(20,), seeds=1)
    assert trained.isdisjoint(looked)
    assert trained | looked == set(range(count))
    assert len(looked) == 2 * (count // 3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_step_size_suits_the_loss(scale: float) -> None:
    """The best step size goes as the inverse of the loss's scale, beyond the first grid too."""

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return scale * mse(outputs, targets)

    report = probe(nn.Linear(3, 1), ["default"], batches(6), loss_fn, steps=(0, 30), seeds=1)
    assert report.rows[0].loss[30] < 0.01 * report.rows[0].loss[0]
    assert 0.001 < report.rows[0].step_size * scale < 1


def test_the_report_can_be_read_and_written(near: Path) -> None:
    report = metainit.probe(nn.Linear(3, 1), ["default", near], batches(3), mse, steps=(5, 0), seeds=2)
    assert report.steps == [0, 5] and report.seeds == 2
    assert json.loads(json.dumps(report.to_dict()))["rows"][0]["source"] == str(near)
    lines = report.table().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [str(near), "default"]
    assert lines[-1].endswith("mean of 2 draws")


def test_a_start_that_diverges_comes_last_and_is_still_a_number(near: Path, tmp_path: Path) -> None:
    far = {"weight": torch.full((1, 3), 1e20), "bias": torch.zeros(1)}
    bad = write_prior(tmp_path / "far.safetensors", far, None, network=None)
    report = probe(nn.Linear(3, 1), [bad, near], batches(3), mse, steps=(0, 5))
    assert [row.source for row in report.rows] == [str(near), str(bad)]
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_batches_are_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"at least 3 batches .* got {count}"):
        probe(nn.Linear(3, 1), ["default"], batches(count), mse)


def test_steps_begin_at_zero() -> None:
    with pytest.raises(DataError, match=r"steps from 0 on and seeds, got .*\[5, -1\]"):
        probe(nn.Linear(3, 1), ["default"], batches(3), mse, steps=(5, -1))


def test_an_unknown_source_is_named() -> None:
    with pytest.raises(SourceError, match="did you mean 'kaiming'"):
        probe(nn.Linear(3, 1), ["kaimin"], batches(3), mse)


def toy(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def test_a_start_that_is_better_is_kept_and_fills_the_network(near: Path) -> None:
    report = probe(nn.Linear(3, 1), ["default", near], batches(6), mse, steps=(0, 1))
    assert report.kept == report.best == str(near) and report.baseline == "default"
    better, baseline = report.rows
    assert better.low is not None and better.gain is not None and 0 < better.low <= better.gain
    assert baseline.gain is None
    network = nn.Linear(3, 1)
    assert report.init_(network) is network
    assert torch.equal(network.weight, TRUTH + 0.01)
    assert report.step_size == better.step_size


def test_a_start_that_is_worse_does_no_harm(tmp_path: Path) -> None:
    far = {"weight": TRUTH * -30, "bias": torch.full((1,), 100.0)}
    bad = write_prior(tmp_path / "far.safetensors", far, None, network=None)
    report = probe(nn.Linear(3, 1), [bad, "default"], batches(6), mse, steps=(0, 1))
    assert report.kept == "default"
    expected = metainit.init_(nn.Linear(3, 1), "default", seed=0)
    assert torch.equal(report.init_(nn.Linear(3, 1)).weight, expected.weight)


def test_what_differs_by_chance_is_not_better() -> None:
    """Two draws of one rule: none is better, whichever comes first."""
    twin = metainit.load("default")
    kept = {probe(toy(), [twin, "default"], batches(9, s), mse, steps=(0, 3)).kept for s in range(3)}
    assert kept == {"default"}


def test_one_draw_on_one_batch_tells_nothing(near: Path) -> None:
    report = probe(nn.Linear(3, 1), ["default", near], batches(3), mse, steps=(0,), seeds=1)
    assert report.best == str(near) and report.kept == "default"


def test_without_the_default_the_best_is_kept(near: Path) -> None:
    report = probe(nn.Linear(3, 1), ["kaiming", near], batches(3), mse, steps=(0, 1))
    assert report.kept == report.best and report.baseline is None
    assert all(row.gain is None for row in report.rows)


def test_loaded_starts_are_taken_and_equal_names_told_apart(near: Path) -> None:
    loaded = metainit.load(near)
    report = probe(nn.Linear(3, 1), [loaded, loaded, "default"], batches(3), mse, steps=(0, 1))
    name = loaded.card.name
    assert {row.source for row in report.rows} == {name, f"{name} (2)", "default"}


def test_nothing_of_the_caller_s_changes() -> None:
    network = toy().train()
    network[1].eval()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(11)
    state = torch.get_rng_state()
    first = probe(network, ["default", "kaiming"], batches(3), mse, steps=(0, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training and not network[1].training
    assert all(p.grad is None for p in network.parameters())
    torch.manual_seed(12)
    again = probe(network, ["default", "kaiming"], batches(3), mse, steps=(0, 4))
    assert [row.loss for row in again.rows] == [row.loss for row in first.rows]


def test_running_statistics_are_those_of_the_training_batches() -> None:
    shifted = [(x * 5 + 40, y) for x, y in batches(3)]
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    report = probe(network, ["default"], shifted, mse, steps=(0,))
    report.init_(network)
    torch.testing.assert_close(network[0].running_mean, shifted[0][0].mean(0))
    # With those of no data the inputs would come in 40 standard deviations off.
    assert report.rows[0].loss[0] < 50


def test_the_cost_is_counted() -> None:
    counted = []

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            counted.append(1)
        return mse(outputs, targets)

    report = probe(nn.Linear(3, 1), ["default", "kaiming"], batches(3), loss_fn, steps=(0, 5), seeds=2)
    assert report.gradients == len(counted) and report.seconds > 0
    assert f"took {len(counted)} gradients" in report.table()


def test_no_sources_and_no_steps_are_refused() -> None:
    with pytest.raises(DataError, match="got 0 sources"):
        probe(nn.Linear(3, 1), [], batches(3), mse)
    with pytest.raises(DataError, match=r"steps \[\]"):
        probe(nn.Linear(3, 1), ["default"], batches(3), mse, steps=())
