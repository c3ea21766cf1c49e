"""Every network: sizes, types, vmap, state; and what is true of each by its paper."""

import copy
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import stack_module_state, vmap

from metainit import checkpoint as files
from metainit.card import Card, Method, Spec
from metainit.errors import RecipeError
from metainit.fill import fill
from metainit.initializers.base import SineNetwork
from metainit.networks import NETWORKS, Classifier, FourierMLP, Siren, build, function_of
from metainit.networks.chunks import in_chunks
from metainit.networks.efficientlab import (
    CUT,
    STAGES,
    EfficientLab,
    Encoder,
    InvertedBottleneck,
    ResidualSkipDecoder,
)
from metainit.networks.normalization import BatchStatistics
from metainit.networks.siren import SineLayer


@dataclass(frozen=True)
class Row:
    """A network or variant of one: what it is given, and arguments that make it tiny."""

    spec: Spec
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    tiny: dict[str, Any]
    impossible: tuple[dict[str, int], ...]

    def drawn(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return points(*self.inputs, dtype=dtype)


def _coordinates(name: str, tiny: dict[str, Any], **arguments: Any) -> Row:
    wrong = ({"width": 0}, {"depth": 1}, {"in_features": -1}, {"out_features": 0})
    spec = Spec(name=name, arguments={"out_features": 3, **arguments})
    return Row(spec, (7, 2), (7, 3), {"width": 3, "out_features": 1, **tiny}, wrong)


def _images(name: str, tiny: dict[str, Any], **arguments: Any) -> Row:
    wrong = ({"width": 0}, {"depth": 0}, {"in_channels": -1}, {"classes": 0})
    spec = Spec(name=name, arguments={"in_channels": 2, "classes": 3, **arguments})
    return Row(spec, (2, 2, 13, 18), (2, 3, 13, 18), {"classes": 2, **tiny}, wrong)


def _classified(tiny: dict[str, Any], **arguments: Any) -> Row:
    wrong = ({"width": 0}, {"depth": 0}, {"in_channels": -1}, {"classes": 0}, {"size": 0})
    spec = Spec(name="classifier", arguments={"in_channels": 2, "classes": 3, "size": 13, **arguments})
    return Row(spec, (4, 2, 13, 13), (4, 3), {"classes": 2, "width": 2, "depth": 2, **tiny}, wrong)


SLOW_SINES = {"omega": 3.0, "omega_first": 3.0}
COORDINATES: dict[str, Row] = {
    "siren": _coordinates("siren", SLOW_SINES, width=16, depth=3),
    "siren, Tancik": _coordinates("siren", SLOW_SINES, width=16, depth=4, omega=200.0, omega_first=200.0),
    "siren, shallow": _coordinates("siren", SLOW_SINES, width=8, depth=2, offset=0.0),
    "fourier_mlp": _coordinates("fourier_mlp", {"frequencies": 2}, width=16, depth=3, frequencies=8),
    "fourier_mlp, linear": _coordinates(
        "fourier_mlp", {"frequencies": 2}, width=8, depth=2, frequencies=4, sigmoid=False
    ),
}
IMAGES: dict[str, Row] = {
    "unet": _images("unet", {"width": 2, "depth": 2}, width=4, depth=3),
    "unet, batch": _images("unet", {"width": 2, "depth": 2}, width=4, depth=3, norm="batch"),
    "efficientlab": _images("efficientlab", {"width": 0.1, "depth": 0.1}, width=0.25, depth=0.3),
    "efficientlab, batch": _images(
        "efficientlab", {"width": 0.1, "depth": 0.1}, width=0.25, depth=0.3, norm="batch"
    ),
}
CLASSIFIERS: dict[str, Row] = {
    "classifier": _classified({}, width=6, depth=3),
    "classifier, group": _classified({}, width=6, depth=2, norm="group"),
    "classifier, batch": _classified({}, width=6, depth=2, norm="batch"),
}
TABLE: dict[str, Row] = {**COORDINATES, **IMAGES, **CLASSIFIERS}
"""One row a network or variant of one: a new one adds its row and gets every test below."""

every_network = pytest.mark.parametrize("row", TABLE)
of_coordinates = pytest.mark.parametrize("row", COORDINATES)
of_segmenters = pytest.mark.parametrize("row", IMAGES)
of_images = pytest.mark.parametrize("row", {**IMAGES, **CLASSIFIERS})


def network_of(row: str, seed: int = 0, **changes: Any) -> nn.Module:
    spec = TABLE[row].spec
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
    assert {row.spec.name for row in TABLE.values()} == set(NETWORKS)


@of_coordinates
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
    found = network(TABLE[row].drawn(dtype))
    assert found.dtype == dtype and torch.isfinite(found).all() and found.shape == TABLE[row].outputs


@every_network
def test_float32_is_float64_rounded(row: str) -> None:
    network = scaled_network_of(row)
    x = TABLE[row].drawn()
    error = (network(x).double() - network.double()(x.double())).abs().max()
    assert error < 1e-4


@of_coordinates
def test_each_point_is_computed_alone(row: str) -> None:
    network, x = scaled_network_of(row).double(), points(12, 2, dtype=torch.float64)
    one_by_one = torch.stack([network(point) for point in x])
    torch.testing.assert_close(network(x), one_by_one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(network(x.view(3, 4, 2)), one_by_one.view(3, 4, -1), rtol=1e-12, atol=1e-12)


@every_network
def test_vmap_over_weights_is_one_network_after_another(row: str) -> None:
    networks = [scaled_network_of(row, seed).double() for seed in range(3)]
    x = points(3, *TABLE[row].inputs, dtype=torch.float64)
    stacked, _ = stack_module_state(networks)  # type: ignore[arg-type]
    function = function_of(networks[0])
    at_once = vmap(lambda weights, inputs: function(weights)(inputs))(stacked, x)
    one_by_one = torch.stack([network(inputs) for network, inputs in zip(networks, x, strict=True)])
    torch.testing.assert_close(at_once, one_by_one, rtol=1e-12, atol=1e-12)


@every_network
def test_second_derivatives_agree_with_finite_differences(row: str) -> None:
    network, x = network_of(row, **TABLE[row].tiny).double(), TABLE[row].drawn(torch.float64)
    shapes = {k: v.shape for k, v in network.named_parameters()}

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([shape.numel() for shape in shapes.values()])
        weights = {k: p.view(shapes[k]) for k, p in zip(shapes, parts, strict=True)}
        return function_of(network)(weights)(x).square().mean()

    flat = torch.cat([v.detach().flatten() for v in network.parameters()]).requires_grad_()
    # In full where there are few parameters, else in random directions.
    assert torch.autograd.gradgradcheck(loss, flat, atol=1e-6, rtol=1e-4, fast_mode=row not in COORDINATES)


@every_network
def test_state_round_trip_through_a_checkpoint(row: str) -> None:
    network, other, x = network_of(row), network_of(row, seed=1), TABLE[row].drawn()
    assert not torch.equal(network(x), other(x))
    card = Card(kind="prior", name="a", method=Method(name="none"), network=TABLE[row].spec)
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
def test_impossible_sizes_are_refused(row: str) -> None:
    for wrong in TABLE[row].impossible:
        with pytest.raises(RecipeError, match="cannot be built: sizes must be positive"):
            network_of(row, **wrong)


@every_network
def test_a_mistyped_argument_gets_a_suggestion(row: str) -> None:
    with pytest.raises(RecipeError, match="takes no argument 'widht'; did you mean 'width'"):
        network_of(row, widht=3)


def test_a_mistyped_name_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="no network is called 'sirn'; did you mean 'siren'"):
        build(Spec(name="sirn"))


@pytest.mark.parametrize("wrong", [
    {"width": "wide"}, {"width": 2.5}, {"width": None}, {"width": True}, {"omega": "abc"},
    {"omega": math.nan}, {"omega_first": math.inf}, {"offset": [1]}
])  # fmt: skip
def test_an_argument_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=rf"^network\.{next(iter(wrong))} is "):
        network_of("siren", **wrong)


@pytest.mark.parametrize("wrong", [{"omega": 0}, {"omega": -30.0}, {"omega_first": 0.0}])
def test_a_frequency_must_be_positive(wrong: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=f"frequencies must be positive, got .*{next(iter(wrong))}="):
        network_of("siren", **wrong)


@every_network
def test_a_copy_is_the_same_network(row: str) -> None:
    network, x = network_of(row), TABLE[row].drawn()
    other = copy.deepcopy(network)
    expected = network(x)
    with torch.no_grad():
        for value in network.parameters():
            value.zero_()
    assert torch.equal(other(x), expected)


@every_network
def test_is_a_function_of_its_weights_alone(row: str) -> None:
    """No state that a call changes, and the same in training and in use."""
    network, x = network_of(row), TABLE[row].drawn()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert torch.equal(network.train()(x), network.eval()(x))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@of_segmenters
@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 40), st.integers(1, 40))
def test_any_image_size_and_number_of_classes(
    row: str, count: int, channels: int, classes: int, height: int, width: int
) -> None:
    network = network_of(row, in_channels=channels, classes=classes)
    found = network(points(count, channels, height, width))
    assert found.shape == (count, classes, height, width) and torch.isfinite(found).all()


@of_images
def test_memory_format_changes_nothing(row: str) -> None:
    network, x = network_of(row).double(), TABLE[row].drawn(torch.float64)
    found = copy.deepcopy(network).to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last)
    )
    torch.testing.assert_close(found, network(x), rtol=1e-12, atol=1e-12)


@of_images
def test_images_are_independent_unless_the_batch_is_normalized(row: str) -> None:
    network, x = network_of(row).double(), TABLE[row].drawn(torch.float64)
    alone = torch.cat([network(image[None]) for image in x])
    assert torch.allclose(network(x), alone, rtol=1e-10, atol=1e-10) == ("batch" not in row)


@of_images
def test_the_last_layer_is_called_head(row: str) -> None:
    network = network_of(row)
    assert list(dict(network.named_parameters()))[-2:] == ["head.weight", "head.bias"]
    head = network.get_submodule("head")
    with torch.no_grad():
        for value in head.parameters():
            value.zero_()
    assert network(TABLE[row].drawn()).count_nonzero() == 0


@pytest.mark.parametrize("name", ["unet", "efficientlab"])
def test_an_unknown_normalization_is_refused(name: str) -> None:
    with pytest.raises(RecipeError, match=r"network\.norm is 'layer': input should be 'group' or 'batch'"):
        build(Spec(name=name, arguments={"norm": "layer"}))
    with pytest.raises(ValueError, match="norm is 'layer', the choices are: batch, group"):
        NETWORKS[name](norm="layer")


class TestClassifier:
    @settings(max_examples=15, deadline=None)
    @given(
        st.integers(1, 4), st.integers(1, 30), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4),
        st.sampled_from([None, "group", "batch"]),
    )  # fmt: skip
    def test_any_sizes(
        self, channels: int, size: int, classes: int, width: int, depth: int, norm: Any
    ) -> None:
        network = Classifier(channels, size, classes, width, depth, norm)
        found = network(points(3, channels, size, size))
        assert found.shape == (3, classes) and torch.isfinite(found).all()
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert len(convolutions) == depth and {m.out_channels for m in convolutions} == {width}

    def test_has_the_parameters_that_are_counted_by_hand(self) -> None:
        network = build(Spec(name="classifier", arguments={"size": 8, "classes": 3, "width": 4, "depth": 2}))
        assert sum(p.numel() for p in network.parameters()) == (9 + 1) * 4 + (36 + 1) * 4 + (4 * 4 + 1) * 3

    def test_is_its_layers_one_after_the_other(self) -> None:
        network, x = network_of("classifier").double(), points(4, 2, 13, 13, dtype=torch.float64)
        hidden, weights = x, network.state_dict()
        for place in ("features.0", "features.2", "features.4"):
            weight, bias = weights[f"{place}.weight"], weights[f"{place}.bias"]
            hidden = F.conv2d(hidden, weight, bias, stride=2, padding=1).clamp_min(0)
        assert hidden.shape == (4, 6, 2, 2)
        logits = hidden.reshape(4, -1) @ weights["head.weight"].T + weights["head.bias"]
        torch.testing.assert_close(network(x), logits, rtol=1e-12, atol=1e-12)

    def test_an_unknown_normalization_is_refused(self) -> None:
        with pytest.raises(RecipeError, match=r"network\.norm is 'layer': input should be"):
            build(Spec(name="classifier", arguments={"norm": "layer"}))
        with pytest.raises(ValueError, match="norm is 'layer', the choices are: batch, group"):
            NETWORKS["classifier"](norm="layer")


class TestNormalization:
    def test_batch_statistics_are_the_frameworks_batch_normalization_in_training(self) -> None:
        ours, theirs = BatchStatistics(5).eval(), nn.BatchNorm2d(5)
        x = points(3, 5, 4, 6)
        assert torch.equal(ours(x), theirs(x)) and not list(ours.buffers())

    def test_batch_statistics_of_a_single_value_are_the_bias(self) -> None:
        layer = BatchStatistics(2)
        with torch.no_grad():
            layer.bias.copy_(torch.tensor([0.5, -1.0]))
        assert layer(torch.ones(1, 2, 1, 1)).flatten().tolist() == pytest.approx([0.5, -1.0], abs=1e-4)


class TestEfficientLab:
    def test_the_encoder_has_the_published_number_of_parameters(self) -> None:
        """EfficientNet-B0 has 5,288,548: all of it but the last convolution and the classifier is ours."""
        last = 320 * 1280 + 2 * 1280
        classifier = 1280 * 1000 + 1000
        encoder = Encoder(3, 1.0, 1.0, "batch", STAGES)
        assert sum(p.numel() for p in encoder.parameters()) + last + classifier == 5_288_548

    def test_the_cut_is_after_block_11_at_stride_16_with_112_channels(self) -> None:
        network = EfficientLab(norm="batch")
        blocks = [m for m in network.modules() if isinstance(m, InvertedBottleneck)]
        assert len(blocks) == 11
        shapes = [tuple(h.shape[1:]) for h in network.encoder(torch.zeros(1, 3, 224, 224))]
        assert shapes == [(16, 112, 112), (24, 56, 56), (40, 28, 28), (112, 14, 14)]
        assert network.head.weight.shape == (2, 112, 1, 1)

    def test_parameters_of_a_block_by_the_table(self) -> None:
        """Written out from the table: convolutions without biases, two values a normalized channel."""
        total, channels = 27 * 32 + 2 * 32, 32
        for repeats, kernel, _, expansion, out in STAGES[:CUT]:
            for _ in range(repeats):
                inner, squeezed = channels * expansion, channels // 4
                total += (channels * inner + 2 * inner) if expansion > 1 else 0
                total += kernel**2 * inner + 2 * inner
                total += 2 * inner * squeezed + inner + squeezed
                total += inner * out + 2 * out
                channels = out
        assert sum(p.numel() for p in EfficientLab().encoder.parameters()) == total

    def test_the_coefficients_of_b3_give_its_17_blocks_and_136_channels(self) -> None:
        with torch.device("meta"):
            network = EfficientLab(width=1.2, depth=1.4)
        # The authors cut B3 after block 17, counted from 0.
        assert sum(isinstance(m, InvertedBottleneck) for m in network.modules()) == 18
        assert network.encoder.channels[-1] == 136

    def test_the_decoder_is_the_formula(self) -> None:
        decoder = ResidualSkipDecoder(4, 6, "group").double()
        coarse, skip = points(2, 4, 3, 5, dtype=torch.float64), points(2, 6, 7, 9, dtype=torch.float64)

        def branch(layer: nn.Sequential, x: Tensor) -> Tensor:
            y = layer[0](x)
            return layer[2](y * y.sigmoid())

        up = nn.functional.interpolate(coarse, (7, 9), mode="bilinear", align_corners=True)
        both = torch.cat([up, skip], 1)
        mean = torch.zeros_like(both) + both.mean((2, 3))[:, :, None, None]
        parts = [branch(decoder.pointwise, both), branch(decoder.dilated, both), mean]
        expected = branch(decoder.join, torch.cat(parts, 1)) + up
        torch.testing.assert_close(decoder(coarse, skip), expected, rtol=1e-12, atol=1e-12)


class TestFunctionOf:
    @every_network
    def test_threads_do_not_see_each_others_weights(self, row: str) -> None:
        network, x = network_of(row), TABLE[row].drawn()
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
