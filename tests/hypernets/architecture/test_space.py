"""The architecture space: pure draws, splits that share nothing, networks that run, real shifts."""

import itertools

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import metainit
from hypernets.architecture.space import (
    FAMILIES,
    build_architecture,
    combinations_of,
    cost_of,
    distinct,
    identity,
    sample,
    split_of,
)
from hypernets.architecture.space_networks import ACTIVATIONS, IMAGE_NORMALIZATIONS, ConvArguments
from hypernets.architecture.space_ranges import HELD_OUT, ConvRanges, SpaceConfig, larger, recombined
from metainit.card import Spec
from metainit.errors import RecipeError

BASE = SpaceConfig()


@pytest.fixture(scope="module")
def drawn():
    return [sample(BASE, 0, index) for index in range(200)]


def test_draws_depend_on_their_arguments_alone(drawn):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert [sample(BASE, 0, index) for index in (7, 3)] == [drawn[7], drawn[3]]
    assert torch.equal(torch.get_rng_state(), state)
    assert sample(BASE, 1, 3) != drawn[3]


def test_splits_share_no_architecture_whatever_the_seeds():
    found = {
        split: {
            identity(sample(BASE, seed, index, split)) for seed, index in itertools.product((0, 1), range(15))
        }
        for split in ("train", "validation", "test")
    }
    for a, b in itertools.combinations(found.values(), 2):
        assert not a & b


def test_the_split_is_read_off_the_architecture(drawn):
    assert {split_of(spec) for spec in drawn} == {"train"}
    assert split_of(sample(larger(BASE), 0, 0, "test")) == "test"


@pytest.mark.parametrize(
    "part", [slice(0, 40), pytest.param(slice(40, 200), marks=pytest.mark.slow)], ids=["40", "200"]
)
def test_all_networks_run_forward_and_backward(drawn, part):
    images, labels = torch.randn(2, 1, 14, 14), torch.tensor([3, 7])
    for spec in drawn[part]:
        network = build_architecture(spec, seed=1).train()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        assert loss.isfinite(), spec
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()), spec


def test_the_space_is_varied(drawn):
    networks = [spec.arguments for spec in drawn if spec.name == "cnn"]
    blocks = [block for network in networks for block in network["blocks"]]
    assert {spec.name for spec in drawn} == set(FAMILIES)
    assert {n["activation"] for n in networks} == set(ACTIVATIONS)
    assert {n["norm"] for n in networks} == set(IMAGE_NORMALIZATIONS)
    assert {b["kind"] for b in blocks} == set(BASE.cnn.blocks)
    assert {b["gate"] for b in blocks} == {b["downsample"] for b in blocks} == {True, False}
    assert len({identity(spec) for spec in drawn}) > 180


def test_limits_are_kept(drawn):
    for spec in drawn:
        cost = cost_of(spec)
        assert cost.parameters <= BASE.max_parameters and cost.macs <= BASE.max_macs


def test_operations_are_counted_as_the_framework_counts_them(drawn):
    for spec in [s for s in drawn if s.name != "vit"][:10]:
        with FlopCounterMode(display=False) as counter:
            build_architecture(spec).eval()(torch.zeros(1, 1, 14, 14))
        assert cost_of(spec).macs * 2 == counter.get_total_flops()


def test_held_out_combinations_never_occur(drawn):
    assert not set().union(*map(combinations_of, drawn)) & set(HELD_OUT)
    shifted = [sample(recombined(BASE), 0, index, "test") for index in range(40)]
    assert all(combinations_of(spec) and combinations_of(spec) <= set(HELD_OUT) for spec in shifted)


def test_all_parts_of_held_out_combinations_are_known(drawn):
    seen = set().union(*map(combinations_of, drawn))
    for block, norm, activation in HELD_OUT:
        assert {(b, n) for b, n, _ in seen} >= {(block, norm)}
        assert {(n, a) for _, n, a in seen} >= {(norm, activation)}


def test_larger_networks_are_deeper_and_wider_than_all_of_the_base():
    for index in range(12):
        spec = sample(larger(BASE), 0, index)
        if spec.name == "vit":
            assert spec.arguments["width"] > BASE.vit.width[1] and spec.arguments["depth"] > BASE.vit.depth[1]
            continue
        ranges = {"cnn": BASE.cnn, "mlp": BASE.mlp}[spec.name]
        widths = spec.arguments.get("widths") or [b["width"] for b in spec.arguments["blocks"]]
        assert min(widths) > ranges.width[1] and len(widths) > ranges.depth[1]


def test_default_weights_come_from_the_seed(drawn):
    spec = drawn[0]
    a, b, c = (build_architecture(spec, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("rule", ["default", "kaiming", "orthogonal"])
def test_analytic_rules_fill_every_network(drawn, rule):
    for spec in drawn[:20]:
        network = build_architecture(spec)
        metainit.init_(network, rule, seed=0)
        assert all(value.isfinite().all() for value in network.state_dict().values())


def test_grouped_blocks_take_any_image():
    block = {"kind": "grouped", "width": 8, "kernel": 3, "downsample": True}
    arguments = ConvArguments(
        channels=3, size=5, classes=4, norm="batch", activation="relu", pooling="stride", head="flatten",
        blocks=(block, block),
    )  # fmt: skip
    network = build_architecture(Spec(name="cnn", arguments=arguments.model_dump(mode="json")))
    assert network(torch.randn(2, 3, 5, 5)).shape == (2, 4)


def test_distinct_architectures_are_distinct_and_stay():
    first = distinct(BASE, 0, 12, "test")
    assert len({identity(s) for s in first}) == 12
    assert distinct(BASE, 0, 6, "test") == first[:6]


def test_errors_name_what_is_wrong():
    with pytest.raises(RecipeError, match="did you mean 'cnn'"):
        build_architecture(Spec(name="cnnn"))
    with pytest.raises(RecipeError, match=r"(?s)'mlp' cannot be built.*widths"):
        build_architecture(Spec(name="mlp", arguments={"channels": 1, "size": 4, "classes": 3}))
    with pytest.raises(RecipeError, match="raise max_parameters"):
        sample(SpaceConfig(max_macs=100), 0, 0)
    only_held_out = SpaceConfig(
        families={"cnn": 1},
        activations=("relu",),
        cnn=ConvRanges(blocks=("separable",), norms=("batch",)),
    )
    with pytest.raises(RecipeError, match="no combination is left"):
        sample(only_held_out, 0, 0)
