"""Every start that needs no training run: what all of them do, and what is true of each by its paper."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metainit
from metainit.domains.grid import pixel_grid
from metainit.errors import DivergenceError, MismatchError
from metainit.initializers import INITIALIZERS, Context, pretrain_shared_encoder, shared_encoder
from metainit.initializers.base import Role, roles
from metainit.initializers.sine import WEIGHT_SCALE
from metainit.networks import EfficientLab, FourierMLP, Siren, UNet
from metainit.networks.siren import SineLayer


class Convolutions(nn.Module):
    """Kernels, normalizations of three kinds, an embedding-like matrix, layers without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=2, bias=False), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten(),
        )  # fmt: skip
        self.norm = nn.LayerNorm(8 * 4 * 4)
        self.head = nn.Linear(8 * 4 * 4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.norm(self.body(inputs)))


def siren() -> Siren:
    return Siren(2, 3, width=12, depth=4)


def fourier() -> FourierMLP:
    return FourierMLP(2, 3, width=12, depth=3, frequencies=6)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3))


def unet() -> UNet:
    return UNet(2, 3, width=4, depth=2)


def efficientlab() -> EfficientLab:
    return EfficientLab(2, 3, width=0.25, depth=0.3, norm="batch")


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(5))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "siren": siren, "fourier": fourier, "perceptron": perceptron, "convolutions": Convolutions,
    "unet": unet, "efficientlab": efficientlab,
}  # fmt: skip
ANY = tuple(NETWORKS)
COORDINATES = ("siren", "fourier", "perceptron")

TABLE: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "default": (ANY, {}),
    "kaiming": (ANY, {}),
    "orthogonal": (ANY, {}),
    "siren": (("siren",), {}),
    "siren_scaled": (("siren",), {}),
    "lsuv": (ANY, {"inputs": True}),
    "snp": (("siren", "fourier"), {}),
    "strainer": (COORDINATES, {"inputs": True, "signals": True}),
}
"""Name -> the networks that it covers, and what it needs; a new one adds its row and gets every test."""

ROWS = [(name, network) for name, (networks, _) in TABLE.items() for network in networks]
every_row = pytest.mark.parametrize("name,on", ROWS)
every_name = pytest.mark.parametrize("name", TABLE)


def test_the_table_has_every_initializer() -> None:
    assert set(TABLE) == set(INITIALIZERS)
    assert all(paper for _, paper in INITIALIZERS.values())


def arguments_of(name: str, on: str, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    needs = TABLE[name][1]
    inputs = pixel_grid(8, 8) if on in COORDINATES else drawn(16, 2, 8, 8)
    found: dict[str, Any] = {}
    if needs.get("inputs"):
        found["example_inputs"] = inputs.to(dtype)
    if needs.get("signals"):
        found["observation"] = drawn(3, len(inputs), 3).to(dtype)
    return found


def poisoned(on: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    network = NETWORKS[on]().to(dtype)
    with torch.no_grad():
        for value in network.parameters():
            value.fill_(math.nan)
    return network


def state(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(v.equal(b[k]) or (v.isnan() == b[k].isnan()).all() and v.isnan().any() for k, v in a.items())


@pytest.fixture(autouse=True, scope="module")
def few_steps() -> Iterator[None]:
    """What every start has to do, it has to do after 20 steps of pre-training too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_encoder, "STEPS", 20)
        yield


@cache
def filled(name: str, on: str, seed: int = 0, outside: int = 0) -> nn.Module:
    """A network that was all NaN before; `outside` seeds the global random state."""
    torch.manual_seed(outside)
    return metainit.init_(poisoned(on), name, seed=seed, **arguments_of(name, on))


@every_row
def test_leaves_nothing_unfilled(name: str, on: str) -> None:
    for key, value in filled(name, on).named_parameters():
        assert torch.isfinite(value).all(), key
        assert value.requires_grad and value.grad is None and value.is_leaf, key


@every_row
def test_same_seed_same_bytes_whatever_the_global_random_state(name: str, on: str) -> None:
    first, again = filled(name, on), filled(name, on, outside=1)
    other = filled(name, on, seed=1)
    assert all(v.equal(again.state_dict()[k]) for k, v in first.state_dict().items())
    assert any(not v.equal(other.state_dict()[k]) for k, v in first.named_parameters())


@every_row
def test_leaves_the_global_random_state_alone(name: str, on: str) -> None:
    network = NETWORKS[on]()
    before = torch.get_rng_state()
    metainit.init_(network, name, seed=0, **arguments_of(name, on))
    assert torch.equal(torch.get_rng_state(), before)


@every_name
def test_without_a_seed_it_follows_the_global_one(name: str) -> None:
    on = TABLE[name][0][0]
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(state(metainit.init_(NETWORKS[on](), name, **arguments_of(name, on))))
    assert equal(found[0], found[1]) and not equal(found[0], found[2])


@every_name
def test_keeps_the_dtype(name: str) -> None:
    on = "siren"
    network = metainit.init_(
        poisoned(on, torch.float64), name, seed=0, **arguments_of(name, on, torch.float64)
    )
    assert all(v.dtype == torch.float64 and torch.isfinite(v).all() for v in network.parameters())


class WithRawVector(nn.Module):
    """A network with a parameter that no rule speaks of."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.body(inputs) * self.scale


@every_name
def test_what_it_cannot_cover_is_refused_and_nothing_changes(name: str) -> None:
    network = WithRawVector()
    before = state(network)
    with pytest.raises(MismatchError) as caught:
        metainit.init_(network, name, seed=0, **arguments_of(name, "perceptron"))
    assert equal(state(network), before)
    sines = name.startswith("siren")
    assert ("WithRawVector has no sine layers" if sines else "scale") in str(caught.value)


@pytest.mark.parametrize("name,missing", [
    ("lsuv", "example_inputs"), ("strainer", "example_inputs"), ("strainer", "observation")
])  # fmt: skip
def test_a_missing_argument_is_named(name: str, missing: str) -> None:
    arguments = arguments_of(name, "siren")
    del arguments[missing]
    network = siren()
    before = state(network)
    with pytest.raises(MismatchError, match=f"pass {missing}=..."):
        metainit.init_(network, name, seed=0, **arguments)
    assert equal(state(network), before)


@pytest.mark.parametrize(
    "name,wrong",
    [("lsuv", "sizes"), ("lsuv", "nan"), ("snp", "sizes"), ("strainer", "sizes"), ("strainer", "nan")],
)
def test_data_that_do_not_fit_are_refused_and_nothing_changes(name: str, wrong: str) -> None:
    network = Siren(3, 3, width=6, depth=3) if wrong == "sizes" else siren()
    arguments = arguments_of(name, "siren")
    if wrong == "nan":
        key = "observation" if name == "strainer" else "example_inputs"
        arguments[key] = torch.full_like(arguments[key], math.nan)
    before = state(network)
    with pytest.raises((MismatchError, DivergenceError)):
        metainit.init_(network, name, seed=0, **arguments)
    assert equal(state(network), before)


class TestRoles:
    def test_of_every_kind_of_parameter(self) -> None:
        found = roles(Convolutions())
        assert {k for k, role in found.items() if role is Role.WEIGHT} == {
            "body.0.weight", "body.3.weight", "head.weight"
        }  # fmt: skip
        assert {k for k, role in found.items() if role is Role.NORM_WEIGHT} == {
            "body.1.weight", "body.4.weight", "norm.weight"
        }  # fmt: skip
        assert all(role is Role.BIAS for k, role in found.items() if k.endswith("bias"))

    def test_names_all_that_have_none(self) -> None:
        network = nn.Module()
        network.a, network.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(()))
        with pytest.raises(MismatchError, match=r"a \(3,\), b \(\)"):
            roles(network)


class TestDefault:
    @pytest.mark.parametrize("on", ANY)
    def test_is_what_the_framework_draws(self, on: str) -> None:
        """The bounds of Linear and Conv, the ones and zeros of normalizations."""
        for module in filled("default", on).modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                bound = 1 / math.sqrt(module.weight[0].numel())
                assert 0.5 * bound < float(module.weight.detach().abs().max()) <= bound
            if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
                assert module.weight.eq(1).all() and module.bias.eq(0).all()

    def test_a_module_without_reset_parameters_is_named(self) -> None:
        with pytest.raises(MismatchError, match="in_proj_weight.*without reset_parameters"):
            metainit.init_(nn.MultiheadAttention(4, 2), "default", seed=0)


def check_biases_and_norms(network: nn.Module) -> None:
    for name, value in network.named_parameters():
        role = roles(network)[name]
        if role is not Role.WEIGHT:
            assert value.eq(0 if role is Role.BIAS else 1).all(), name


class TestKaiming:
    def test_weights_are_normal_with_variance_2_over_fan_in(self) -> None:
        network = nn.Sequential(nn.Linear(50, 400), nn.Conv2d(10, 200, 3), nn.Conv2d(20, 200, 3, groups=2))
        metainit.init_(network, "kaiming", seed=0)
        for module, fan_in in zip(network, (50, 90, 90), strict=True):
            scaled = module.weight.detach() * math.sqrt(fan_in / 2)
            assert float(scaled.var()) == pytest.approx(1, rel=0.05)
            assert float(scaled.mean()) == pytest.approx(0, abs=0.03)
            assert float((scaled.abs() < 1).float().mean()) == pytest.approx(0.6827, abs=0.01)

    @pytest.mark.parametrize("on", ANY)
    def test_biases_and_norms(self, on: str) -> None:
        check_biases_and_norms(filled("kaiming", on))

    def test_a_relu_network_keeps_the_second_moment(self) -> None:
        """Section 2.2 of the paper: what the layers give has the same variance at every depth."""
        layers = [part for _ in range(20) for part in (nn.Linear(512, 512), nn.ReLU())]
        network = metainit.init_(nn.Sequential(*layers, nn.Linear(512, 512)), "kaiming", seed=0)
        x = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))  # not the weights' own numbers
        assert float(network(x).square().mean().detach()) == pytest.approx(2.0, rel=0.25)


class TestOrthogonal:
    @pytest.mark.parametrize("on", ANY)
    def test_rows_or_columns_are_orthonormal(self, on: str) -> None:
        network = filled("orthogonal", on)
        check_biases_and_norms(network)
        for name, value in network.named_parameters():
            if roles(network)[name] is Role.WEIGHT:
                flat = value.detach().flatten(1)
                gram = flat @ flat.T if flat.shape[0] <= flat.shape[1] else flat.T @ flat
                torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)


class TestSiren:
    @pytest.mark.parametrize("omega,first", [(30.0, 30.0), (200.0, 200.0), (10.0, 60.0)])
    def test_weights_are_uniform_between_the_bounds_of_the_paper(self, omega: float, first: float) -> None:
        network = Siren(2, 64, width=128, depth=4, omega=omega, omega_first=first)
        metainit.init_(network, "siren", seed=0)
        inner = math.sqrt(6 / 128) / omega
        for layer, bound in zip(network.layers, (1 / 2, inner, inner, inner), strict=True):
            weight = layer.weight.detach()
            assert 0.97 * bound < float(weight.max()) <= bound
            assert -bound <= float(weight.min()) < -0.97 * bound
            assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.08)
            assert float(layer.bias.detach().abs().max()) <= 1 / math.sqrt(layer.in_features)

    def test_scaled_has_all_but_the_last_layers_weights_times_two(self) -> None:
        plain, scaled = filled("siren", "siren"), filled("siren_scaled", "siren")
        *_, last = dict(plain.named_modules())
        for name, value in plain.named_parameters():
            larger = name.endswith("weight") and not name.startswith(last)
            factor = WEIGHT_SCALE if larger else 1.0
            assert torch.equal(factor * value, scaled.get_parameter(name)), name
        assert WEIGHT_SCALE == 2.0


class TestLSUV:
    @pytest.mark.parametrize("on", ANY)
    def test_every_layers_output_has_unit_variance(self, on: str) -> None:
        network, spreads = filled("lsuv", on), {}

        def keep(name: str) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
                sine = isinstance(module, SineLayer)
                of = module.pre_activation(*inputs) if sine else output
                spreads[name] = float(of.detach().std(correction=0))

            return hook

        layers = {k: m for k, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        handles = [module.register_forward_hook(keep(name)) for name, module in layers.items()]
        network(arguments_of("lsuv", on)["example_inputs"])
        for handle in handles:
            handle.remove()
        assert set(spreads) == set(layers)
        assert all(spread == pytest.approx(1, abs=0.011) for spread in spreads.values()), spreads

    @pytest.mark.parametrize("on", ANY)
    def test_weights_are_scaled_orthogonal_ones(self, on: str) -> None:
        orthogonal, scaled = filled("orthogonal", on), filled("lsuv", on)
        for name, value in orthogonal.named_parameters():
            other = scaled.get_parameter(name).detach()
            if roles(orthogonal)[name] is Role.WEIGHT:
                torch.testing.assert_close(other / other.norm(), (value / value.norm()).detach())

    def test_leaves_buffers_hooks_and_mode_as_they_were(self) -> None:
        network = Convolutions()
        before = {k: v.clone() for k, v in network.named_buffers()}
        metainit.init_(network, "lsuv", seed=0, **arguments_of("lsuv", "convolutions"))
        assert all(torch.equal(v, before[k]) for k, v in network.named_buffers())
        assert network.training and not any(module._forward_hooks for module in network.modules())

    @pytest.mark.parametrize(
        "network,inputs,says",
        [
            (siren(), torch.zeros(9, 2), "layers.0 is constant"),
            (siren(), torch.zeros(0, 2), "layers.0 is constant"),
            (perceptron(), torch.full((9, 2), math.inf), "0 is not finite"),
        ],
    )
    def test_data_without_a_spread_are_refused(self, network: nn.Module, inputs: Tensor, says: str) -> None:
        before = state(network)
        with pytest.raises(MismatchError, match=says):
            metainit.init_(network, "lsuv", seed=0, example_inputs=inputs)
        assert equal(state(network), before)

    def test_a_layer_that_is_not_called_is_named(self) -> None:
        network = perceptron()
        network.spare = nn.Linear(2, 2)
        network.forward = lambda inputs: network[2](network[1](network[0](inputs)))  # type: ignore[method-assign]
        before = state(network)
        with pytest.raises(MismatchError, match="spare is not called"):
            metainit.init_(network, "lsuv", seed=0, example_inputs=drawn(9, 2))
        assert equal(state(network), before)


class TestSharedEncoder:
    def test_the_head_is_drawn_anew_and_the_encoder_learned(self) -> None:
        """STRAINER, section 3: the encoder is kept; each signal's own head is thrown away."""
        start, found = filled("siren", "siren"), filled("strainer", "siren")
        *_, last = dict(start.named_modules())
        for name, value in start.named_parameters():
            assert torch.equal(value, found.get_parameter(name)) == name.startswith(last), name

    def test_the_first_step_is_adams_on_the_sum_over_the_signals(self) -> None:
        network, x, signals = siren().double(), pixel_grid(5, 5).double(), drawn(3, 25, 3).double()
        network.reset_sine_parameters(torch.Generator().manual_seed(0))
        loss = sum((network(x) - signal).square().mean() for signal in signals)
        slopes = dict(zip(state(network), torch.autograd.grad(loss, list(network.parameters())), strict=True))
        found = siren().double()
        pretrain_shared_encoder(found, x, signals, torch.Generator().manual_seed(0), steps=1, step_size=1e-3)
        for name, slope in slopes.items():
            moved = found.get_parameter(name).detach() - network.get_parameter(name).detach()
            expected = torch.zeros_like(slope) if name.startswith("layers.3") else -1e-3 * slope.sign()
            torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0, msg=name)

    def test_data_in_single_precision_fill_a_network_in_double(self) -> None:
        network, x, signals = siren().double(), pixel_grid(5, 5), drawn(3, 25, 3)
        pretrain_shared_encoder(network, x, signals, torch.Generator().manual_seed(0), steps=3)
        exact = siren().double()
        pretrain_shared_encoder(
            exact, x.double(), signals.double(), torch.Generator().manual_seed(0), steps=3
        )
        assert equal(state(network), state(exact))

    def test_fits_signals_that_share_an_encoder(self) -> None:
        losses: list[float] = []
        network, x = siren(), pixel_grid(6, 6)
        waves = torch.stack([torch.sin(3 * x[:, :1] + k).expand(-1, 3) for k in range(3)])
        pretrain_shared_encoder(
            network,
            x,
            waves,
            torch.Generator().manual_seed(0),
            200,
            3e-3,
            lambda step, loss: losses.append(loss),
        )
        assert len(losses) == 200 and losses[-1] < 0.02 * losses[0]

    def test_noise_makes_a_start_that_fits_noise_sooner(self) -> None:
        """Snp, on noise it has not seen: the pre-trained encoder beats the scheme it began with."""
        x, target, reached = pixel_grid(8, 8), drawn(64, 3), {}
        for name in ("siren", "snp"):
            network = siren()
            network.reset_sine_parameters(torch.Generator().manual_seed(0))
            if name == "snp":
                noise = drawn(10, 64, 3)
                pretrain_shared_encoder(network, x, noise, torch.Generator().manual_seed(0), 300, 1e-3)
            optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
            for _ in range(100):
                loss = (network(x) - target).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            reached[name] = float(loss.detach())
        assert reached["snp"] < 0.8 * reached["siren"]

    def test_divergence_is_reported_and_nothing_changes(self) -> None:
        network = perceptron()
        before = state(network)
        with pytest.raises(DivergenceError, match="lower step_size"):
            pretrain_shared_encoder(
                network, pixel_grid(4, 4), drawn(2, 16, 3), torch.Generator(), steps=50, step_size=1e30
            )
        assert equal(state(network), before)

    @pytest.mark.parametrize("shape", [(16, 3), (2, 16, 1), (2, 9, 3), (0, 16, 3)])
    def test_signals_of_another_shape_are_refused(self, shape: tuple[int, ...]) -> None:
        network = perceptron()
        before = state(network)
        with pytest.raises(MismatchError, match=r"expected \(signals, 16, 3\)"):
            pretrain_shared_encoder(network, pixel_grid(4, 4), torch.zeros(shape), torch.Generator())
        assert equal(state(network), before)


def test_context_is_all_that_a_rule_sees() -> None:
    """A rule called by hand gives what `load(...).init_` gives."""
    by_hand = siren()
    INITIALIZERS["siren"][0](by_hand, Context(torch.Generator().manual_seed(0)))
    assert equal(state(by_hand), state(filled("siren", "siren")))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["default", "kaiming", "orthogonal", "siren", "siren_scaled", "lsuv"])
def test_the_type_is_the_networks(name: str, dtype: torch.dtype) -> None:
    network = metainit.init_(siren().to(dtype), name, seed=0, example_inputs=drawn(64, 2))
    values = list(network.parameters())
    assert all(v.dtype == dtype and bool(torch.isfinite(v).all()) for v in values)
    single = metainit.init_(siren(), name, seed=0, example_inputs=drawn(64, 2))
    if name in ("orthogonal", "lsuv") and dtype != torch.float64:  # drawn in single precision, then rounded
        for found, exact in zip(values, single.parameters(), strict=True):
            torch.testing.assert_close(found.float(), exact, atol=0.02, rtol=0.02)
