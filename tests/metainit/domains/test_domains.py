"""Every domain keeps the contract: pure tasks, disjoint held-out ones, losses that rules can use."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from metainit.card import Spec
from metainit.domains.base import Augmenting, Domain, Observing, Split, TaskBatch
from metainit.domains.registry import DOMAINS, build_domain, without_places
from metainit.errors import DataError
from metainit.evidence.controls.registry import CONTROLS
from metainit.networks import build

SMALL = {"height": 16, "width": 16}
TABLE: dict[str, tuple[Spec, Spec]] = {
    "image": (
        Spec(name="image", arguments={"bundled": "photographs", "fit": "random_crop", **SMALL}),
        Spec(name="siren", arguments={"width": 8, "depth": 3}),
    ),
    "ct": (
        Spec(name="ct", arguments={"size": 16, "held_out": 6}),
        Spec(name="siren", arguments={"width": 8, "depth": 3}),
    ),
    "segmentation": (
        Spec(name="segmentation", arguments={"source": "synthesised", "shots": 2, "queries": 2, **SMALL}),
        Spec(name="unet", arguments={"width": 4, "depth": 1}),
    ),
    "segmentation, two classes": (
        Spec(
            name="segmentation",
            arguments={
                "source": "synthesised", "ways": 2, "shots": 3, "queries": 2, "channels": 1, "augment": 0.5,
                "recolour": 0.5, **SMALL,
            },
        ),
        Spec(name="unet", arguments={"width": 4, "depth": 1}),
    ),
    "classification": (
        Spec(name="classification", arguments={"ways": 3, "shots": 2, "queries": 4, "held_out_tasks": 6}),
        Spec(name="classifier", arguments={"width": 4, "depth": 2}),
    ),
    "classification, classes": (
        Spec(
            name="classification",
            arguments={"ways": 2, "queries": 4, "held_out": "classes", "validation": 0.3, "size": 4},
        ),
        Spec(name="classifier", arguments={"width": 4, "depth": 1, "norm": "group"}),
    ),
}  # fmt: skip
"""One row a domain or variant of one, with a network for it: a new one adds its row and gets every test."""

every_domain = pytest.mark.parametrize("row", TABLE)
HELD_OUT: tuple[Split, ...] = ("validation", "test")


@cache
def domain_of(row: str) -> Domain:
    return build_domain(TABLE[row][0])


def network_of(row: str) -> torch.nn.Module:
    spec = TABLE[row][1]
    return build(Spec(name=spec.name, arguments={**spec.arguments, **domain_of(row).network_arguments}))


def tensors(batch: TaskBatch) -> list[Tensor]:
    parts = (batch.support, batch.query, batch.shared, batch.conditions)
    return [value for part in parts for value in part.values()]


def same(a: TaskBatch, b: TaskBatch) -> bool:
    return a.ids == b.ids and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


def first(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v[0] for k, v in part.items()}


def test_the_table_has_every_domain() -> None:
    assert {spec.name for spec, _ in TABLE.values()} == set(DOMAINS)


@every_domain
@pytest.mark.parametrize("split", ["train", *HELD_OUT])
def test_tasks_are_a_pure_function(row: str, split: Split) -> None:
    domain, other = domain_of(row), build_domain(TABLE[row][0])
    other.tasks(9, 3, 1)
    before = torch.random.get_rng_state()
    assert same(domain.tasks(3, 1, 2, split), other.tasks(3, 1, 2, split))
    assert torch.equal(before, torch.random.get_rng_state())


@every_domain
def test_training_tasks_differ_with_seed_and_index(row: str) -> None:
    batches = [domain_of(row).tasks(seed, index, 2) for seed in (0, 1) for index in (0, 1)]
    assert len({b"".join(t.numpy().tobytes() for t in tensors(b)) for b in batches}) == 4


@every_domain
@pytest.mark.parametrize("split", HELD_OUT)
def test_held_out_tasks_are_numbered_however_they_are_batched(row: str, split: Split) -> None:
    domain = domain_of(row)
    whole, single = domain.tasks(0, 0, 4, split), [domain.tasks(0, i, 1, split) for i in range(4)]
    assert whole.ids == tuple(name for batch in single for name in batch.ids)
    for name, value in whole.query.items():
        assert torch.equal(value, torch.cat([batch.query[name] for batch in single]))


@every_domain
@pytest.mark.parametrize("split", HELD_OUT)
def test_there_are_as_many_as_size_says(row: str, split: Split) -> None:
    domain = domain_of(row)
    size = domain.size(split)
    assert size is not None and len(set(domain.tasks(0, size - 1, 1, split).ids)) == 1
    with pytest.raises(DataError):
        domain.tasks(0, size, 1, split)
    assert domain.size("train") is None


@every_domain
def test_splits_share_no_task(row: str) -> None:
    domain = domain_of(row)
    splits: list[Split] = ["train", *HELD_OUT]
    seen = [domain.tasks(0, 0, 4, split) for split in splits]
    queries = [{t.numpy().tobytes() for t in next(iter(batch.query.values()))} for batch in seen]
    assert not (queries[0] & queries[1] or queries[0] & queries[2] or queries[1] & queries[2])


@every_domain
def test_losses_are_scalars_that_vmap_and_grad_take(row: str) -> None:
    domain, network = domain_of(row), network_of(row)
    batch = domain.tasks(0, 0, 2)
    weights = {k: v.detach() for k, v in network.named_parameters()}

    def loss(parameters: Any, support: Any) -> Tensor:
        return domain.support_loss(
            lambda x: functional_call(network, parameters, (x,)), support, batch.shared
        )

    slopes = vmap(grad(loss), in_dims=(None, 0))(weights, batch.support)
    for i in range(2):
        own = grad(loss)(weights, {k: v[i] for k, v in batch.support.items()})
        for name in weights:
            torch.testing.assert_close(slopes[name][i], own[name], rtol=1e-3, atol=1e-5)
    query = domain.query_loss(network, first(batch.query), batch.shared)
    assert query.shape == () and bool(query.isfinite())


@every_domain
def test_what_a_network_says_is_measured_and_shown(row: str) -> None:
    domain, network = domain_of(row), network_of(row)
    batch = domain.tasks(0, 0, 1, "test")
    query = first(batch.query)
    with torch.no_grad():
        rendered = domain.render(network, query, batch.shared)
    found = domain.metrics(rendered, query)
    assert next(iter(found)) == domain.metric
    assert domain.metrics(rendered, query, [domain.metric]) == {domain.metric: found[domain.metric]}
    shown, truth = domain.picture(rendered, query), domain.target(query)
    assert shown.shape == truth.shape and shown.ndim == 3 and shown.shape[-1] in (1, 3)
    for picture in (shown, truth):
        assert 0 <= float(picture.min()) and float(picture.max()) <= 1


@every_domain
def test_example_inputs_fit_the_network(row: str) -> None:
    with torch.no_grad():
        assert bool(network_of(row)(domain_of(row).example_inputs()).isfinite().all())


@every_domain
def test_controls_are_known(row: str) -> None:
    assert domain_of(row).controls and set(domain_of(row).controls) <= set(CONTROLS)


@every_domain
def test_the_fingerprint_is_stable_and_the_card_names_no_place(row: str) -> None:
    spec = TABLE[row][0]
    assert build_domain(spec).fingerprint() == domain_of(row).fingerprint()
    assert without_places(spec) == spec


@every_domain
def test_augmenting_keeps_what_a_support_is(row: str) -> None:
    domain = domain_of(row)
    if not isinstance(domain, Augmenting):
        pytest.skip("its support has no examples to augment")
    support = first(domain.tasks(0, 0, 1).support)
    generators = [torch.Generator().manual_seed(s) for s in (0, 0)]
    one, two = (domain.augmented(support, g, 1.0) for g in generators)
    for name, value in support.items():
        assert one[name].shape == value.shape and one[name].dtype == value.dtype
        assert torch.equal(one[name], two[name])
    assert any(not torch.equal(one[name], support[name]) for name in support)
    still = domain.augmented(support, torch.Generator().manual_seed(0), 0.0)
    assert all(torch.equal(still[name], support[name]) for name in support)


def test_a_batch_has_a_group_for_each_task() -> None:
    values = {"values": torch.arange(3.0)}
    assert TaskBatch(values, values, {}, ("a", "b", "c")).groups == ("a", "b", "c")
    batch = TaskBatch(values, values, {}, ("a", "b", "c"), ("x", "x", "y"))
    assert [task.groups for task in batch] == [("x",), ("x",), ("y",)]
    assert batch.to(torch.device("cpu"), torch.float64).groups == batch.groups
    with pytest.raises(DataError, match="a group for each of the 3 tasks, got 2"):
        TaskBatch(values, values, {}, ("a", "b", "c"), ("x", "y"))


def test_conditions_go_with_their_tasks() -> None:
    values, classes = {"values": torch.arange(3.0)}, {"class": torch.tensor([4, 0, 2])}
    batch = TaskBatch(values, values, {}, ("a", "b", "c"), conditions=classes)
    assert [task.conditions["class"].tolist() for task in batch] == [[4], [0], [2]]
    moved = batch.to(torch.device("cpu"), torch.float64).conditions["class"]
    assert moved.dtype == torch.int64 and torch.equal(moved, classes["class"])
    assert batch.map(lambda t: t + 1).conditions["class"].tolist() == [5, 1, 3]
    assert TaskBatch(values, values, {}, ("a", "b", "c")).conditions == {}
    for wrong in (torch.tensor([1, 2]), torch.tensor(1)):
        with pytest.raises(DataError, match="a condition 'class' for each of the 3 tasks"):
            TaskBatch(values, values, {}, ("a", "b", "c"), conditions={"class": wrong})


@every_domain
def test_what_is_observed_is_one_tensor_of_the_support_alone(row: str) -> None:
    domain = domain_of(row)
    if not isinstance(domain, Observing):
        pytest.skip("what its support shows has no fixed shape")
    batch = domain.tasks(0, 0, 4, "validation")
    seen = domain.observed(batch.support, batch.shared)
    assert len(seen) == 4 and seen.is_floating_point() and not torch.equal(seen[0], seen[1])
    one_by_one = torch.cat([domain.observed(task.support, task.shared) for task in batch])
    assert torch.equal(seen, one_by_one)


def test_segmentation_says_nothing_of_a_fixed_shape() -> None:
    assert {row for row in TABLE if not isinstance(domain_of(row), Observing)} == {
        row for row in TABLE if row.startswith("segmentation")
    }
