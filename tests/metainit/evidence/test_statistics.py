"""Intervals: closed forms, coverage in simulated draws, and what pairing is good for."""

from __future__ import annotations

import numpy as np
import pytest

from metainit.errors import DataError
from metainit.evidence.statistics import Values, bootstrap, paired_bootstrap

Z = 1.959964


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Values:
    return np.asarray(rng.normal(0.0, scale, shape))


def half_width(interval: tuple[float, float, float]) -> float:
    return (interval[2] - interval[1]) / 2


def test_one_seed_has_the_normal_interval_of_a_mean() -> None:
    values = normal(np.random.default_rng(0), 1, 200)
    found = bootstrap(values)
    error = values.std() / np.sqrt(200)
    assert found.mean == pytest.approx(values.mean(), abs=1e-12)
    assert found.low == pytest.approx(values.mean() - Z * error, abs=0.13 * error)
    assert found.high == pytest.approx(values.mean() + Z * error, abs=0.13 * error)


def test_seeds_and_tasks_add_their_variances() -> None:
    rng = np.random.default_rng(1)
    seeds, tasks = normal(rng, 40, 1, scale=2.0), normal(rng, 1, 60, scale=3.0)
    found = bootstrap(seeds + tasks)
    error = np.sqrt(seeds.var() / 40 + tasks.var() / 60)
    assert half_width(found) == pytest.approx(Z * error, rel=0.05)
    # Values taken as 2,400 independent ones would claim a fraction of that.
    assert half_width(found) > 3 * Z * (seeds + tasks).std() / np.sqrt(2400)


def test_a_difference_has_the_variances_of_both_sides_seeds_and_of_the_tasks_once() -> None:
    rng = np.random.default_rng(2)
    a = normal(rng, 30, 1, scale=1.0) + normal(rng, 1, 80, scale=2.0)
    b = normal(rng, 50, 1, scale=3.0) + normal(rng, 1, 80, scale=0.5)
    found = paired_bootstrap(a, b)
    error = np.sqrt(a.mean(1).var() / 30 + b.mean(1).var() / 50 + (a.mean(0) - b.mean(0)).var() / 80)
    assert half_width(found) == pytest.approx(Z * error, rel=0.05)
    assert found.mean == pytest.approx(a.mean() - b.mean())


@pytest.mark.parametrize(("seeds", "tasks"), [(1, 64), (24, 64)])
def test_the_interval_covers_the_truth_in_95_percent_of_draws(seeds: int, tasks: int) -> None:
    rng = np.random.default_rng(3)
    draws, truth, covered = 120, 7.0, 0
    for draw in range(draws):
        values = truth + normal(rng, 1, tasks, scale=2.0) + normal(rng, seeds, tasks, scale=0.5)
        if seeds > 1:
            values = values + normal(rng, seeds, 1, scale=1.0)
        found = bootstrap(values, seed=draw)
        covered += found.low <= truth <= found.high
    # The standard error of the share is 2 %.
    assert 0.89 <= covered / draws <= 0.99


def test_a_smaller_confidence_gives_the_narrower_quantiles() -> None:
    values = normal(np.random.default_rng(4), 1, 200)
    half = bootstrap(values, confidence=0.5)
    assert half_width(half) == pytest.approx(0.674490 * values.std() / np.sqrt(200), rel=0.05)


def test_pairing_sees_a_gain_that_the_spread_of_the_tasks_hides() -> None:
    rng = np.random.default_rng(5)
    difficulty = normal(rng, 1, 64, scale=5.0)
    a = difficulty + 0.5 + normal(rng, 3, 64, scale=0.1)
    b = difficulty + normal(rng, 3, 64, scale=0.1)
    paired = paired_bootstrap(a, b)
    unpaired = paired_bootstrap(a, b[:, rng.permutation(64)])
    assert paired.low > 0.4
    assert unpaired.low < 0 < unpaired.high
    assert unpaired.mean == pytest.approx(paired.mean)


def test_tasks_that_are_alike_are_no_independent_draws() -> None:
    """12 photographs, 16 crops of each: the interval is that of 12 draws and not of 192."""
    rng = np.random.default_rng(8)
    offsets = normal(rng, 1, 12, scale=3.0)
    values = np.repeat(offsets, 16, axis=1) + normal(rng, 1, 192, scale=0.01)
    groups = [f"photograph {i}" for i in range(12) for _ in range(16)]
    found = bootstrap(values, groups=groups)
    assert found.mean == pytest.approx(values.mean())
    assert half_width(found) == pytest.approx(Z * offsets.std() / np.sqrt(12), rel=0.06)
    assert half_width(bootstrap(values)) < 0.3 * half_width(found)


def test_groups_and_the_tasks_within_them_add_their_variances() -> None:
    rng = np.random.default_rng(9)
    offsets, within = normal(rng, 1, 40, scale=1.0), normal(rng, 40, 10, scale=4.0)
    values = (offsets.T + within).reshape(1, -1)
    found = paired_bootstrap(
        values, np.zeros((1, 400)), groups=[str(i) for i in range(40) for _ in range(10)]
    )
    means = values.reshape(40, 10)
    error = np.sqrt(means.mean(1).var() / 40 + means.var(1).mean() / 400)
    assert half_width(found) == pytest.approx(Z * error, rel=0.06)


@pytest.mark.parametrize("groups", [None, [str(i) for i in range(20)]])
def test_a_group_for_each_task_changes_nothing(groups: list[str] | None) -> None:
    values = normal(np.random.default_rng(10), 3, 20)
    assert bootstrap(values, groups=groups) == bootstrap(values)


def test_of_a_single_group_only_the_tasks_vary() -> None:
    values = normal(np.random.default_rng(11), 1, 200)
    found = bootstrap(values, groups=["one"] * 200)
    assert half_width(found) == pytest.approx(Z * values.std() / np.sqrt(200), rel=0.06)


def test_groups_of_other_tasks_are_refused() -> None:
    with pytest.raises(DataError, match="a group for each of the 4 tasks, got 3"):
        bootstrap(np.zeros((1, 4)), groups=["a", "a", "b"])


def test_seeds_that_both_sides_share_are_drawn_once() -> None:
    rng = np.random.default_rng(6)
    luck = normal(rng, 8, 1, scale=5.0)
    a, b = luck + 0.5 + normal(rng, 1, 16, scale=0.01), luck + np.zeros((1, 16))
    together = paired_bootstrap(a, b, paired_seeds=True)
    apart = paired_bootstrap(a, b)
    assert 0.45 < together.low < together.high < 0.55
    assert apart.low < 0 < apart.high
    assert half_width(apart) == pytest.approx(Z * np.sqrt(2 * luck.var() / 8), rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_units_carry_over() -> None:
    values = normal(np.random.default_rng(7), 3, 20)
    one = bootstrap(values)
    assert bootstrap(values) == one != bootstrap(values, seed=1)
    assert tuple(bootstrap(-2 * values + 3)) == pytest.approx(
        (3 - 2 * one[0], 3 - 2 * one[2], 3 - 2 * one[1])
    )


def test_what_does_not_vary_has_an_interval_without_width() -> None:
    assert tuple(bootstrap(np.full((3, 1), 4.0))) == pytest.approx((4.0, 4.0, 4.0))


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 8), (3, 7)), ((8,), (8,)), ((3, 0), (3, 0)), ((0, 8), (3, 8)), ((1, 3, 8), (1, 3, 8))],
)
def test_other_shapes_are_refused(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="same tasks, got"):
        paired_bootstrap(np.zeros(a), np.zeros(b))
