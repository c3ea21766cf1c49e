"""The outer loop: its schedule, its averaging, its state, and what it does when training diverges."""

import math
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor

from metainit.errors import CheckpointError, DivergenceError
from metainit.meta.engine import task_threads
from metainit.meta.outer import (
    AlgorithmConfig,
    OuterConfig,
    OuterLoop,
    initial_meta_parameters,
    routine_of,
    schedule_factor,
)
from metainit.meta.state import MetaGradient, MetaParameters
from tests.metainit.meta.problems import RULES, SineDomain, algorithm, gradient_of, small_siren, start_of


def loop_of(row: str = "meta_sgd-2-parameter", **outer: Any) -> OuterLoop:
    config = algorithm(row)
    settings = {"steps": 20, "warm_up": 3, "averaging": 0.9, **outer}
    return OuterLoop(start_of(small_siren(), config), OuterConfig(**settings), config)


def advance(loop: OuterLoop, steps: int) -> OuterLoop:
    domain, network = SineDomain(), small_siren()
    for _ in range(steps):
        batch = domain.tasks(0, loop.step, 2)
        loop.apply(gradient_of(loop.algorithm, domain, network, loop.meta, batch, "vmap"))
    return loop


def as_bytes(loop: OuterLoop) -> dict[str, bytes]:
    return {k: v.numpy().tobytes() for k, v in loop.state().items()}


def summed(loop: OuterLoop, value: float, tasks: int = 2) -> MetaGradient:
    """A meta-gradient whose mean over the tasks is `value` everywhere."""
    parts = ({k: torch.full_like(v, value * tasks) for k, v in part.items()} for part in loop.meta)
    return MetaGradient(*parts, loss=torch.tensor(3.0 * tasks), tasks=tasks)


def test_the_schedule_is_a_linear_warm_up_and_a_half_cosine() -> None:
    config = OuterConfig(steps=110, warm_up=10)
    assert [schedule_factor(config, k) for k in range(10)] == [(k + 1) / 10 for k in range(10)]
    expected = {10: 1.0, 60: 0.505, 110: 0.01, 35: 0.01 + 0.495 * (1 + math.sqrt(0.5))}
    for step, factor in expected.items():
        assert schedule_factor(config, step) == pytest.approx(factor, rel=1e-12)
    assert schedule_factor(config, 10_000) == pytest.approx(0.01)
    assert schedule_factor(OuterConfig(steps=5, warm_up=50), 60) == pytest.approx(0.01)


def test_the_constant_schedule_has_only_the_warm_up() -> None:
    config = OuterConfig(steps=10, warm_up=2, schedule="constant")
    assert [schedule_factor(config, k) for k in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_the_first_step_is_adams() -> None:
    """Adam's first step has the length of the step size, whatever the gradient's."""
    loop = loop_of(warm_up=4, step_size=0.01, step_size_rate=0.5, averaging=0.0, clip=None)
    before = loop.result()
    assert loop.apply(summed(loop, 7.0)) == 3.0
    sizes = {"weights": 0.01 / 4, "step_sizes": 0.5 * loop.algorithm.inner_step_size / 4}
    for kind, size in sizes.items():
        for name, value in getattr(loop.result(), kind).items():
            moved = getattr(before, kind)[name] - value
            torch.testing.assert_close(moved, torch.full_like(moved, size), rtol=1e-6, atol=0)


def adam(slopes: list[float], step_size: float) -> float:
    """Adam with betas of 0.9 and 0.99 on one number that starts at 0."""
    value = first = second = 0.0
    for k, slope in enumerate(slopes, start=1):
        first = 0.9 * first + 0.1 * slope
        second = 0.99 * second + 0.01 * slope**2
        value -= step_size * (first / (1 - 0.9**k)) / (math.sqrt(second / (1 - 0.99**k)) + 1e-8)
    return value


def scalar_loop(**outer: Any) -> OuterLoop:
    config = AlgorithmConfig(rule="maml", step_sizes="fixed")
    settings = {"steps": 10, "warm_up": 0, "schedule": "constant", "step_size": 0.1, **outer}
    start = MetaParameters({"w": torch.zeros(4, dtype=torch.float64)}, {})
    return OuterLoop(start, OuterConfig(**settings), config)


def push(loop: OuterLoop, slope: float) -> float:
    gradient = MetaGradient({"w": torch.full((4,), slope, dtype=torch.float64)}, {}, torch.tensor(1.0), 1)
    return loop.apply(gradient)


def test_clipping_scales_a_long_gradient_to_the_bound() -> None:
    """Four equal entries of s have the norm 2 s; a bound of 1 makes them 1/2 where s is larger."""
    slopes = [0.25, 3.0, -8.0, 0.1]
    loop, free = scalar_loop(clip=1.0), scalar_loop(clip=None)
    for slope in slopes:
        push(loop, slope)
        push(free, slope)
    clipped = [max(-0.5, min(0.5, slope)) for slope in slopes]
    assert float(loop.meta.weights["w"][0]) == pytest.approx(adam(clipped, 0.1), rel=1e-9)
    assert float(free.meta.weights["w"][0]) == pytest.approx(adam(slopes, 0.1), rel=1e-9)


def test_averaging_is_the_moving_average_of_the_weights() -> None:
    loop, expected = scalar_loop(averaging=0.8), 0.0
    for step in range(1, 8):
        push(loop, 1.0 / step)
        decay = min(0.8, step / (step + 10))
        expected = decay * expected + (1 - decay) * float(loop.meta.weights["w"][0])
    assert float(loop.result().weights["w"][0]) == pytest.approx(expected, rel=1e-12)
    assert float(loop.result().weights["w"][0]) != float(loop.meta.weights["w"][0])


def test_without_averaging_the_result_is_the_last_weights() -> None:
    loop = advance(loop_of(averaging=0.0), 2)
    for mine, other in zip(loop.result(), loop.meta, strict=True):
        assert all(torch.equal(v, other[k]) for k, v in mine.items())


def test_a_zero_gradient_is_no_accident() -> None:
    loop = loop_of()
    before = loop.result()
    assert loop.apply(summed(loop, 0.0)) == 3.0
    assert all(torch.equal(v, before.weights[k]) for k, v in loop.result().weights.items())


@pytest.mark.parametrize("row", RULES)
@pytest.mark.parametrize("saved_at", [0, 1, 4])
def test_a_restored_run_ends_with_the_same_bytes(row: str, saved_at: int) -> None:
    whole = advance(loop_of(row), 6)
    stored = safetensors.torch.save(advance(loop_of(row), saved_at).state())
    resumed = loop_of(row)
    resumed.restore(safetensors.torch.load(stored))
    assert resumed.step == saved_at
    assert as_bytes(advance(resumed, 6 - saved_at)) == as_bytes(whole)
    first, second = whole.result(), resumed.result()
    for mine, other in zip(first, second, strict=True):
        assert all(torch.equal(v, other[k]) for k, v in mine.items())


def test_a_state_is_a_copy() -> None:
    loop = loop_of()
    saved = {k: v.clone() for k, v in loop.state().items()}
    kept = loop.state()
    advance(loop, 1)
    assert all(torch.equal(v, kept[k]) for k, v in saved.items())


def another_shape(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**saved, "value.3": torch.zeros(5)}


def without_the_last_tensor(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    last = max(int(k.split(".")[1]) for k in saved if k.startswith("value."))
    return {k: v for k, v in saved.items() if k != f"value.{last}"}


def with_a_tensor_more(saved: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**saved, "value.99": torch.zeros(5)}


@pytest.mark.parametrize(
    "spoil",
    [
        another_shape,
        without_the_last_tensor,
        with_a_tensor_more,
        lambda saved: {k: v for k, v in saved.items() if k != "step"},
        lambda saved: {k: v for k, v in saved.items() if k != "average.5"},
        lambda saved: {k: v for k, v in saved.items() if k != "adam.exp_avg.5"},
        lambda saved: {},
    ],
    ids=["shape", "missing", "more", "no step", "no average", "no moment", "empty"],
)
def test_a_state_of_another_recipe_is_refused_and_changes_nothing(spoil) -> None:
    saved = spoil(advance(loop_of(), 3).state())
    loop = advance(loop_of(), 1)
    before = as_bytes(loop)
    with pytest.raises(CheckpointError, match="does not fit"):
        loop.restore(saved)
    assert as_bytes(loop) == before


def test_restoring_an_untouched_state_forgets_what_was_learned() -> None:
    fresh, loop = loop_of().state(), advance(loop_of(), 3)
    loop.restore(fresh)
    assert as_bytes(advance(loop, 2)) == as_bytes(advance(loop_of(), 2))


@pytest.mark.parametrize("where", ["weights", "step_sizes", "loss"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_leaves_the_state_untouched_and_says_what_to_lower(where: str, bad: float) -> None:
    loop = advance(loop_of(), 2)
    before = as_bytes(loop)
    gradient = summed(loop, 1.0)
    if where == "loss":
        gradient = gradient._replace(loss=torch.tensor(bad))
    else:
        getattr(gradient, where)["layers.1.weight"].view(-1)[3] = bad
    with pytest.raises(DivergenceError, match="outer step 2.*inner_step_size.*outer.step_size"):
        loop.apply(gradient)
    assert as_bytes(loop) == before
    assert loop.apply(summed(loop, 1.0)) == 3.0


@pytest.mark.parametrize("row", RULES)
def test_the_routine_says_what_was_learned(row: str) -> None:
    config = algorithm(row)
    network = small_siren()
    meta = start_of(network, config, spread=0.5)
    routine = routine_of(meta, config, config.inner(network))
    assert (routine.optimizer, routine.steps, routine.step_size) == ("sgd", 3, 0.05)
    assert routine.per_parameter == row.endswith("parameter")
    expected = {k: v.tolist() for k, v in meta.step_sizes.items()} if row.endswith("tensor") else {}
    assert routine.per_tensor == expected
    assert routine.adapts == (("layers.2.weight", "layers.2.bias") if "head" in row else ())
    assert (routine.minibatch, routine.augmentation) == ((12, 0.5) if "varied" in row else (None, 0.0))


def test_step_sizes_start_where_the_recipe_says() -> None:
    network = small_siren()
    for row, shape in (("meta_sgd-1-tensor", ()), ("meta_sgd-1-parameter", (16, 16))):
        sizes = initial_meta_parameters(network, algorithm(row)).step_sizes["layers.1.weight"]
        assert sizes.shape == (3, *shape) and sizes.dtype == torch.float64
        assert bool((sizes == 0.05).all())
    assert initial_meta_parameters(network, algorithm("maml")).step_sizes == {}


@pytest.mark.parametrize(
    "wrong,says",
    [
        ({"rule": "meta_sgd", "step_sizes": "fixed"}, "set step_sizes to tensor or parameter"),
        ({"rule": "maml", "step_sizes": "tensor"}, "set step_sizes to fixed"),
        ({"rule": "mamml", "step_sizes": "fixed"}, "did you mean 'maml'"),
        ({"inner_steps": 0}, "greater than or equal to 1"),
        ({"inner_step_size": 0}, "greater than 0"),
        ({"inner_stepsize": 1}, "not permitted"),
    ],
)
def test_algorithms_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        AlgorithmConfig(**wrong)


def test_threads_a_task_leave_the_callers_threads_alone() -> None:
    before = torch.get_num_threads()
    with task_threads(3) as pool:
        assert set(pool.map(lambda _: torch.get_num_threads(), range(12))) == {1}
    assert torch.get_num_threads() == before
