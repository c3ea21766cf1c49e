"""Adaptation against closed forms: on a quadratic loss every step of SGD is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from metainit.adaptation import Task, trajectory
from metainit.card import AdaptationRoutine, Continuation
from metainit.domains.seeding import generator_of
from metainit.errors import DivergenceError, MismatchError, SourceError
from metainit.initialization import run_routine
from metainit.meta.state import TaskLosses
from metainit.networks import function_of
from tests.metainit.meta.problems import QuadraticDomain, SineDomain, linear_map, small_siren

DOMAIN = QuadraticDomain()


def task(index: int = 0) -> Task:
    return Task(DOMAIN, DOMAIN.tasks(0, index, 1))


def sgd(steps: int, step_size: float = 0.1, **more: object) -> AdaptationRoutine:
    return AdaptationRoutine(optimizer="sgd", steps=steps, step_size=step_size, **more)  # type: ignore[arg-type]


def known(network: nn.Linear, sizes: list[float]) -> Tensor:
    r"""The weights after steps of these sizes: :math:`c + \prod_k (I - \alpha_k A) (w - c)`."""
    support = task().batch.support
    form, centre = support["A"][0], support["c"][0]
    away = network.weight.detach().T - centre
    for size in sizes:
        away = away - size * (form @ away)
    return (centre + away).T


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_sgd_has_the_closed_form(steps: int) -> None:
    network = linear_map()
    expected = known(network, [0.1] * steps)
    adapted = run_routine(network, task(), sgd(steps), {})
    assert adapted is network
    torch.testing.assert_close(network.weight.detach(), expected, rtol=1e-12, atol=1e-14)


def test_step_sizes_learned_per_tensor_are_used_as_precisely_as_they_were_learned() -> None:
    sizes = [0.1234567890123, 0.0987654321098]
    network = linear_map()
    expected = known(network, [*sizes, sizes[-1]])
    routine = sgd(3, per_tensor={"weight": sizes})
    run_routine(network, task(), routine, {})
    torch.testing.assert_close(network.weight.detach(), expected, rtol=1e-13, atol=1e-15)


def test_equal_step_sizes_per_parameter_are_the_one_per_tensor() -> None:
    sizes = [0.3, 0.05]
    network = linear_map()
    expected = known(network, sizes)
    learned = {"weight": torch.tensor(sizes, dtype=torch.float64)[:, None, None].expand(2, 1, 4)}
    run_routine(network, task(), sgd(2, per_parameter=True), learned)
    torch.testing.assert_close(network.weight.detach(), expected, rtol=1e-12, atol=1e-14)


def test_past_its_own_steps_the_last_size_goes_on_or_the_continuation_takes_over() -> None:
    network = linear_map()
    losses = TaskLosses(DOMAIN, function_of(network), task().batch, batched=False)
    start = dict(network.named_parameters())
    routine = sgd(2, per_tensor={"weight": [0.3, 0.05]})
    *_, alone = trajectory(losses, start, routine, {}, 5)
    torch.testing.assert_close(alone["weight"], known(network, [0.3, 0.05, 0.05, 0.05, 0.05]))
    taken_over = routine.model_copy(update={"continuation": Continuation(optimizer="sgd", step_size=0.2)})
    *_, continued = trajectory(losses, start, taken_over, {}, 5)
    torch.testing.assert_close(continued["weight"], known(network, [0.3, 0.05, 0.2, 0.2, 0.2]))


def test_the_trajectory_begins_with_the_start_and_keeps_every_step() -> None:
    network = linear_map()
    losses = TaskLosses(DOMAIN, function_of(network), task().batch, batched=False)
    points = list(trajectory(losses, dict(network.named_parameters()), sgd(3), {}, 3))
    assert len(points) == 4
    for step, point in enumerate(points):
        torch.testing.assert_close(point["weight"].detach(), known(network, [0.1] * step))
    assert network.weight.grad is None


@pytest.mark.parametrize("steps", [1, 3])
def test_divergence_leaves_the_network_as_it_was_also_on_the_last_step(steps: int) -> None:
    network = linear_map()
    before = network.weight.detach().clone()
    with pytest.raises(DivergenceError, match="lower the step size"):
        run_routine(network, task(), sgd(steps, step_size=1e308), {})
    assert torch.equal(network.weight, before)


def test_a_batch_of_tasks_is_refused() -> None:
    with pytest.raises(SourceError, match="one task, got a batch of 2"):
        run_routine(linear_map(), Task(DOMAIN, DOMAIN.tasks(0, 0, 2)), sgd(1), {})


def test_data_follow_the_networks_type() -> None:
    """A float64 task on a float32 network, and learned step sizes in float64."""
    domain, network = SineDomain(), small_siren(dtype=torch.float32)
    sizes = {k: torch.full((1, *v.shape), 0.01, dtype=torch.float64) for k, v in network.named_parameters()}
    one = Task(domain, domain.tasks(0, 0, 1))
    losses: list[float] = []
    for _ in range(2):
        run_routine(network, one, sgd(3, 0.01, per_parameter=True), sizes, lambda *now: losses.append(now[2]))
    assert all(v.dtype == torch.float32 for v in network.parameters())
    assert losses == sorted(losses, reverse=True) and all(math.isfinite(loss) for loss in losses)


def test_weight_decay_is_the_gradient_of_half_the_squared_norm() -> None:
    network, decay = linear_map(), 0.3
    support = task().batch.support
    form, centre = support["A"][0], support["c"][0]
    expected = network.weight.detach().T.clone()
    for _ in range(3):
        expected = expected - 0.1 * (form @ (expected - centre) + decay * expected)
    run_routine(network, task(), sgd(3, weight_decay=decay), {})
    torch.testing.assert_close(network.weight.detach().T, expected, rtol=1e-12, atol=1e-14)


class Shaken(QuadraticDomain):
    """A domain that moves the centre of a task where its coin says so."""

    def augmented(
        self, support: dict[str, Tensor], generator: torch.Generator, probability: float
    ) -> dict[str, Tensor]:
        moved = torch.rand((), generator=generator) < probability
        shift = torch.rand(support["c"].shape, generator=generator, dtype=torch.float64)
        return {**support, "c": support["c"] + shift * moved}


def test_augmentation_changes_the_support_of_each_step_by_the_step_alone() -> None:
    domain, network = Shaken(), linear_map()
    support = task().batch.support
    form, centre = support["A"][0], support["c"][0]
    expected = network.weight.detach().T.clone()
    for step in range(4):
        seen = domain.augmented({"c": centre}, generator_of("augmentation", 0, step), 0.5)
        expected = expected - 0.1 * form @ (expected - seen["c"])
    run_routine(network, Task(domain, task().batch), sgd(4, augmentation=0.5), {})
    torch.testing.assert_close(network.weight.detach().T, expected, rtol=1e-12, atol=1e-14)


def test_augmented_tasks_are_adapted_alike_alone_and_at_once() -> None:
    domain, network = Shaken(), linear_map()
    batch, routine = domain.tasks(0, 0, 3), sgd(4, augmentation=0.7)
    weights = {k: v.detach() for k, v in network.named_parameters()}
    *_, at_once = trajectory(TaskLosses(domain, function_of(network), batch, True), weights, routine, {}, 4)
    for index, one in enumerate(batch):
        *_, alone = trajectory(TaskLosses(domain, function_of(network), one, False), weights, routine, {}, 4)
        torch.testing.assert_close(at_once["weight"][index], alone["weight"], rtol=1e-12, atol=1e-14)


def test_augmentation_that_the_domain_cannot_do_is_refused() -> None:
    with pytest.raises(MismatchError, match="QuadraticDomain has no labelled examples"):
        run_routine(linear_map(), task(), sgd(1, augmentation=0.5), {})
