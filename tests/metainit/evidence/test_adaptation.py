"""Adaptation: the same weights as a loop written by hand, and what happens where it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from metainit import checkpoint
from metainit.adaptation import Task, trajectory
from metainit.card import AdaptationRoutine, Continuation
from metainit.domains.base import TaskBatch
from metainit.errors import DivergenceError, MismatchError, SourceError
from metainit.evidence.curves import weights_of
from metainit.initialization import Prior, load
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import build, function_of
from tests.metainit.evidence.toys import NETWORK, Bowls, Level, blob_domain, write_prior

SizeOf = Callable[[str, int], Tensor | float]


@pytest.fixture
def network() -> nn.Module:
    return build(NETWORK, seed=3).double()


@pytest.fixture
def task() -> Task:
    domain = blob_domain()
    return Task(domain, domain.tasks(0, 0, 1, "test").map(lambda t: t.double()))


def loss_of(network: nn.Module, task: Task) -> Tensor:
    """The mean squared error of the image, written out."""
    return (
        (network(task.batch.shared["support_coordinates"]) - task.batch.support["values"][0]).square().mean()
    )


def steps_by_hand(network: nn.Module, task: Task, size_of: SizeOf, steps: range) -> None:
    """Plain gradient descent, in place."""
    for step in steps:
        network.zero_grad()
        torch.autograd.backward(loss_of(network, task))
        with torch.no_grad():
            for name, value in network.named_parameters():
                assert value.grad is not None
                value -= size_of(name, step) * value.grad


def walk(
    network: nn.Module, task: Task, routine: AdaptationRoutine, sizes: Parameters, steps: int
) -> list[Parameters]:
    losses = TaskLosses(task.domain, function_of(network), task.batch, batched=False)
    return list(trajectory(losses, weights_of(network), routine, sizes, steps))


def same(found: Parameters, network: nn.Module) -> None:
    for name, value in network.named_parameters():
        torch.testing.assert_close(found[name], value.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["fixed", "tensor", "parameter"])
def test_learned_steps_are_the_loop_written_by_hand(kind: str, network: nn.Module, task: Task) -> None:
    generator = torch.Generator().manual_seed(0)
    names = dict(network.named_parameters())
    sizes: Parameters = {}
    per_tensor: dict[str, list[float]] = {}
    if kind == "parameter":
        draw = torch.rand
        sizes = {
            k: 0.02 * draw(2, *v.shape, generator=generator, dtype=torch.float64) for k, v in names.items()
        }
    if kind == "tensor":
        per_tensor = {k: [0.01 + 0.001 * i, 0.02] for i, k in enumerate(names)}
    routine = AdaptationRoutine(
        steps=2, step_size=0.01, per_tensor=per_tensor, per_parameter=kind == "parameter"
    )

    def size_of(name: str, step: int) -> Tensor | float:
        last = min(step, 1)  # past the learned steps the last one goes on
        if kind == "parameter":
            return sizes[name][last]
        return per_tensor[name][last] if per_tensor else 0.01

    found = walk(network, task, routine, sizes, 4)
    assert len(found) == 5
    same(found[0], network)
    for step in range(4):
        steps_by_hand(network, task, size_of, range(step, step + 1))
        same(found[step + 1], network)


def test_weights_keep_their_type_under_steps_of_another(task: Task) -> None:
    narrow = build(NETWORK, seed=3)
    single = Task(task.domain, task.batch.map(lambda t: t.float()))
    sizes = {k: torch.full((1, *v.shape), 0.01, dtype=torch.float64) for k, v in narrow.named_parameters()}
    routine = AdaptationRoutine(steps=1, step_size=0.01, per_parameter=True)
    for values in walk(narrow, single, routine, sizes, 2):
        assert {v.dtype for v in values.values()} == {torch.float32}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_continuation_takes_over_after_the_learned_steps(
    optimizer: str, network: nn.Module, task: Task
) -> None:
    after = Continuation.model_validate({"optimizer": optimizer, "step_size": 0.003})
    sizes = {name: [0.02, 0.04] for name, _ in network.named_parameters()}
    routine = AdaptationRoutine(steps=2, step_size=9.0, per_tensor=sizes, continuation=after)
    found = walk(network, task, routine, {}, 6)
    steps_by_hand(network, task, lambda name, step: 0.02 * (step + 1), range(2))
    same(found[2], network)
    kinds: dict[str, type[torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    theirs = kinds[optimizer](network.parameters(), lr=0.003)  # type: ignore[call-arg]
    for step in range(3, 7):
        theirs.zero_grad()
        torch.autograd.backward(loss_of(network, task))
        theirs.step()
        same(found[step], network)


def test_promised_step_sizes_that_are_not_there_are_named(network: nn.Module, task: Task) -> None:
    sizes = {k: torch.full((1, *v.shape), 0.1) for k, v in network.named_parameters()}
    routine = AdaptationRoutine(steps=1, step_size=0.1, per_parameter=True)
    first, second, *_ = sizes
    del sizes[first]
    sizes[second] = sizes[second][..., :1]
    with pytest.raises(MismatchError, match=f"missing: {first}; of another shape: {second}"):
        walk(network, task, routine, sizes, 1)


def test_a_tensor_without_a_learned_step_size_takes_the_common_one(network: nn.Module, task: Task) -> None:
    routine = AdaptationRoutine(steps=2, step_size=0.01, per_tensor={"layers.0.weight": [0.02]})
    found = walk(network, task, routine, {}, 2)
    steps_by_hand(network, task, lambda name, step: 0.02 if name == "layers.0.weight" else 0.01, range(2))
    same(found[-1], network)


def test_adam_is_torchs(network: nn.Module, task: Task) -> None:
    found = walk(network, task, AdaptationRoutine(optimizer="adam", steps=5, step_size=0.01), {}, 5)
    theirs = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(5):
        theirs.zero_grad()
        torch.autograd.backward(loss_of(network, task))
        theirs.step()
    same(found[-1], network)


def test_progress_hears_each_step_and_the_loss_before_it() -> None:
    domain = Bowls([1.0], [2.0])
    heard: list[tuple[int, int, float]] = []
    losses = TaskLosses(domain, function_of(Level()), domain.tasks(0, 0, 1), batched=False)
    routine = AdaptationRoutine(steps=2, step_size=0.5)
    list(trajectory(losses, weights_of(Level()), routine, {}, 2, lambda *news: heard.append(news)))
    assert heard == [(1, 2, 2.0), (2, 2, 0.5)]


def test_a_prior_adapts_with_the_routine_of_its_card(tmp_path: Path, task: Task) -> None:
    source = build(NETWORK, seed=5)
    weights = weights_of(source)
    sizes = {
        f"step_size.{k}": torch.full((2, *v.shape), 0.02, dtype=torch.float64) for k, v in weights.items()
    }
    routine = AdaptationRoutine(steps=2, step_size=0.5, per_parameter=True)
    start = load(write_prior(tmp_path / "p.safetensors", {**weights, **sizes}, routine))
    network = start.init_(build(NETWORK).double())
    start.adapt(network, task)
    by_hand = source.double()
    steps_by_hand(by_hand, task, lambda name, step: 0.02, range(2))
    same(weights_of(network), by_hand)
    # Another routine says its own step size; the learned ones belong to the card's.
    other = start.init_(build(NETWORK).double())
    start.adapt(other, task, AdaptationRoutine(steps=1, step_size=0.1))
    again = start.init_(build(NETWORK).double())
    steps_by_hand(again, task, lambda name, step: 0.1, range(1))
    same(weights_of(other), again)


def test_a_fit_that_diverges_leaves_the_network_as_it_was(tmp_path: Path) -> None:
    domain = Bowls([1.0], [2.0])
    network = Level(1.0)
    weights = {"level": torch.tensor([1.0], dtype=torch.float64)}
    start = load(write_prior(tmp_path / "p.safetensors", weights, None, network=None))
    routine = AdaptationRoutine(steps=9, step_size=1e300)
    with pytest.raises(DivergenceError, match=r"adaptation step 1: .* lower the step size \(now 1e\+300\)"):
        start.adapt(network, Task(domain, domain.tasks(0, 0, 1)), routine)
    assert network.level.tolist() == [1.0]
    with pytest.raises(SourceError, match="has no adaptation routine: pass routine="):
        start.adapt(network, Task(domain, domain.tasks(0, 0, 1)))


def test_one_network_is_fitted_to_one_task(tmp_path: Path) -> None:
    domain = Bowls([1.0, 1.0], [2.0, 3.0])
    with pytest.raises(SourceError, match="one task, got a batch of 2") as caught:
        load("siren").adapt(
            Level(), Task(domain, domain.tasks(0, 0, 2)), AdaptationRoutine(steps=1, step_size=1)
        )
    assert "fit_many" not in str(caught.value)  # the way out that it names must exist


def test_a_fit_can_be_loaded_again_as_a_start(tmp_path: Path) -> None:
    weights = weights_of(build(NETWORK, seed=8))
    start = load(write_prior(tmp_path / "fit.safetensors", weights, None, kind="weights"))
    assert isinstance(start, Prior) and start.card.kind == "weights"
    filled = weights_of(start.init_(build(NETWORK)))
    assert all(torch.equal(filled[k], v) for k, v in weights.items())
    assert checkpoint.load(tmp_path / "fit.safetensors").card.routine is None


def test_all_tasks_of_a_batch_adapt_at_once_as_they_do_one_by_one(network: nn.Module) -> None:
    domain = blob_domain()
    batch: TaskBatch = domain.tasks(0, 0, 3, "test").map(lambda t: t.double())
    routine = AdaptationRoutine(optimizer="adam", steps=3, step_size=0.01)
    together = TaskLosses(domain, function_of(network), batch, batched=True)
    *_, last = trajectory(together, weights_of(network), routine, {}, 3)
    for index, one in enumerate(batch):
        alone = walk(network, Task(domain, one), routine, {}, 3)[-1]
        for name, value in alone.items():
            torch.testing.assert_close(last[name][index], value, rtol=1e-8, atol=1e-10)
