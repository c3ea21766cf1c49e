"""Controls from the same members and conditions: closed forms, and what they are when nothing is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hypernets.generator.conditions import Conditions, conditions_of
from hypernets.generator.config import ConditionConfig
from hypernets.generator.controls import features_of, nearest_member, noised_member, ridge, zoo_mean


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("strength", [1e-6, 0.1, 10.0])
def test_ridge_is_the_closed_form_of_rows_that_are_added(strength: float) -> None:
    features, deltas, asked = random(40, 5), random(40, 7, seed=1), random(3, 5, seed=2)
    x, y = features.double().numpy(), deltas.double().numpy()
    # A penalty is a least squares problem with rows that ask for zero.
    rows = np.concatenate([x - x.mean(0), np.sqrt(strength * len(x)) * np.eye(5)])
    wanted = np.concatenate([y - y.mean(0), np.zeros((5, 7))])
    weight = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    expected = (asked.double().numpy() - x.mean(0)) @ weight + y.mean(0)
    np.testing.assert_allclose(ridge(features, deltas, strength)(asked, 0).numpy(), expected, atol=1e-5)


def test_ridge_without_weight_is_the_mean_and_bears_features_that_never_change() -> None:
    features, deltas = random(40, 5), random(40, 7, seed=1)
    torch.testing.assert_close(
        ridge(features, deltas, 1e9)(random(2, 5), 0), deltas.mean(0).expand(2, -1), atol=1e-5, rtol=0
    )
    features[:, 2] = 1.0
    assert torch.isfinite(ridge(features, deltas, 1e-5)(random(2, 5), 0)).all()


def test_the_nearest_member_is_the_nearest_and_among_equals_each_is_drawn() -> None:
    features, deltas = random(30, 4), random(30, 6, seed=1)
    asked = features[[7, 21]] + 1e-3
    for seed in range(3):
        assert torch.equal(nearest_member(features, deltas)(asked, seed), deltas[[7, 21]])
    classes = torch.eye(3)[torch.arange(30) % 3]
    give = nearest_member(classes, deltas)
    assert torch.equal(give(classes[:3], 5), give(classes[:3], 5))
    drawn = torch.cat([give(classes[1:2], seed) for seed in range(200)])
    found = {deltas.eq(row).all(1).nonzero().item() for row in drawn}
    assert found == set(range(1, 30, 3))


def test_a_noised_member_is_off_by_so_much_of_each_numbers_deviation() -> None:
    features, deltas = torch.zeros(50, 1), random(50, 4) * torch.tensor([1.0, 10.0, 0.1, 0.0])
    asked = torch.zeros(20_000, 1)
    give, nearest = noised_member(features, deltas, 0.3), nearest_member(features, deltas)
    off = give(asked, 1) - nearest(asked, 1)
    torch.testing.assert_close(off.std(0), 0.3 * deltas.std(0), rtol=0.03, atol=1e-7)
    assert not torch.equal(give(asked, 1), give(asked, 2))


def test_the_zoo_mean_is_the_same_for_everyone() -> None:
    deltas = random(9, 4)
    assert torch.equal(zoo_mean(deltas)(random(2, 3), 7), deltas.mean(0).expand(2, -1))


def test_features_are_one_hot_classes_and_flat_observations_and_zero_where_nothing_is_known() -> None:
    config = ConditionConfig(classes=3, observation=(2, 4, 5), encoder="examples")
    seen = random(2, 2, 4, 5)
    both = conditions_of(config, 2, classes=torch.tensor([2, 0]), observations=seen)
    found = features_of(both, 3, examples=True)
    assert torch.equal(found[:, :3], torch.eye(3)[[2, 0]])
    torch.testing.assert_close(found[:, 3:], seen.mean(2).flatten(1))
    alone = features_of(conditions_of(config, 2, observations=seen), 3, examples=True)
    assert torch.equal(alone[:, :3], torch.zeros(2, 3)) and torch.equal(alone[:, 3:], found[:, 3:])
    assert features_of(conditions_of(ConditionConfig(), 4), 0, examples=False).shape == (4, 0)


def test_controls_work_where_members_do_not_lie_on_the_cpu() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        features, deltas, asked = torch.empty(6, 3), torch.empty(6, 4), torch.empty(2, 3)
        for control in (nearest_member(features, deltas), noised_member(features, deltas, 0.1)):
            given = control(asked, 0)
            assert given.device.type == "cuda" and given.shape == (2, 4)


@pytest.mark.parametrize(
    ("which", "count"), [(slice(1, None), 5), (torch.tensor([0, 2, 4]), 3), (torch.arange(6) > 1, 4)]
)
def test_conditions_are_picked_by_what_lies_on_their_device(which: slice | torch.Tensor, count: int) -> None:
    known = Conditions({"class": torch.zeros(6)}, {"class": torch.ones(6)}, 6)
    assert len(known[which]) == len(known[which].values["class"]) == count
    with torch.device("meta"):
        away = Conditions({"class": torch.zeros(6)}, {"class": torch.ones(6)}, 6)
        assert len(away[torch.tensor([0, 2, 4])]) == 3
