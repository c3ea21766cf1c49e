"""Whether weights can be generated from fits: cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hypernets.generator.flat import FlatLayout
from hypernets.generator.generatability import evaluated, generatability, judge, pairs_of
from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Spec
from metainit.domains.base import TaskBatch
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.domains.seeding import generator_of
from metainit.errors import DataError
from metainit.initialization import load
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import build, function_of

SIREN = Spec(name="siren", arguments={"width": 12, "depth": 3, "in_features": 2, "out_features": 1})


@pytest.fixture(scope="module")
def domain() -> ImageDomain:
    values = np.random.default_rng(0).random((40, 4, 4, 1), dtype=np.float32)
    return ImageDomain.from_arrays(values, ImageConfig(height=4, width=4, channels=1, fit="resize"))


def fits_of(domain: ImageDomain, step_size: float) -> tuple[Parameters, torch.Tensor, TaskBatch]:
    """Return a base that renders the mean image, and fits of twelve images that began there."""
    network = build(SIREN, seed=0)
    load("siren").init_(network, seed=0)
    start = {k: v.detach().clone() for k, v in network.named_parameters()}
    mean = domain.measured(domain.mean_signal()[None])
    first = AdaptationRoutine(optimizer="adam", steps=150, step_size=1e-2)
    *_, base = trajectory(TaskLosses(domain, function_of(network), mean, False), start, first, {}, 150)
    base = {k: v.detach() for k, v in base.items()}
    layout = FlatLayout.of(base)
    tasks = domain.tasks(0, 0, 12)
    routine = AdaptationRoutine(optimizer="adam", steps=60, step_size=step_size)
    losses = TaskLosses(domain, function_of(network), tasks, batched=True)
    *_, last = trajectory(losses, base, routine, {}, 60)
    return base, (layout.flatten(last) - layout.flatten(base)).detach(), tasks


def test_midpoints_of_a_quadratic_have_half_of_the_gain() -> None:
    # f(w) = w: the loss of task t is |w - t|^2, its fit is t, and the base is the mean of the tasks.
    targets = torch.randn(4000, 3, generator=generator_of("targets"))
    targets -= targets.mean(0)
    pairs = pairs_of(4000)
    midpoints = targets[pairs].mean(1, keepdim=True)
    found = judge(
        torch.zeros(4000, 2),
        (midpoints - targets[pairs]).square().sum(-1),
        targets[pairs].square().sum(-1),
    )
    assert found.share == pytest.approx(0.5, abs=0.02) and found.verdict == "generatable"


def test_fits_that_hardly_moved_are_generatable(domain: ImageDomain) -> None:
    base, deltas, tasks = fits_of(domain, 1e-3)
    function = function_of(build(SIREN))
    found = generatability(domain, function, base, FlatLayout.of(base), deltas, tasks)
    assert found.verdict == "generatable" and 0.25 < found.share < 0.75
    assert found.pairs == 12 and found.metric == "psnr"
    assert found.metric_base is not None and found.metric_ends is not None
    assert found.metric_ends > found.metric_base


def test_permuted_neurons_are_not_generatable(domain: ImageDomain) -> None:
    base, deltas, tasks = fits_of(domain, 1e-2)
    layout = FlatLayout.of(base)
    function = function_of(build(SIREN))
    sound = generatability(domain, function, base, layout, deltas, tasks)
    start = layout.flatten(base)
    permuted = []
    for number, row in enumerate(start + deltas):
        weights = layout.unflatten(row)
        # The same function: hidden neurons of both layers in another order.
        for before, after in (("layers.0", "layers.1"), ("layers.1", "layers.2")):
            order = torch.randperm(12, generator=generator_of("order", number, before))
            weights[f"{before}.weight"] = weights[f"{before}.weight"][order]
            weights[f"{before}.bias"] = weights[f"{before}.bias"][order]
            weights[f"{after}.weight"] = weights[f"{after}.weight"][:, order]
        permuted.append(layout.flatten(weights) - start)
    mixed = torch.stack(permuted)
    same = evaluated(domain, function, base, layout, mixed, tasks)[0]
    torch.testing.assert_close(
        same, evaluated(domain, function, base, layout, deltas, tasks)[0], rtol=1e-3, atol=1e-5
    )
    found = generatability(domain, function, base, layout, mixed, tasks)
    assert found.verdict == "not generatable" and found.share < min(0.0, sound.share)
    assert "unrelated places" in found.sentence


def test_the_verdict_follows_the_share() -> None:
    ones = torch.ones(5, 2)
    for midpoint, verdict in (
        (0.2, "generatable"),
        (0.75, "generatable"),
        (0.9, "doubtful"),
        (1.5, "not generatable"),
    ):
        assert judge(0 * ones, midpoint * ones, ones).verdict == verdict
    assert judge(0.9 * ones, 0.9 * ones, ones).verdict == "not fitted"
    assert judge(1.1 * ones, ones, ones).verdict == "not fitted"
    assert judge(0 * ones, torch.inf * ones, ones).verdict == "not generatable"
    assert judge(0 * ones, torch.nan * ones, ones).verdict == "not generatable"


def test_what_cannot_be_judged_is_refused() -> None:
    ones = torch.ones(3, 2)
    with pytest.raises(DataError, match="finite"):
        judge(torch.nan * ones, ones, ones)
    with pytest.raises(DataError, match="expected losses"):
        judge(ones, ones[:2], ones)
    with pytest.raises(DataError, match="at least two fits"):
        pairs_of(1)


def test_every_fit_is_an_end_of_two_pairs() -> None:
    pairs = pairs_of(7, seed=3)
    assert torch.equal(pairs.flatten().bincount(), torch.full((7,), 2))
    assert bool((pairs[:, 0] != pairs[:, 1]).all())
