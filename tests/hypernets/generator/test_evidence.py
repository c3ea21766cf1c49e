"""Evidence of starts with weights of their own for each task: what is right by construction wins."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from hypernets.generator.evidence import (
    ROUTINE,
    Given,
    GivenStart,
    best_setting,
    measure_given,
    quality_after,
    rendered,
)
from hypernets.generator.flat import FlatLayout
from hypernets.generator.task_loss import Ground
from metainit.card import AdaptationRoutine
from metainit.domains.base import TaskBatch
from metainit.errors import DataError
from metainit.evidence.record import EvidenceRecord
from metainit.networks import function_of
from tests.metainit.evidence.toys import Bowls, Level

CENTRES = [0.5, -1.0, 2.0, 1.5, -0.7, 0.9]
EXACT = 100.0
"""The PSNR of a bowl's centre."""
ROUTINES = {True: AdaptationRoutine(steps=1, step_size=1.0), False: None}


def ground_of(routine: AdaptationRoutine | None) -> tuple[Ground, Level]:
    network = Level()
    base = {name: value.detach() for name, value in network.named_parameters()}
    domain = Bowls([1.0] * len(CENTRES), CENTRES)
    return Ground(domain, function_of(network), base, FlatLayout.of(base), routine), network


def right(tasks: TaskBatch, seed: int) -> Tensor:
    return tasks.query["c"].unsqueeze(-1)


def still(tasks: TaskBatch, seed: int) -> Tensor:
    return torch.zeros(len(tasks), 1, dtype=torch.float64)


def off(tasks: TaskBatch, seed: int) -> Tensor:
    return right(tasks, seed) + 0.1 * (1 + seed)


def measured(
    give: Given = right, routine: bool = True, seeds: tuple[int, ...] = (0, 1), **settings: object
) -> EvidenceRecord:
    ground, network = ground_of(ROUTINES[routine])
    starts = [
        GivenStart("sample", "candidate", give, seeded=give is off),
        GivenStart("prior", "control", still, seeded=False),
    ]
    tuning, test = ground.domain.tasks(0, 1, 3), ground.domain.tasks(0, 0, 3)
    chosen = {"steps": (0, 1), "headline": 0, **settings}
    return measure_given(starts, ground, network, tuning, test, seeds=seeds, **chosen)  # type: ignore[arg-type]


def curves(record: EvidenceRecord) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    return {c.source: np.array(c.values) for c in record.curves}


def test_what_is_right_by_construction_wins_before_any_step() -> None:
    record = measured()
    found = curves(record)
    np.testing.assert_allclose(found["sample"][:, :, 0], EXACT)
    expected = [-10 * math.log10(c * c + 1e-10) for c in CENTRES[:3]]
    np.testing.assert_allclose(found["prior"][:, :, 0], [expected, expected], rtol=1e-6, atol=1e-6)
    assert record.headline is not None and record.headline.control.startswith("prior")
    assert record.headline.steps == 0 and record.headline.value == pytest.approx(EXACT)
    assert record.headline.gain == pytest.approx(EXACT - np.mean(expected))
    assert record.task_ids == ["bowl-0", "bowl-1", "bowl-2"]


def test_every_start_is_measured_with_the_routine_of_the_base_too() -> None:
    record = measured(off)
    roles = {c.source: c.role for c in record.curves}
    assert roles == {
        "sample": "source",
        "sample" + ROUTINE: "candidate",
        "prior": "control",
        "prior" + ROUTINE: "control",
    }
    # One step of size 1 on curvature 1 ends at the centre, wherever it began.
    found = curves(record)
    for name in ("sample" + ROUTINE, "prior" + ROUTINE):
        np.testing.assert_allclose(found[name][:, :, 1], EXACT)
    assert {c.source for c in measured(routine=False).curves} == {"sample", "prior"}


def test_what_depends_on_the_seed_is_measured_for_each_and_what_does_not_is_the_same() -> None:
    found = curves(measured(off, seeds=(0, 1, 2)))
    at_once = found["sample"][:, :, 0]
    np.testing.assert_allclose(at_once, [[-20 * math.log10(0.1 * (1 + s))] * 3 for s in range(3)], rtol=1e-4)
    assert found["prior"].shape == (3, 3, 2) and (found["prior"] == found["prior"][:1]).all()


def test_the_headlines_number_of_steps_is_measured_whether_it_was_asked_for_or_not() -> None:
    record = measured(steps=(0,), headline=2)
    assert record.steps == [0, 2] and record.headline is not None and record.headline.steps == 2
    own = measured(steps=(0, 2), headline=None)
    assert own.steps == [0, 1, 2] and own.headline is not None and own.headline.steps == 1
    without = measured(routine=False, steps=(0, 2), headline=None)
    assert without.headline is not None and without.headline.steps == 2


@pytest.mark.parametrize(("steps", "count"), [((), 3), ((0, 1), 0)])
def test_there_have_to_be_steps_and_tasks(steps: tuple[int, ...], count: int) -> None:
    ground, network = ground_of(None)
    tuning, test = ground.domain.tasks(0, 1, 3), ground.domain.tasks(0, 0, 3)
    with pytest.raises(DataError, match="evidence needs steps"):
        measure_given([], ground, network, tuning, test[:count], steps=steps)


def test_what_is_rendered_is_that_of_base_plus_delta() -> None:
    ground, _ = ground_of(None)
    tasks = ground.domain.tasks(0, 0, 3)
    shown = rendered(ground, right(tasks, 0), tasks)
    assert shown.reshape(-1).tolist() == CENTRES[:3]


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_quality_is_that_after_steps_of_the_own_routine(steps: int) -> None:
    ground, network = ground_of(AdaptationRoutine(steps=1, step_size=0.5))
    tasks = ground.domain.tasks(0, 0, 3)
    # Curvature 1: a step of 0.5 halves what a start is off by.
    expected = -20 * math.log10(0.1 * 0.5**steps)
    assert quality_after(ground, network, tasks, off(tasks, 0), steps) == pytest.approx(expected, abs=1e-3)


def test_without_a_routine_quality_is_that_with_the_best_optimizer() -> None:
    ground, network = ground_of(None)
    tasks = ground.domain.tasks(0, 0, 3)
    assert quality_after(ground, network, tasks, off(tasks, 0), 0) == pytest.approx(20, abs=1e-3)
    assert quality_after(ground, network, tasks, off(tasks, 0), 5) > 60


def test_a_setting_is_chosen_after_the_steps_and_not_before() -> None:
    network = Level()
    base = {name: value.detach() for name, value in network.named_parameters()}
    # One step of size 1 solves the first bowl from anywhere, and leaves the second nearly where it was.
    domain = Bowls([1.0, 0.1], [0.0, 0.0])
    routine = AdaptationRoutine(steps=1, step_size=1.0)
    ground = Ground(domain, function_of(network), base, FlatLayout.of(base), routine)
    away = {1.0: (1.0, 0.1), 2.0: (0.1, 0.5)}

    def make(setting: tuple[float, ...]) -> Given:
        return lambda tasks, seed: torch.tensor(away[setting[0]], dtype=torch.float64)[:, None]

    found = {
        steps: best_setting([(1.0, 2.0)], make, ground, network, domain.tasks(0, 0, 2), steps, extensions=0)
        for steps in (0, 1)
    }
    assert found == {0: (2.0,), 1: (1.0,)}
