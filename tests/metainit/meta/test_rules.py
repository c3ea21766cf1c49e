"""Every outer rule: what all of them do, and what is true of each by mathematics."""

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from metainit.adaptation import trajectory
from metainit.domains.base import Tensors
from metainit.meta.engine import choose
from metainit.meta.outer import AlgorithmConfig, OuterConfig, OuterLoop, routine_of
from metainit.meta.registry import RULES, OuterRule, gradient_evaluations, rule_for
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, TaskLosses
from metainit.networks import function_of
from tests.metainit.meta.problems import (
    RULES as TABLE,
)
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

every_rule = pytest.mark.parametrize("row", TABLE)
ROUNDING = 1e-12


def test_the_table_has_every_rule() -> None:
    functions = {function for rule in RULES.values() for function in rule.orders.values()}
    assert {rule_for(algorithm(row)) for row in TABLE} == functions
    assert {algorithm(row).rule for row in TABLE} == set(RULES)


def test_a_new_rule_needs_its_registry_line_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
        half = {name: value / 2 for name, value in meta.weights.items()}
        return MetaGradient(half, meta.step_sizes, losses.query(meta.weights).detach(), losses.tasks)

    line = OuterRule({1: halved}, "nobody", learns_step_sizes=True, holds_back=True, query_gradient=False)
    monkeypatch.setattr("metainit.meta.registry.RULES", table := {**RULES, "halved": line})
    monkeypatch.setattr("metainit.meta.outer.RULES", table)
    config = AlgorithmConfig(rule="halved", step_sizes="tensor", tail=2, inner_steps=3)
    assert rule_for(config) is halved
    assert gradient_evaluations(config) == 3
    network, domain = small_siren(), SineDomain()
    meta = start_of(network, config)
    found = gradient_of(config, domain, network, meta, domain.tasks(0, 0, 2))
    assert found.tasks == 2
    assert all(torch.allclose(v, meta.weights[k]) for k, v in found.weights.items())  # twice a half
    for wrong, says in (
        ({"step_sizes": "fixed"}, "halved learns step sizes"),
        ({"tail": 0}, "halved holds back"),
        ({"adapts": "head"}, "halved learns only what is adapted"),
        ({"rule": "halvd"}, "did you mean 'halved'"),
    ):
        with pytest.raises(ValidationError, match=says):
            AlgorithmConfig(**{**config.model_dump(), **wrong})


def after_adaptation(meta: MetaParameters, row: str) -> float:
    """The query loss on unseen sines, after the routine that was learned."""
    domain, config, network = SineDomain(), algorithm(row), small_siren()
    batch = domain.tasks(7, 0, 32, "test")
    losses = TaskLosses(domain, function_of(network), batch, batched=True)
    routine = routine_of(meta, config, config.inner(network))
    sizes = meta.step_sizes if routine.per_parameter else {}
    *_, adapted = trajectory(losses, meta.weights, routine, sizes, routine.steps)
    return float(losses.query(adapted)) / len(batch)


def learned(row: str, steps: int = 60) -> tuple[MetaParameters, list[float]]:
    domain, config, network = SineDomain(), algorithm(row), small_siren()
    outer = OuterConfig(steps=steps, meta_batch=4, step_size=2e-2, warm_up=3)
    loop = OuterLoop(start_of(network, config), outer, config)
    losses = [
        loop.apply(
            gradient_of(config, domain, network, loop.meta, domain.tasks(0, step, outer.meta_batch), "vmap")
        )
        for step in range(steps)
    ]
    return loop.result(), losses


@every_rule
def test_lowers_the_loss_after_adaptation_on_unseen_tasks(row: str) -> None:
    before = after_adaptation(start_of(small_siren(), algorithm(row)), row)
    meta, _ = learned(row)
    assert after_adaptation(meta, row) < 0.35 * before


@every_rule
def test_same_seed_same_bytes(row: str) -> None:
    (first, losses), (second, again) = learned(row, steps=5), learned(row, steps=5)
    assert losses == again
    for mine, other in zip(first, second, strict=True):
        assert list(mine) == list(other)
        assert all(torch.equal(v, other[k]) for k, v in mine.items())


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_keeps_names_shapes_and_dtype_and_changes_no_input(row: str, dtype: torch.dtype, execution) -> None:
    domain, network = SineDomain(dtype=dtype), small_siren(dtype=dtype)
    meta = start_of(network, algorithm(row))
    kept = [{k: v.clone() for k, v in part.items()} for part in meta]
    own = {k: v.detach().clone() for k, v in network.named_parameters()}
    found = gradient_of(algorithm(row), domain, network, meta, domain.tasks(0, 0, 3), execution)
    assert found.tasks == 3
    for slopes, before, now in zip((found.weights, found.step_sizes), kept, meta, strict=True):
        assert list(slopes) == list(before)
        for name, slope in slopes.items():
            assert slope.shape == before[name].shape and slope.dtype == dtype
            assert torch.isfinite(slope).all() and not slope.requires_grad
            assert torch.equal(now[name], before[name])
    assert any(slope.abs().max() > 0 for slope in found.weights.values())
    assert all(torch.equal(v, own[k]) for k, v in network.named_parameters())
    assert all(v.grad is None for v in network.parameters())


@every_rule
@pytest.mark.parametrize("execution", ["threads", "vmap"])
def test_every_execution_gives_the_same_gradient(row: str, execution) -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm(row)
    meta, batch = start_of(network, config, spread=0.5), domain.tasks(0, 0, 5)
    one_by_one = gradient_of(config, domain, network, meta, batch, "loop")
    other = gradient_of(config, domain, network, meta, batch, execution)
    assert max(differences(other, one_by_one).values()) < ROUNDING
    if execution == "threads":
        assert all(torch.equal(v, other.weights[k]) for k, v in one_by_one.weights.items())


@every_rule
@pytest.mark.parametrize("execution", ["loop", "vmap"])
def test_sums_over_tasks(row: str, execution) -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm(row)
    meta, batch = start_of(network, config, spread=0.5), domain.tasks(0, 0, 4)
    whole = gradient_of(config, domain, network, meta, batch, execution)
    a, b = (gradient_of(config, domain, network, meta, batch[s], execution) for s in (slice(2), slice(2, 4)))
    added = MetaGradient(
        {k: v + b.weights[k] for k, v in a.weights.items()},
        {k: v + b.step_sizes[k] for k, v in a.step_sizes.items()},
        a.loss + b.loss,
        a.tasks + b.tasks,
    )
    assert whole.tasks == added.tasks == 4
    assert max(differences(whole, added).values()) < ROUNDING


class TwoOffsets(nn.Module):
    """Two parameters with the same gradient: autograd may hand out one tensor for both."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.b = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * 0 + (self.a + self.b)

    @property
    def head(self) -> nn.Module:
        return self


@every_rule
def test_sums_over_tasks_where_two_parameters_share_a_gradient(row: str) -> None:
    domain, network, config = SineDomain(), TwoOffsets(), algorithm(row)
    meta, batch = start_of(network, config), domain.tasks(0, 0, 3)
    one_by_one = gradient_of(config, domain, network, meta, batch, "loop")
    at_once = gradient_of(config, domain, network, meta, batch, "vmap")
    assert max(differences(one_by_one, at_once).values()) < ROUNDING


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("row", ["maml", "fomaml", "reptile"])
def test_quadratic_loss_has_the_closed_form(row: str, steps: int) -> None:
    r"""With :math:`M = (I - \alpha A)^K`: adapted weights :math:`c + M (w - c)`, MAML's gradient `M q`."""
    domain, network = QuadraticDomain(), linear_map()
    config = algorithm(row, inner_steps=steps, inner_step_size=0.1)
    batch = domain.tasks(0, 0, 3)
    expected = torch.zeros(4, 1, dtype=torch.float64)
    w = network.weight.detach().T
    for i in range(3):
        a, c = batch.support["A"][i], batch.support["c"][i]
        contraction = torch.linalg.matrix_power(torch.eye(4, dtype=torch.float64) - 0.1 * a, steps)
        adapted = c + contraction @ (w - c)
        q = batch.query["A"][i] @ (adapted - batch.query["c"][i])
        expected += {"maml": contraction @ q, "fomaml": q, "reptile": w - adapted}[row]
    found = gradient_of(config, domain, network, start_of(network, config), batch)
    torch.testing.assert_close(found.weights["weight"].T, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("row", ["maml", "meta_sgd-2-tensor", "meta_sgd-2-parameter"])
def test_second_order_gradients_agree_with_finite_differences(row: str) -> None:
    domain, network, config = SineDomain(points=6), small_siren(), algorithm(row, inner_steps=2)
    meta, batch = start_of(network, config, spread=0.5), domain.tasks(0, 0, 2)
    found = gradient_of(config, domain, network, meta, batch)

    generator = torch.Generator().manual_seed(3)

    def reached(weights: Tensors, step_sizes: Tensors) -> float:
        moved = MetaParameters(weights, step_sizes)
        return float(gradient_of(config, domain, network, moved, batch).loss)

    for kind, slopes in enumerate((found.weights, found.step_sizes)):
        for name, slope in slopes.items():
            along = torch.randn(slope.shape, generator=generator, dtype=slope.dtype) * 1e-5
            ends = [
                reached(
                    *({**p, name: p[name] + sign * along} if i == kind else p for i, p in enumerate(meta))
                )
                for sign in (1, -1)
            ]
            numeric = (ends[0] - ends[1]) / 2
            assert numeric == pytest.approx(float((slope * along).sum()), rel=1e-6, abs=1e-11), name


@pytest.mark.parametrize(
    "exact,approximate",
    [
        ("maml", "fomaml"),
        ("meta_sgd-2-tensor", "meta_sgd-1-tensor"),
        ("meta_sgd-2-parameter", "meta_sgd-1-parameter"),
    ],
)
def test_first_order_is_exact_where_the_hessian_is_zero(exact: str, approximate: str) -> None:
    network = linear_map()
    gradients = {}
    for flat in (True, False):
        domain = QuadraticDomain(flat=flat)
        batch = domain.tasks(0, 0, 3)
        for row in (exact, approximate):
            config = algorithm(row)
            meta = start_of(network, config, spread=0.5)
            gradients[flat, row] = gradient_of(config, domain, network, meta, batch)
    assert max(differences(gradients[True, exact], gradients[True, approximate]).values()) < ROUNDING
    assert max(differences(gradients[False, exact], gradients[False, approximate]).values()) > 1e-3


def test_first_order_step_sizes_hold_the_inner_gradients_constant() -> None:
    r""":math:`\nabla_{\alpha_k} = -q \odot g_k`, summed over a tensor where it has one step size."""
    domain, network = QuadraticDomain(), linear_map()
    batch = domain.tasks(0, 0, 1)
    config = algorithm("meta_sgd-1-parameter", inner_steps=2)
    meta = start_of(network, config, spread=0.5)
    w, slopes = network.weight.detach().clone(), []
    for k in range(2):
        slopes.append((batch.support["A"][0] @ (w.T - batch.support["c"][0])).T)
        w = w - meta.step_sizes["weight"][k] * slopes[k]
    q = (batch.query["A"][0] @ (w.T - batch.query["c"][0])).T
    found = gradient_of(config, domain, network, meta, batch)
    torch.testing.assert_close(found.step_sizes["weight"], torch.stack([-q * g for g in slopes]))
    torch.testing.assert_close(found.weights["weight"], q)


def test_one_step_of_reptile_is_joint_sgd() -> None:
    domain, network = SineDomain(), small_siren()
    config = algorithm("reptile", inner_steps=1, inner_step_size=0.03)
    batch = domain.tasks(0, 0, 4)
    found = gradient_of(config, domain, network, start_of(network, config), batch)
    losses = TaskLosses(domain, function_of(network), batch, batched=False)
    joint = sum(
        TaskLosses(domain, losses.function, task, batched=False).support(dict(network.named_parameters()))
        for task in batch
    )
    slopes = torch.autograd.grad(joint, list(network.parameters()))
    for (name, value), slope in zip(found.weights.items(), slopes, strict=True):
        torch.testing.assert_close(value, 0.03 * slope, rtol=1e-11, atol=1e-14, msg=name)


def test_equal_learned_step_sizes_are_the_fixed_ones() -> None:
    domain, network = SineDomain(), small_siren()
    batch = domain.tasks(0, 0, 2)
    fixed, learned_sizes = algorithm("maml"), algorithm("meta_sgd-2-tensor")
    plain = gradient_of(fixed, domain, network, start_of(network, fixed), batch)
    same = gradient_of(learned_sizes, domain, network, start_of(network, learned_sizes), batch)
    assert max(differences(same._replace(step_sizes={}), plain).values()) < ROUNDING


def test_the_last_learned_step_size_repeats() -> None:
    meta = MetaParameters({}, {"w": torch.tensor([1.0, 2.0])})
    inner = InnerSteps(4, 0.5)
    assert [float(inner.at(meta, "w", k)) for k in range(4)] == [1.0, 2.0, 2.0, 2.0]
    assert inner.at(meta, "b", 3) == 0.5


@pytest.mark.parametrize(
    "width,tasks,expected",
    [(64, 16, "threads"), (64, 4, "threads"), (64, 3, "loop"), (256, 8, "threads"), (256, 4, "loop")],
)
def test_the_execution_follows_from_the_sizes(width: int, tasks: int, expected: str) -> None:
    weights = {"w": torch.zeros(width, width), "b": torch.zeros(width)}
    assert choose("auto", weights, tasks) == expected
    assert choose("vmap", weights, tasks) == "vmap"
    assert choose("auto", {k: v.to("meta") for k, v in weights.items()}, tasks) == "vmap"
