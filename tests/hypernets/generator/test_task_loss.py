"""The task loss against closed forms, the steps that adaptation takes, and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hypernets.generator.flat import FlatLayout
from hypernets.generator.mean import TaskLoss
from hypernets.generator.task_loss import Ground, task_loss_of
from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine
from metainit.domains.base import TaskBatch
from metainit.errors import RecipeError
from metainit.meta.state import TaskLosses
from metainit.networks import Siren, function_of
from tests.metainit.meta.problems import QuadraticDomain, SineDomain, ToyDomain, linear_map, small_siren

TASKS, STEP = 5, 0.1


def ground_of(
    domain: ToyDomain,
    network: torch.nn.Module,
    routine: AdaptationRoutine | None = None,
    sizes: dict[str, Tensor] | None = None,
) -> Ground:
    base = {name: value.detach() for name, value in network.named_parameters()}
    return Ground(domain, function_of(network), base, FlatLayout.of(base), routine, sizes)


def sgd(steps: int, **more: object) -> AdaptationRoutine:
    return AdaptationRoutine.model_validate({"steps": steps, "step_size": STEP} | more)


def drawn(rows: int, size: int, scale: float = 0.3) -> Tensor:
    return scale * torch.randn(rows, size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def ends(weights: Tensor, tasks: TaskBatch, steps: int) -> Tensor:
    """Where gradient descent on quadratics ends, in closed form: c + (1 - s A)^k (w - c), ``(T, n, 1)``."""
    forms, centres = tasks.support["A"], tasks.support["c"]
    shrink = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - STEP * forms, steps)
    return centres + shrink @ (weights.unsqueeze(-1) - centres)


def quadratic(weights: Tensor, tasks: TaskBatch) -> Tensor:
    away = weights - tasks.query["c"]
    return 0.5 * (away.mT @ tasks.query["A"] @ away).reshape(-1)


@pytest.mark.parametrize("after", [(0,), (3,), (0, 1, 3)])
def test_it_is_the_closed_form_of_a_linear_network(after: tuple[int, ...]) -> None:
    domain, network = QuadraticDomain(), linear_map()
    tasks, base = domain.tasks(0, 0, TASKS), network.weight.detach()
    loss = task_loss_of(ground_of(domain, network, sgd(3)), tasks, after)
    deltas, indices = drawn(3, 4), torch.tensor([4, 0, 2])
    expected = torch.zeros(3, dtype=torch.float64)
    for steps in after:
        typical = quadratic(ends(base.expand(TASKS, -1), tasks, steps), tasks).mean()
        everywhere = ends((base + deltas), picked(tasks, indices), steps)
        expected += (quadratic(everywhere, picked(tasks, indices)) / typical).log() / len(after)
    torch.testing.assert_close(loss(deltas, indices), expected, rtol=1e-9, atol=1e-9)


def picked(tasks: TaskBatch, indices: Tensor) -> TaskBatch:
    return TaskBatch(
        {k: v[indices] for k, v in tasks.support.items()},
        {k: v[indices] for k, v in tasks.query.items()},
        tasks.shared,
        tuple(tasks.ids[i] for i in indices.tolist()),
    )


PER_TENSOR = {"layers.0.weight": [0.02, 0.05], "layers.1.bias": [0.1]}
ROUTINES: dict[str, Callable[[Siren], tuple[AdaptationRoutine, dict[str, Tensor]]]] = {
    "plain": lambda network: (sgd(3), {}),
    "per tensor": lambda network: (sgd(3, per_tensor=PER_TENSOR), {}),
    "per parameter": lambda network: (
        sgd(3, per_parameter=True),
        {n: 0.1 * torch.rand(3, *p.shape, dtype=p.dtype) for n, p in network.named_parameters()},
    ),
    "head": lambda network: (sgd(3, adapts=("layers.1.weight", "layers.1.bias")), {}),
    "decay": lambda network: (sgd(3, weight_decay=0.5), {}),
}


@pytest.mark.parametrize("row", list(ROUTINES))
def test_it_is_the_query_loss_after_the_steps_that_adaptation_takes(row: str) -> None:
    torch.manual_seed(0)
    domain, network = SineDomain(points=8), small_siren()
    routine, sizes = ROUTINES[row](network)
    tasks = domain.tasks(0, 0, 2)
    ground = ground_of(domain, network, routine, sizes)
    deltas = drawn(2, ground.layout.size, 0.05)
    after = (1, 3)

    def reached(delta: Tensor, task: TaskBatch) -> Tensor:
        losses = TaskLosses(domain, ground.function, task, batched=False)
        ways = list(trajectory(losses, ground.moved(delta), routine, sizes, 3))
        query = {k: v[0] for k, v in task.query.items()}
        return torch.stack(
            [domain.query_loss(ground.function(ways[k]), query, task.shared).detach() for k in after]
        )

    still = torch.zeros(ground.layout.size, dtype=torch.float64)
    typical = torch.stack([reached(still, task) for task in tasks]).mean(0)
    found = torch.stack([reached(delta, task) for delta, task in zip(deltas, tasks, strict=True)])
    expected = (found / typical).log().mean(-1)
    torch.testing.assert_close(
        task_loss_of(ground, tasks, after)(deltas, torch.arange(2)), expected, rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("after", [(0,), (0, 2)])
def test_its_gradient_is_that_of_finite_differences(after: tuple[int, ...]) -> None:
    domain = SineDomain(points=8)
    network = Siren(1, 1, width=3, depth=2, omega=2.0, omega_first=2.0).double()
    network.reset_sine_parameters(torch.Generator().manual_seed(1))
    loss: TaskLoss = task_loss_of(ground_of(domain, network, sgd(2)), domain.tasks(0, 0, 3), after)
    deltas = drawn(2, sum(p.numel() for p in network.parameters())).requires_grad_()
    assert torch.autograd.gradcheck(lambda d: loss(d, torch.tensor([2, 0])), deltas)


def test_the_base_itself_is_worth_nothing_on_average_and_half_the_loss_the_same_everywhere() -> None:
    domain, network = QuadraticDomain(), linear_map()
    one = domain.tasks(0, 0, 1)
    loss = task_loss_of(ground_of(domain, network), one)
    at = torch.tensor([0])
    assert float(loss(torch.zeros(1, 4, dtype=torch.float64), at)) == pytest.approx(0)
    towards = one.query["c"][0, :, 0] - network.weight.detach()
    # A quadratic at half the way is a quarter as high, at three quarters a sixteenth.
    for way, expected in ((0.5, 0.25), (0.75, 0.0625)):
        assert float(loss(way * towards, at).exp()) == pytest.approx(expected)
    assert torch.isfinite(loss(towards, at)).all()


WRONG = [
    (None, (1,), "1 steps, but the base has no routine"),
    (sgd(2), (0, 3), "3 steps, but the base has 2 steps of sgd"),
    (sgd(2, optimizer="adam"), (1,), "2 steps of adam"),
    (sgd(2, minibatch=3), (1,), "parts of the support, or changes them"),
    (sgd(2, augmentation=0.5), (1,), "parts of the support, or changes them"),
    (sgd(2), (), r"after \(\) steps"),
    (sgd(2), (-1,), r"after \(-1,\) steps"),
]


@pytest.mark.parametrize(("routine", "after", "text"), WRONG)
def test_steps_that_cannot_be_unrolled_are_refused(
    routine: AdaptationRoutine | None, after: tuple[int, ...], text: str
) -> None:
    domain, network = QuadraticDomain(), linear_map()
    with pytest.raises(RecipeError, match=text):
        task_loss_of(ground_of(domain, network, routine), domain.tasks(0, 0, 2), after)
