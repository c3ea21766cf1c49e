"""Every network: sizes, types, vmap, state; and what is true of each by its paper."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import stack_module_state, vmap

from metainit import checkpoint as files
from metainit.card import Card, Method, Spec
from metainit.errors import RecipeError
from metainit.fill import fill
from metainit.initializers.base import SineNetwork
from metainit.networks import NETWORKS, FourierMLP, Siren, build, function_of
from metainit.networks.chunks import in_chunks
from metainit.networks.siren import SineLayer

TABLE: dict[str, Spec] = {
    "siren": Spec(name="siren", arguments={"width": 16, "depth": 3}),
    "siren, Tancik": Spec(
        name="siren", arguments={"width": 16, "depth": 4, "omega": 200.0, "omega_first": 200.0}
    ),
    "siren, shallow": Spec(name="siren", arguments={"width": 8, "depth": 2, "offset": 0.0}),
    "fourier_mlp": Spec(name="fourier_mlp", arguments={"width": 16, "depth": 3, "frequencies": 8}),
    "fourier_mlp, linear": Spec(
        name="fourier_mlp", arguments={"width": 8, "depth": 2, "frequencies": 4, "sigmoid": False}
    ),
}
"""One row a network or variant of one: a new one adds its row and gets every test below."""

every_network = pytest.mark.parametrize("row", TABLE)


def network_of(row: str, seed: int = 0, **changes: Any) -> nn.Module:
    spec = TABLE[row]
    return build(Spec(name=spec.name, arguments={**spec.arguments, **changes}), seed)


def scaled_network_of(row: str, seed: int = 0) -> nn.Module:
    """The network with weights of its own scheme: the framework's, under a large frequency, are chaotic."""
    network = network_of(row, seed)
    if isinstance(network, SineNetwork):
        network.reset_sine_parameters(torch.Generator().manual_seed(seed))
    return network


def points(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype) - 1


def test_the_table_has_every_network() -> None:
    assert {spec.name for spec in TABLE.values()} == set(NETWORKS)


@every_network
@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 9),
    st.integers(2, 5),
    st.lists(st.integers(1, 4), max_size=3),
)
def test_any_sizes(row: str, features: int, outputs: int, width: int, depth: int, lead: list[int]) -> None:
    network = network_of(row, in_features=features, out_features=outputs, width=width, depth=depth)
    assert network(points(*lead, features)).shape == (*lead, outputs)
    linear = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == depth and {m.out_features for m in linear[:-1]} == {width}


@every_network
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_keeps_the_dtype(row: str, dtype: torch.dtype) -> None:
    network = network_of(row).to(dtype)
    found = network(points(5, 2, dtype=dtype))
    assert found.dtype == dtype and torch.isfinite(found).all()


@every_network
def test_float32_is_float64_rounded(row: str) -> None:
    network = scaled_network_of(row)
    x = points(64, 2)
    error = (network(x).double() - network.double()(x.double())).abs().max()
    assert error < 1e-4


@every_network
def test_each_point_is_computed_alone(row: str) -> None:
    network, x = scaled_network_of(row).double(), points(12, 2, dtype=torch.float64)
    one_by_one = torch.stack([network(point) for point in x])
    torch.testing.assert_close(network(x), one_by_one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network(x.view(3, 4, 2)), one_by_one.view(3, 4, -1), rtol=1e-12, atol=1e-12)


@every_network
def test_vmap_over_weights_is_one_network_after_another(row: str) -> None:
    networks = [scaled_network_of(row, seed).double() for seed in range(3)]
    x = points(3, 7, 2, dtype=torch.float64)
    stacked, _ = stack_module_state(networks)  # type: ignore[arg-type]
    function = function_of(networks[0])
    at_once = vmap(lambda weights, inputs: function(weights)(inputs))(stacked, x)
    one_by_one = torch.stack([network(inputs) for network, inputs in zip(networks, x, strict=True)])
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-12, atol=1e-12)


@every_network
def test_second_derivatives_agree_with_finite_differences(row: str) -> None:
    small = {"frequencies": 2} if row.startswith("fourier") else {"omega": 3.0, "omega_first": 3.0}
    network = network_of(row, width=3, out_features=1, **small).double()
    names, x = [k for k, _ in network.named_parameters()], points(4, 2, dtype=torch.float64)

    def loss(*values: Tensor) -> Tensor:
        return function_of(network)(dict(zip(names, values, strict=True)))(x).square().mean()

    values = [v.detach().clone().requires_grad_() for v in network.parameters()]
    assert torch.autograd.gradgradcheck(loss, values, atol=1e-6, rtol=1e-4)


@every_network
def test_state_round_trip_through_a_checkpoint(row: str) -> None:
    network, other, x = network_of(row), network_of(row, seed=1), points(9, 2)
    assert not torch.equal(network(x), other(x))
    card = Card(kind="prior", name="a", method=Method(name="none"), network=TABLE[row])
    stored = files.from_bytes(files.to_bytes(network.state_dict(), card))
    assert stored.card.network is not None
    fill(other, stored.weights, "test")
    assert torch.equal(network(x), other(x))
    assert torch.equal(network(x), fill(build(stored.card.network, seed=5), stored.weights, "test")(x))


@every_network
def test_a_spec_and_a_seed_are_one_network(row: str) -> None:
    before = torch.get_rng_state()
    first, again, other = network_of(row, 3), network_of(row, 3), network_of(row, 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in first.state_dict().items())
    assert not all(torch.equal(v, other.state_dict()[k]) for k, v in first.state_dict().items())


@every_network
@pytest.mark.parametrize("wrong", [{"width": 0}, {"depth": 1}, {"in_features": -1}, {"out_features": 0}])
def test_impossible_sizes_are_refused(row: str, wrong: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="cannot be built: sizes must be positive"):
        network_of(row, **wrong)


@every_network
def test_a_mistyped_argument_gets_a_suggestion(row: str) -> None:
    with pytest.raises(RecipeError, match="takes no argument 'widht'; did you mean 'width'"):
        network_of(row, widht=3)


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="no network is called 'sirn'; did you mean 'siren'"):
        build(Spec(name="sirn"))


@pytest.mark.parametrize("wrong", [{"width": "wide"}, {"width": 2.5}, {"width": None}])
def test_an_argument_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match="cannot be built"):
        network_of("siren", **wrong)


class TestFunctionOf:
    @every_network
    def test_threads_do_not_see_each_others_weights(self, row: str) -> None:
        network, x = network_of(row), points(512, 2)
        weights = [dict(network_of(row, seed).named_parameters()) for seed in range(8)]
        function = function_of(network)
        expected = [function(w)(x) for w in weights]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(5):
                found = list(pool.map(lambda w: function(w)(x), weights))
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    def test_writes_nothing_to_the_module(self) -> None:
        network = network_of("siren")
        before = {k: (id(v), v.detach().clone()) for k, v in network.named_parameters()}
        seen: list[bool] = []
        network.layers[1].register_forward_hook(
            lambda *_: seen.append(all(id(v) == before[k][0] for k, v in network.named_parameters()))
        )
        function_of(network)({k: torch.zeros_like(v) for k, v in network.named_parameters()})(points(3, 2))
        assert seen == [True]
        assert all(torch.equal(v, before[k][1]) for k, v in network.named_parameters())

    def test_a_module_that_is_used_twice_stays_one(self) -> None:
        shared = nn.Linear(2, 2)
        network = nn.Sequential(shared, nn.Tanh(), shared)
        weights = {k: torch.full_like(v, 0.5) for k, v in network.named_parameters()}
        expected = (points(4, 2) @ torch.full((2, 2), 0.5) + 0.5).tanh() @ torch.full((2, 2), 0.5) + 0.5
        torch.testing.assert_close(function_of(network)(weights)(points(4, 2)), expected)

    def test_buffers_are_the_networks_own(self) -> None:
        network = network_of("fourier_mlp")
        function, x = function_of(network), points(4, 2)
        weights = dict(network.named_parameters())
        before = function(weights)(x)
        with torch.no_grad():
            network.get_buffer("frequencies").mul_(0.5)
        assert not torch.equal(function(weights)(x), before)
        assert torch.equal(function(weights)(x), network(x))


class TestSiren:
    def test_is_the_formula_of_the_paper(self) -> None:
        network = Siren(3, 2, width=7, depth=4, omega=30.0, omega_first=200.0, offset=0.5).double()
        x = points(11, 3, dtype=torch.float64)
        h = x
        for omega, layer in zip((200.0, 30.0, 30.0), network.layers, strict=False):
            h = torch.sin(omega * (h @ layer.weight.T + layer.bias))
        expected = h @ network.layers[-1].weight.T + network.layers[-1].bias + 0.5
        torch.testing.assert_close(network(x), expected, rtol=1e-11, atol=1e-11)

    def test_tanciks_variant_has_one_frequency_and_a_shifted_output(self) -> None:
        network = network_of("siren, Tancik")
        assert {m.omega for m in network.modules() if isinstance(m, SineLayer)} == {200.0}
        with torch.no_grad():
            for value in network.parameters():
                value.zero_()
        assert network(points(5, 2)).unique().tolist() == [0.5]

    @pytest.mark.parametrize("omega", [30.0, 200.0])
    def test_activations_keep_their_distribution_through_the_layers(self, omega: float) -> None:
        """Theorem 1.8 of the paper: sines are arcsine distributed, what they are taken of has variance 1.

        Without the biases, which the theorem leaves out: the authors' are as large as the framework's.
        """
        network = Siren(2, 1, width=256, depth=8, omega=omega, omega_first=omega)
        network.reset_sine_parameters(torch.Generator().manual_seed(0))
        hidden = points(2048, 2)
        with torch.no_grad():
            for index, layer in enumerate(network.layers[:-1]):
                inner = layer.pre_activation(hidden)
                if index > 0:
                    assert float((inner - layer.omega * layer.bias).std()) == pytest.approx(1, abs=0.06), (
                        index
                    )
                hidden = torch.sin(inner)
                assert float(hidden.square().mean()) == pytest.approx(0.5, abs=0.03), index
                assert float((hidden.abs() < 0.5).float().mean()) == pytest.approx(1 / 3, abs=0.03), index


class TestFourierMLP:
    def test_is_the_formula_of_the_paper(self) -> None:
        network = FourierMLP(2, 1, width=5, depth=3, frequencies=4, scale=3.0).double()
        x = points(6, 2, dtype=torch.float64)
        phase = 2 * math.pi * x @ network.frequencies.T
        h = torch.cat([phase.sin(), phase.cos()], dim=-1)
        for layer in network.layers[:-1]:
            h = (h @ layer.weight.T + layer.bias).clamp(min=0)
        expected = (h @ network.layers[-1].weight.T + network.layers[-1].bias).sigmoid()
        torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)

    def test_frequencies_have_the_asked_spread(self) -> None:
        drawn = FourierMLP(2, 1, width=2, depth=2, frequencies=20_000, scale=10.0).frequencies
        assert float(drawn.std()) == pytest.approx(10.0, rel=0.02)
        assert float(drawn.mean()) == pytest.approx(0.0, abs=0.2)

    def test_frequencies_belong_to_the_spec_and_to_the_checkpoint(self) -> None:
        first, again = (network_of("fourier_mlp", seed) for seed in (0, 1))
        other = network_of("fourier_mlp", frequency_seed=1)
        assert torch.equal(first.get_buffer("frequencies"), again.get_buffer("frequencies"))
        assert not torch.equal(first.get_buffer("frequencies"), other.get_buffer("frequencies"))
        assert "frequencies" in first.state_dict()
        x = points(9, 2)
        fill(other, first.state_dict(), "test")
        assert torch.equal(other(x), first(x))

    def test_the_sigmoid_keeps_values_between_0_and_1(self) -> None:
        values = network_of("fourier_mlp")(100 * points(500, 2)).detach()
        assert 0 <= float(values.min()) < float(values.max()) <= 1


@pytest.mark.parametrize("points", [1, 7, 8, 30])
def test_in_chunks_values_and_gradients_are_the_same(points: int) -> None:
    network = build(Spec(name="siren", arguments={"width": 8, "depth": 3})).double()
    inputs = torch.rand(points, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = function_of(network)
    weights = {k: v.detach().requires_grad_() for k, v in network.named_parameters()}
    found = []
    for function in (whole, in_chunks(whole, rows=8)):
        values = function(weights)(inputs)
        slopes = torch.autograd.grad(values.square().sum(), list(weights.values()))
        found.append([values, *slopes])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(in_chunks(whole, rows=8)(weights)(inputs), whole(weights)(inputs))


def test_in_chunks_memory_does_not_grow_with_the_points() -> None:
    """What autograd keeps for the backward pass: the points themselves, and no activations."""
    network = build(Spec(name="siren", arguments={"width": 32, "depth": 4}))
    function, weights = function_of(network), dict(network.named_parameters())

    def kept(function: Any) -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            function(weights)(torch.rand(512, 2))
        return sum(sizes)

    assert kept(in_chunks(function, rows=64)) < kept(function) / 4
