"""What is true of held-back examples, of inner loops that move the head only, and of varied supports."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from metainit.adaptation import trajectory
from metainit.domains.base import TaskBatch
from metainit.domains.seeding import generator_of
from metainit.errors import MismatchError, RecipeError
from metainit.evidence.controls.joint import joint_gradient
from metainit.meta.engine import meta_gradient
from metainit.meta.inner import truncated
from metainit.meta.outer import routine_of
from metainit.meta.registry import gradient_evaluations
from metainit.meta.state import InnerSteps, MetaParameters, TaskLosses
from metainit.meta.variation import Variation, minibatch, seen_in
from metainit.networks import function_of
from tests.metainit.meta.problems import (
    QuadraticDomain,
    SineDomain,
    algorithm,
    differences,
    gradient_of,
    linear_map,
    small_siren,
    start_of,
)

ROUNDING = 1e-12
HEAD = ("layers.2.weight", "layers.2.bias")


def test_the_tail_is_the_query_of_the_rest() -> None:
    """FOMAML* on a support is FOMAML with the tail as the query, whatever the query of the task is."""
    domain, network = SineDomain(), small_siren()
    batch = domain.tasks(0, 0, 3)
    held_back = algorithm("fomaml_tail", tail=6)
    found = gradient_of(held_back, domain, network, start_of(network, held_back), batch)
    rest, tail = ({k: v[:, part] for k, v in batch.support.items()} for part in (slice(-6), slice(-6, None)))
    plain = algorithm("fomaml")
    as_query = TaskBatch(rest, tail, batch.shared, batch.ids)
    expected = gradient_of(plain, domain, network, start_of(network, plain), as_query)
    assert max(differences(found, expected).values()) < ROUNDING
    other = TaskBatch(batch.support, {k: 0 * v for k, v in batch.query.items()}, batch.shared, batch.ids)
    again = gradient_of(held_back, domain, network, start_of(network, held_back), other)
    assert max(differences(found, again).values()) == 0


@pytest.mark.parametrize("tail", [16, 20])
def test_a_tail_that_leaves_nothing_is_refused(tail: int) -> None:
    config = algorithm("fomaml_tail", tail=tail)
    network = small_siren()
    domain = SineDomain(points=16)
    with pytest.raises(MismatchError, match=f"a tail of {tail} examples cannot be held back of 16"):
        gradient_of(config, domain, network, start_of(network, config), domain.tasks(0, 0, 1))


def test_a_domain_without_examples_has_no_tail() -> None:
    config, network, domain = algorithm("fomaml_tail"), linear_map(), QuadraticDomain()
    with pytest.raises(MismatchError, match="QuadraticDomain has no labelled examples to hold back"):
        gradient_of(config, domain, network, start_of(network, config), domain.tasks(0, 0, 1))


def test_adapting_the_head_is_a_step_size_of_zero_elsewhere() -> None:
    """ANIL against Meta-SGD whose step sizes are zero in the body; its gradient still reaches the body."""
    domain, network = SineDomain(), small_siren()
    batch = domain.tasks(0, 0, 3)
    head, learned = algorithm("maml-head"), algorithm("meta_sgd-2-tensor")
    found = gradient_of(head, domain, network, start_of(network, head), batch)
    meta = start_of(network, learned)
    frozen = {k: v if k in HEAD else torch.zeros_like(v) for k, v in meta.step_sizes.items()}
    expected = gradient_of(learned, domain, network, MetaParameters(meta.weights, frozen), batch)
    assert max(differences(found, expected._replace(step_sizes={})).values()) < ROUNDING
    assert all(slope.abs().max() > 0 for slope in found.weights.values())


def test_learned_step_sizes_are_those_of_the_head() -> None:
    assert tuple(start_of(small_siren(), algorithm("meta_sgd-1-head-tensor")).step_sizes) == HEAD


def test_the_routine_adapts_the_same_tensors_as_the_inner_loop() -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm("meta_sgd-1-head-tensor")
    inner, meta = config.inner(network), start_of(network, config, spread=0.5)
    losses = TaskLosses(domain, function_of(network), domain.tasks(0, 0, 1), batched=False)
    expected = truncated(losses, meta, inner).adapted
    *_, found = trajectory(losses, meta.weights, routine_of(meta, config, inner), {}, inner.steps)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)
        assert torch.equal(value, meta.weights[name]) == (name not in HEAD)


def test_a_routine_for_tensors_that_are_not_there_is_refused() -> None:
    network, domain = linear_map(), QuadraticDomain()
    config = algorithm("fomaml")
    meta = start_of(network, config)
    routine = routine_of(meta, config, InnerSteps(3, 0.1, adapts=("layers.2.weight",)))
    losses = TaskLosses(domain, function_of(network), domain.tasks(0, 0, 1), batched=False)
    with pytest.raises(MismatchError, match="does not have: layers.2.weight"):
        list(trajectory(losses, meta.weights, routine, {}, 1))


def test_a_network_without_a_head_is_named() -> None:
    with pytest.raises(RecipeError, match="Linear does not say which of its modules is its head"):
        algorithm("maml-head").inner(linear_map())


@pytest.mark.parametrize(
    "row,changes,says",
    [
        ("fomaml", {"tail": 2}, "tail goes with fomaml_tail"),
        ("fomaml_tail", {"tail": 0}, "fomaml_tail holds back at least 1 example"),
        ("reptile", {"adapts": "head"}, "reptile learns only what is adapted"),
        ("maml-head", {"engine": "learn2learn"}, "adapts all tensors"),
        ("fomaml-varied", {"engine": "learn2learn"}, "draw new examples"),
    ],
)
def test_settings_that_make_no_sense_are_refused(row: str, changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        algorithm(row, **changes)


def test_every_step_sees_its_own_examples_and_noise() -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm("fomaml-varied")
    batch, meta = domain.tasks(0, 0, 1), start_of(small_siren(), config)
    function, inner = function_of(network), config.inner(network).seeded(7)
    losses = TaskLosses(domain, function, batch, False, inner.variation)
    adapted = {k: v.detach() for k, v in meta.weights.items()}
    one = {k: v[0] for k, v in batch.support.items()}
    for step in range(inner.steps):
        chosen = minibatch(16, 12, step, seed=7)
        part = {k: v[chosen] for k, v in one.items()}
        seen = domain.augmented(part, generator_of("augmentation", 7, step), 0.5)
        leaves = {k: v.requires_grad_() for k, v in adapted.items()}
        loss = domain.support_loss(function(leaves), seen, batch.shared)
        slopes = torch.autograd.grad(loss, list(leaves.values()))
        adapted = {k: v.detach() - 0.05 * g for (k, v), g in zip(leaves.items(), slopes, strict=True)}
    found = truncated(losses, meta, inner).adapted
    for name, value in found.items():
        torch.testing.assert_close(value, adapted[name], rtol=1e-12, atol=1e-14)


def test_varied_steps_follow_from_the_seed_alone() -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm("fomaml-varied")
    meta, batch, inner = start_of(network, config), domain.tasks(0, 0, 2), config.inner(network)
    gradients = [meta_gradient_of(domain, network, meta, batch, inner.seeded(seed)) for seed in (1, 1, 2)]
    assert max(differences(gradients[0], gradients[1]).values()) == 0
    assert max(differences(gradients[0], gradients[2]).values()) > 1e-4
    assert InnerSteps(2, 0.1).seeded(3) == InnerSteps(2, 0.1)  # nothing depends on it


def meta_gradient_of(domain, network, meta, batch, inner):  # type: ignore[no-untyped-def]
    from metainit.meta.maml import fomaml

    return meta_gradient(fomaml, domain, function_of(network), meta, batch, inner, "loop")


@pytest.mark.parametrize("examples,size", [(5, 2), (5, 5), (5, 8), (1, 3), (6, 4)])
def test_minibatches_show_every_example_equally_often(examples: int, size: int) -> None:
    steps = 6 * examples
    shown = torch.cat([minibatch(examples, size, step, seed=3) for step in range(steps)])
    assert len(shown) == steps * size
    assert shown.bincount(minlength=examples).tolist() == [6 * size] * examples
    for begin in range(0, len(shown), examples):
        assert sorted(shown[begin : begin + examples].tolist()) == list(range(examples))


def test_without_variation_the_support_is_the_support() -> None:
    support = SineDomain().tasks(0, 0, 2).support
    assert seen_in(3, SineDomain(), support, Variation()) is support


def test_the_joint_gradient_is_the_gradient_of_the_summed_support_losses() -> None:
    domain, network = SineDomain(), small_siren()
    batch, function = domain.tasks(0, 0, 4), function_of(network)
    weights = {k: v.detach() for k, v in network.named_parameters()}
    found = meta_gradient(
        joint_gradient, domain, function, MetaParameters(weights, {}), batch, InnerSteps(0, 0.0), "loop"
    )
    leaves = {k: v.clone().requires_grad_() for k, v in weights.items()}
    total = sum(TaskLosses(domain, function, task, False).support(leaves) for task in batch)
    assert isinstance(total, Tensor)
    slopes = torch.autograd.grad(total, list(leaves.values()))
    for value, slope in zip(found.weights.values(), slopes, strict=True):
        torch.testing.assert_close(value, slope, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(
    "row,expected",
    [("reptile", 3), ("fomaml", 4), ("fomaml_tail", 4), ("maml", 10), ("meta_sgd-1-tensor", 4)],
)
def test_what_a_meta_gradient_costs(row: str, expected: int) -> None:
    """Three inner steps: a Hessian-vector product costs two gradients."""
    assert gradient_evaluations(algorithm(row)) == expected


class Small(nn.Module):
    """Two convolutions, the second a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return self.head(torch.relu(self.body(images)))


def test_memory_formats_agree_and_are_what_they_say() -> None:
    network = Small().double()
    weights = {k: v.detach().clone().requires_grad_() for k, v in network.named_parameters()}
    images = torch.rand(2, 3, 6, 7, dtype=torch.float64)
    slopes = {}
    for name in ("auto", "channels_last", "contiguous"):
        output = function_of(network, name)(weights)(images)
        slopes[name] = torch.autograd.grad(output.square().sum(), list(weights.values()))
        last = output.is_contiguous(memory_format=torch.channels_last)
        assert last == (name != "contiguous")
    for name in ("auto", "channels_last"):
        for mine, other in zip(slopes[name], slopes["contiguous"], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-13)


def test_convolutions_can_be_batched_over_tasks() -> None:
    network = Small().double()
    function = function_of(network)
    stacked = {k: torch.stack([v.detach(), 2 * v.detach()]) for k, v in network.named_parameters()}
    images = torch.rand(2, 5, 3, 6, 7, dtype=torch.float64)
    found = torch.func.vmap(lambda w, x: function(w)(x))(stacked, images)
    for task in range(2):
        expected = function({k: v[task] for k, v in stacked.items()})(images[task])
        torch.testing.assert_close(found[task], expected, rtol=1e-11, atol=1e-13)


def test_losses_can_be_replaced_without_their_variation() -> None:
    losses = TaskLosses(SineDomain(), function_of(small_siren()), SineDomain().tasks(0, 0, 2), False)
    varied = replace(losses, variation=Variation(minibatch=4))
    _, tail = varied.split(3)
    assert not tail.variation.active and tail.batch.support["x"].shape == (2, 3, 1)
