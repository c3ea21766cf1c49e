"""Curves, and the search for a start's best optimizer and step size."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Continuation
from metainit.domains.base import TaskBatch
from metainit.evidence.curves import (
    ADAM_GRID,
    FINALISTS,
    GRID_RATIO,
    SGD_GRID,
    WORST,
    Bench,
    Start,
    bench,
    best_routines,
    load_weights,
    tuned_curve,
    weights_of,
)
from metainit.meta.engine import task_threads
from metainit.meta.state import TaskLosses
from metainit.networks import build, function_of
from tests.metainit.evidence.toys import NETWORK, Bowls, Level, blob_domain


def bowls(curvature: float, centres: tuple[float, ...] = (0.3, -0.8, 1.7)) -> Bench:
    return Bench(Level(), Bowls([curvature] * len(centres), centres))


def from_zero() -> Start:
    return Start("zero", weights_of(Level()))


def all_of(on: Bench) -> TaskBatch:
    return on.domain.tasks(0, 0, on.domain.size("test") or 0, "test")


@pytest.mark.parametrize("halves", [-7, -3, 0, 3, 6, 9, 13])
def test_the_step_size_is_found_however_far_from_the_grid_it_lies(halves: int) -> None:
    """One gradient step of 1/h is exact, which nothing else is: neither Adam nor a size beside it."""
    best = SGD_GRID[0] * GRID_RATIO**halves
    on, tried = bowls(1 / best), []
    found = best_routines(on, [from_zero()], all_of(on), [1], progress=tried.append)
    assert (found[1].optimizer, found[1].steps) == ("sgd", 1)
    assert found[1].step_size == pytest.approx(best, rel=1e-9)
    sizes = sorted(float(m[1]) for text in tried if (m := re.fullmatch(r"zero: sgd (\S+), 3 tasks", text)))
    assert len(sizes) == len(set(sizes))  # nothing is tried twice
    assert sizes[0] < 0.9 * best and sizes[-1] > 1.1 * best  # its neighbours were tried, so it is no edge


@pytest.mark.parametrize("halves", [-4, 2, 9])
def test_adams_step_size_is_found_too(halves: int) -> None:
    """Adam's first step has its own length whatever the slope, and the slopes differ a millionfold here."""
    best = ADAM_GRID[0] * GRID_RATIO**halves
    on = Bench(Level(), Bowls([1e-3, 1.0, 1e3], [best, -best, best]))
    found = best_routines(on, [from_zero()], all_of(on), [1])
    assert found[1].optimizer == "adam"
    assert found[1].step_size == pytest.approx(best, rel=1e-9)


def test_each_number_of_steps_has_its_own_best_step_size() -> None:
    r"""On :math:`h w^2 / 2` of two curvatures one step wants a size between both inverses; many want less."""
    on = Bench(Level(), Bowls([1.0, 19.0], [1.0, 1.0]))
    found = best_routines(on, [from_zero()], all_of(on), [1, 60])
    batch, start = all_of(on), from_zero()
    for steps, routine in found.items():
        mine = on.curve(start, routine, batch, [steps])["psnr"].mean()
        for other in (*SGD_GRID, *ADAM_GRID):
            for optimizer in ("sgd", "adam"):
                theirs = AdaptationRoutine.model_validate(
                    {"optimizer": optimizer, "steps": steps, "step_size": other}
                )
                assert mine >= on.curve(start, theirs, batch, [steps])["psnr"].mean()
    assert found[1] != found[60].model_copy(update={"steps": 1})


def test_a_fit_that_diverges_scores_worst_from_there_on_and_spoils_no_other() -> None:
    on = Bench(Level(), Bowls([1.0, 1e200], [0.5, 0.5]))
    routine = AdaptationRoutine(steps=5, step_size=1.0)
    found = on.curve(from_zero(), routine, all_of(on), [0, 1, 2, 5])
    assert found["psnr"][1].tolist()[1:] == pytest.approx([WORST] * 3)
    assert found["psnr"][0].tolist() == pytest.approx([-10 * math.log10(0.25 + 1e-10), 100, 100, 100])
    assert found["psnr"][1, 0] == found["psnr"][0, 0]
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize("order", [(1.0, 1e300), (1e300, 1.0)])
def test_a_fit_may_diverge_before_the_first_reported_step(order: tuple[float, float]) -> None:
    on = Bench(Level(), Bowls(order, [1e10, 1e10]))
    routine = AdaptationRoutine(steps=5, step_size=1.0)
    found = on.curve(from_zero(), routine, all_of(on), [3, 5])
    sane, lost = (0, 1) if order[0] == 1 else (1, 0)
    assert found["psnr"][lost].tolist() == [WORST, WORST]
    assert found["psnr"][sane].min() > 50
    assert set(found) == {"psnr", "ssim"}


def test_where_every_fit_diverges_everything_is_worst() -> None:
    on = Bench(Level(), Bowls([1e300], [1e10]))
    found = on.curve(from_zero(), AdaptationRoutine(steps=5, step_size=1.0), all_of(on), [3, 5])
    assert found["psnr"].tolist() == [[WORST, WORST]]


def test_divergence_loses_the_search() -> None:
    """Ten steps of a size beyond 2/h leave the finite numbers; the search has to come back from there."""
    on = bowls(1e60)
    found = best_routines(on, [from_zero()], all_of(on), [10])
    reached = on.curve(from_zero(), found[10], all_of(on), [10])["psnr"]
    assert reached.min() > WORST


def test_horizons_share_runs_and_equal_runs_of_their_own() -> None:
    domain = blob_domain()
    network = build(NETWORK)
    on = Bench(network, domain)
    start = Start("default", weights_of(network))
    steps = [0, 1, 2, 4, 7]
    test, tuning = domain.tasks(0, 0, 4, "test"), domain.tasks(0, 0, 3, "validation")
    found, routines = tuned_curve(on, start, tuning, test, steps)
    assert sorted(routines) == steps[1:]
    assert len({(r.optimizer, r.step_size) for r in routines.values()}) < len(routines)  # some do share
    assert routines == best_routines(on, [start], tuning, steps)
    for index, step in enumerate(steps):
        routine = routines.get(step, AdaptationRoutine(steps=0, step_size=0))
        alone = on.curve(start, routine, test, [step])
        assert set(alone) == set(found) == {"psnr", "ssim"}
        for name, values in alone.items():
            assert np.array_equal(found[name][:, index], values[:, 0])


def test_step_0_is_the_untouched_start() -> None:
    domain = blob_domain()
    network = build(NETWORK, seed=4)
    start = Start("default", weights_of(network))
    test = domain.tasks(0, 0, 3, "test")
    found, _ = tuned_curve(Bench(build(NETWORK), domain), start, test, test, [0, 1])
    for row, task in enumerate(test):
        with torch.no_grad():
            rendered = domain.render(network, {}, task.shared)
        expected = domain.metrics(rendered, {k: v[0] for k, v in task.query.items()})
        assert {k: v[row, 0] for k, v in found.items()} == dict(expected)


def test_a_curve_of_the_untouched_start_alone_needs_no_search() -> None:
    domain, network = blob_domain(), build(NETWORK)
    start = Start("default", weights_of(network))
    test = domain.tasks(0, 0, 2, "test")
    found, routines = tuned_curve(Bench(network, domain), start, test, test, [0])
    assert found["psnr"].shape == (2, 1) and routines == {}


def test_a_routine_of_its_own_is_used_as_it_is() -> None:
    on = Bench(Level(), Bowls([1.0, 4.0], [1.0, 1.0]))
    routine = AdaptationRoutine(
        steps=2, step_size=0.1, continuation=Continuation(optimizer="sgd", step_size=0.01)
    )
    start = Start("prior", weights_of(Level()), routine)
    heard: list[str] = []
    steps = [0, 1, 2, 3, 5]
    found, routines = tuned_curve(on, start, all_of(on), all_of(on), steps, heard.append)
    assert routines == {} and heard == []
    for row, curvature in enumerate((1.0, 4.0)):
        away = [
            1 - (1 - 0.1 * curvature) ** min(s, 2) * (1 - 0.01 * curvature) ** max(0, s - 2) for s in steps
        ]
        expected = [-10 * math.log10((1 - a) ** 2 + 1e-10) for a in away]
        assert found["psnr"][row].tolist() == pytest.approx(expected, rel=1e-9)


def test_learned_step_sizes_of_each_parameter_are_used() -> None:
    on = bowls(1.0, (1.0,))
    sizes = {"level": torch.tensor([[0.25], [1.0]], dtype=torch.float64)}
    routine = AdaptationRoutine(steps=2, step_size=9.0, per_parameter=True)
    found = on.curve(Start("prior", weights_of(Level()), routine, sizes), routine, all_of(on), [1, 2])
    assert found["psnr"].tolist() == [pytest.approx([-10 * math.log10(0.75**2 + 1e-10), 100.0])]


def test_threads_change_nothing() -> None:
    domain, network = blob_domain(), build(NETWORK)
    start = Start("default", weights_of(network))
    routine = AdaptationRoutine(optimizer="adam", steps=6, step_size=0.01)
    test = domain.tasks(0, 0, 6, "test")
    alone = Bench(network, domain).curve(start, routine, test, [0, 3, 6])
    with task_threads(2) as pool:
        together = Bench(network, domain, pool).curve(start, routine, test, [0, 3, 6])
    assert all(np.array_equal(alone[k], together[k]) for k in alone)


def test_many_tasks_are_fitted_on_threads_on_a_cpu() -> None:
    before = torch.get_num_threads()
    with bench(build(NETWORK), blob_domain()) as on:
        assert on.pool is not None
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with bench(build(NETWORK).to("meta"), blob_domain()) as elsewhere:
        assert elsewhere.pool is None


def test_measuring_leaves_network_and_start_alone() -> None:
    domain, network = blob_domain(), build(NETWORK)
    before = weights_of(network)
    start = Start("default", weights_of(build(NETWORK, seed=9)))
    kept = {k: v.clone() for k, v in start.weights.items()}
    Bench(network, domain).curve(
        start, AdaptationRoutine(steps=2, step_size=0.1), domain.tasks(0, 0, 2, "test"), [2]
    )
    assert all(torch.equal(v, before[k]) for k, v in weights_of(network).items())
    assert all(torch.equal(v, kept[k]) for k, v in start.weights.items())
    assert all(torch.equal(v, kept[k]) for k, v in weights_of(load_weights(network, kept)).items())


def test_a_curve_is_a_trajectory_measured() -> None:
    domain, network = blob_domain(), build(NETWORK)
    start = Start("default", weights_of(network))
    routine = AdaptationRoutine(steps=3, step_size=0.05)
    test = domain.tasks(0, 0, 2, "test")
    found = Bench(network, domain).curve(start, routine, test, [1, 3])
    function = function_of(network)
    for row, task in enumerate(test):
        losses = TaskLosses(domain, function, task, batched=False)
        walk = list(trajectory(losses, start.weights, routine, {}, 3))
        for column, step in enumerate((1, 3)):
            with torch.no_grad():
                rendered = domain.render(function(walk[step]), {}, task.shared)
            metrics = domain.metrics(rendered, {k: v[0] for k, v in task.query.items()})
            assert {k: v[row, column] for k, v in found.items()} == dict(metrics)


def test_the_tasks_are_dealt_out_among_the_draws_of_a_rule() -> None:
    """Each draw sees its own tasks: one step of 1/h is exact from wherever it begins."""
    best = SGD_GRID[3]
    on = bowls(1 / best, (0.3, -0.8, 1.7, 0.1, 2.0, -1.0))
    draws = [Start("drawn", {"level": torch.full((1,), v, dtype=torch.float64)}) for v in (0.0, 0.5, -2.0)]
    heard: list[str] = []
    found = best_routines(on, draws, all_of(on), [1], progress=heard.append)
    assert found[1].step_size == pytest.approx(best, rel=1e-9)
    assert all(text.endswith(", 3 tasks") for text in heard[:-FINALISTS])
    assert [text.rpartition(", ")[2] for text in heard[-FINALISTS:]] == ["6 tasks"] * FINALISTS


def test_a_setting_that_wins_on_few_tasks_may_lose_on_all() -> None:
    """Two of the first three bowls want a step of 1, all others one of half a decade less."""
    centres = [0.3, -0.8, 1.7, 0.1, 2.0, -1.0, 0.6, -0.4, 1.1, -2.0, 0.9, 1.4]
    on = Bench(Level(), Bowls([1.0, 1.0] + [GRID_RATIO] * 10, centres))
    few = best_routines(on, [from_zero()], all_of(on)[:3], [1])
    whole = best_routines(on, [from_zero()], all_of(on), [1])
    assert few[1].step_size == pytest.approx(1.0)
    assert whole[1].step_size == pytest.approx(1 / GRID_RATIO)


def test_an_edge_that_only_all_tasks_prefer_is_gone_beyond() -> None:
    """The first three bowls want a step inside the grid, most of the others one half a decade beyond it."""
    inside, edge, beyond = SGD_GRID[-2], SGD_GRID[-1], SGD_GRID[-1] * GRID_RATIO
    sizes = [inside, inside, *[edge] * 7, *[beyond] * 15]
    centres = [0.3, -0.8, 1.7, 0.1, 2.0, -1.0, 0.6, -0.4] * 3
    on = Bench(Level(), Bowls([1 / size for size in sizes], centres))
    few = best_routines(on, [from_zero()], all_of(on)[:3], [1])
    whole = best_routines(on, [from_zero()], all_of(on), [1])
    assert few[1].step_size == pytest.approx(inside)
    assert (whole[1].optimizer, whole[1].step_size) == ("sgd", pytest.approx(beyond))


def test_a_start_may_have_weights_of_its_own_for_each_task() -> None:
    """From each task's own solution: nothing is left to lower, before a step and after it."""
    on, centres = bowls(2.0), torch.tensor([0.3, -0.8, 1.7], dtype=torch.float64)

    def solved(task: TaskBatch) -> dict[str, torch.Tensor]:
        return {"level": task.support["c"]}

    own = Start("own", {"level": torch.zeros(1, dtype=torch.float64)}, for_task=solved)
    curves, routines = tuned_curve(on, own, all_of(on), all_of(on), [0, 1, 3])
    assert set(routines) == {1, 3}
    assert np.allclose(curves["psnr"], 100.0) and np.allclose(curves["ssim"], 1.0)
    shared = tuned_curve(on, from_zero(), all_of(on), all_of(on), [0])[0]["psnr"][:, 0]
    assert np.allclose(shared, -10 * np.log10(centres.numpy() ** 2 + 1e-10))
    threaded = Bench(on.network, on.domain, None)
    routine = AdaptationRoutine(steps=1, step_size=0.25)
    with task_threads(2) as pool:
        on_threads = Bench(on.network, on.domain, pool).curve(own, routine, all_of(on), [0, 1])
    assert np.array_equal(on_threads["psnr"], threaded.curve(own, routine, all_of(on), [0, 1])["psnr"])


def test_weights_for_each_task_beside_the_solutions_are_halved_by_a_step_of_half_the_inverse() -> None:
    on = bowls(2.0)
    off = Start("off", weights_of(Level()), for_task=lambda task: {"level": task.support["c"] + 0.5})
    found = on.curve(off, AdaptationRoutine(steps=2, step_size=0.25), all_of(on), [0, 1, 2])["psnr"]
    assert np.allclose(found, [[-20 * math.log10(0.5**k) for k in (1, 2, 3)]] * 3, atol=1e-6)
