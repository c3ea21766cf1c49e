"""Fits of many tasks at once are those of `metainit.adaptation`, and crossings are where a line crosses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.generated_fitting import Fitting, Search, crossings
from hypernets.generator.flat import FlatLayout
from hypernets.generator.task_loss import Ground
from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine
from metainit.domains.base import TaskBatch, Tensors
from metainit.meta.state import TaskLosses
from metainit.networks import function_of
from tests.metainit.meta.problems import SineDomain, small_siren

STEPS = 4


def quality(predict: object, query: Tensors, shared: Tensors) -> Tensor:
    return -DOMAIN.query_loss(predict, query, shared)  # type: ignore[arg-type]


DOMAIN = SineDomain()
TASKS = DOMAIN.tasks(0, 0, 3)


def ground_of(routine: AdaptationRoutine | None, sizes: Tensors | None = None) -> tuple[Ground, nn.Module]:
    network = small_siren()
    base = {name: value.detach() for name, value in network.named_parameters()}
    return Ground(DOMAIN, function_of(network), base, FlatLayout.of(base), routine, sizes), network


def by_hand(
    ground: Ground, network: nn.Module, task: TaskBatch, delta: Tensor, routine: AdaptationRoutine
) -> list[float]:
    """The quality after each step of the library's own adaptation, one task at a time."""
    losses = TaskLosses(DOMAIN, function_of(network), task, batched=False)
    query = {k: v[0] for k, v in task.query.items()}
    walk = trajectory(losses, ground.moved(delta), routine, ground.step_sizes or {}, STEPS)
    return [float(quality(ground.function(weights), query, task.shared)) for weights in walk]


def require_same(ground: Ground, network: nn.Module, routine: AdaptationRoutine, found: object) -> None:
    deltas = deltas_of(ground)
    expected = [by_hand(ground, network, t, d, routine) for t, d in zip(TASKS, deltas, strict=True)]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-6)


def deltas_of(ground: Ground) -> Tensor:
    kind = next(iter(ground.base.values())).dtype
    drawn = torch.randn(len(TASKS), ground.layout.size, generator=torch.Generator().manual_seed(0))
    return 0.01 * drawn.to(kind)


@pytest.mark.parametrize("at_once", [1, 256])
def test_adam_is_that_of_adaptation(at_once: int) -> None:
    ground, network = ground_of(None)
    found = Fitting(ground, TASKS, quality, STEPS, at_once).adam(deltas_of(ground), 3e-3)
    require_same(ground, network, AdaptationRoutine(optimizer="adam", steps=STEPS, step_size=3e-3), found)


def test_the_routine_is_that_of_adaptation_and_the_last_learned_step_size_goes_on() -> None:
    bare, _ = ground_of(None)
    drawn = torch.Generator().manual_seed(1)
    per_tensor = {name: [0.02, 0.01] for name in bare.layout.names}
    sizes = {
        name: 0.02 * torch.rand(2, *value.shape, generator=drawn).to(value)
        for name, value in bare.base.items()
    }
    for routine, learned in (
        (AdaptationRoutine(steps=STEPS, step_size=0.01), None),
        (AdaptationRoutine(steps=STEPS, step_size=0.01, per_tensor=per_tensor), None),
        (AdaptationRoutine(steps=STEPS, step_size=0.01, per_parameter=True), sizes),
    ):
        ground, network = ground_of(routine, learned)
        found = Fitting(ground, TASKS, quality, STEPS).routine(deltas_of(ground))
        require_same(ground, network, routine, found)


def test_crossings_lie_where_the_line_between_two_steps_does() -> None:
    curves = np.array(
        [
            [26.0, 20.0, 20.0, 20.0],  # there before any step
            [10.0, 20.0, 30.0, 40.0],  # halfway from 1 to 2
            [10.0, 25.0, 20.0, 30.0],  # the first time, exactly at 1
            [10.0, 11.0, 12.0, 13.0],  # never
            [-math.inf, 24.0, 26.0, 20.0],
            [-math.inf, 30.0, 30.0, 30.0],  # from nowhere: a whole step
        ]
    )
    assert crossings(curves, 25.0).tolist() == [0.0, 1.5, 1.0, 6.0, 1.5, 1.0]


def test_the_step_size_is_looked_for_beyond_the_grid() -> None:
    assert Search().best(lambda rate: -abs(math.log(rate / 1.0))) == pytest.approx(1.0, rel=0.01)
    assert Search().best(lambda rate: -abs(math.log(rate / 1e-5))) == pytest.approx(1e-5, rel=0.01)
