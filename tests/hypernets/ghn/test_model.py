from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hypernets.architecture.graph import ArchitectureGraph, Node, Operation, Parameter, Role
from hypernets.ghn import prediction
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.layout import as_stored, from_grid, grid
from hypernets.ghn.model import DECODERS, Ghn
from hypernets.ghn.prediction import predict
from hypernets.ghn.scale import scaled
from hypernets.ghn.tiled import TiledDecoder
from metainit.errors import MismatchError
from tests.hypernets.graphs import every_role, random_graph, relabelled

DECODED = sorted(DECODERS)


def small(decoder: str, **changes: object) -> Ghn:
    torch.manual_seed(0)
    config = GhnConfig.model_validate(
        {
            "width": 16,
            "heads": 2,
            "layers": 2,
            "block": 8,
            "kernel": 5,
            "rank": 4,
            "decoder": decoder,
            **changes,
        }
    )
    return Ghn(config).eval()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoder", DECODED)
def test_every_parameter_gets_its_own_shape(decoder: str) -> None:
    graph = every_role()
    found = small(decoder)([graph])[0]
    assert {k: tuple(v.shape) for k, v in found.items()} == {p.name: p.shape for p in graph.parameters}
    assert all(torch.isfinite(v).all() and v.std() > 0 for v in found.values())


@pytest.mark.parametrize("decoder", DECODED)
def test_a_batch_equals_one_by_one(decoder: str) -> None:
    ghn = small(decoder)
    graphs = [random_graph(seed, 5 + 7 * seed) for seed in range(4)] + [every_role()]
    for together, graph in zip(ghn(graphs), graphs, strict=True):
        same(together, ghn([graph])[0])


@pytest.mark.parametrize("decoder", DECODED)
def test_another_order_of_the_nodes_changes_nothing(decoder: str) -> None:
    ghn = small(decoder)
    for seed in range(4):
        graph = random_graph(seed)
        other = relabelled(graph, seed + 1)
        same(ghn([graph])[0], ghn([other])[0])


@pytest.mark.parametrize("decoder", DECODED)
def test_gradients_are_finite_differences(decoder: str) -> None:
    ghn = small(decoder).double()
    graph = every_role()
    data = ghn.features(graph)
    for key in ("sizes", "target_sizes"):
        data[key] = data[key].double()
    weight = ghn.encoder.blocks[0].qkv.weight

    def loss() -> Tensor:
        return torch.stack([v.square().sum() for v in ghn([graph], [data.clone()])[0].values()]).sum()

    (gradient,) = torch.autograd.grad(loss(), [weight])
    with torch.no_grad():
        for place in ((0, 0), (5, 3)):
            weight[place] += 1e-6
            up = loss()
            weight[place] -= 2e-6
            down = loss()
            weight[place] += 1e-6
            torch.testing.assert_close((up - down) / 2e-6, gradient[place], rtol=1e-4, atol=1e-6)


def test_a_longer_path_than_the_limit_is_no_pair() -> None:
    ghn = small("tiled", max_distance=3)
    assert int(ghn.features(every_role()).distance.max()) == 3


def test_scales_of_roles() -> None:
    raw = torch.tensor([-50.0, 0.0, 50.0])
    gains = scaled(raw, Parameter("g", (3,), Role.NORM_WEIGHT))
    torch.testing.assert_close(gains, torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(
        scaled(raw, Parameter("b", (3,), Role.BIAS)), torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6, rtol=0
    )
    weight = scaled(torch.ones(8, 4, 3, 3), Parameter("w", (8, 4, 3, 3), Role.WEIGHT))
    assert weight[0, 0, 0, 0].item() == pytest.approx(math.sqrt(2 / 36))


def test_a_transposed_kernel_is_stored_with_its_inputs_first() -> None:
    values = torch.arange(24.0).reshape(3, 2, 2, 2)
    stored = as_stored(values, Parameter("up", (2, 3, 2, 2), Role.WEIGHT, transposed=True))
    assert stored.is_contiguous()
    torch.testing.assert_close(stored, values.transpose(0, 1))


def test_a_flattened_map_is_decoded_as_a_kernel() -> None:
    parameter = Parameter("fc", (3, 8), Role.WEIGHT, spatial=(2, 2))
    values = torch.arange(24.0).reshape(3, 2, 2, 2)
    torch.testing.assert_close(from_grid(values, parameter), values.flatten(1))


def test_rows_of_a_table_differ() -> None:
    parameter = Parameter("positions", (1, 20, 6), Role.TABLE)
    assert grid(parameter) == (6, 1, 5, 4)
    found = TiledDecoder(GhnConfig(width=16, heads=2, block=8, kernel=5))(torch.randn(1, 16), [parameter])[0]
    assert len({tuple(row.tolist()) for row in found[0]}) == 20


@pytest.mark.parametrize("decoder", DECODED)
@pytest.mark.parametrize(
    "shape", [(7,), (9, 6), (1, 6, 9, 5), (6, 9, 5), (1, 3, 12, 12), (2, 3, 4, 5), (4, 9, 1, 1), (50, 1)]
)
def test_tables_of_any_dimensions_are_decoded(decoder: str, shape: tuple[int, ...]) -> None:
    graph = ArchitectureGraph((Node(Operation.ADD, (Parameter("t", shape, Role.TABLE),)),), ())
    ghn = small(decoder)
    found = predict(ghn, graph, seed=0)["t"]
    assert found.shape == shape and len(found.unique()) == found.numel()
    same({"t": ghn([graph])[0]["t"]}, predict(ghn, graph, exact=True))


def test_a_table_that_is_a_map_is_decoded_as_one() -> None:
    parameter = Parameter("positions", (1, 3, 4, 5), Role.TABLE)
    values = torch.arange(60.0).reshape(grid(parameter))
    torch.testing.assert_close(from_grid(values, parameter), values.view(1, 3, 4, 5))


def test_blocks_are_cut_in_the_middle_and_repeated() -> None:
    decoder = TiledDecoder(GhnConfig(width=16, heads=2, block=4, kernel=5))
    state = torch.randn(2, 16)
    whole, cut = (
        decoder(state[:1], [Parameter("w", shape, Role.WEIGHT)])[0] for shape in ((4, 4, 5, 5), (3, 4, 3, 3))
    )
    torch.testing.assert_close(cut, whole[:3, :, 1:4, 1:4])
    wide = decoder(state[:1], [Parameter("w", (10, 6, 5, 5), Role.WEIGHT)])[0]
    torch.testing.assert_close(wide[4:8, :4], whole)
    torch.testing.assert_close(wide[8:, 4:], whole[:2, :2])


def test_a_low_rank_weight_has_just_that_rank() -> None:
    ghn = small("low_rank")
    graph = ArchitectureGraph((Node(Operation.LINEAR, (Parameter("w", (30, 40), Role.WEIGHT),)),), ())
    assert int(torch.linalg.matrix_rank(ghn([graph])[0]["w"])) == 4


@pytest.mark.parametrize("decoder", DECODED)
def test_predicted_neurons_differ_and_span(decoder: str) -> None:
    shapes = ((64, 48), (48, 64, 1, 1), (200, 40))
    carried = tuple(Parameter(f"w{i}", shape, Role.WEIGHT) for i, shape in enumerate(shapes))
    graph = ArchitectureGraph((Node(Operation.LINEAR, carried),), ())
    ghn = small(decoder)
    for name, weight in predict(ghn, graph, seed=0).items():
        matrix = weight.flatten(1)
        rank = int(torch.linalg.matrix_rank(matrix))
        assert rank >= 0.9 * min(matrix.shape), name
        distances = torch.cdist(matrix, matrix) + torch.eye(len(matrix))
        assert distances.min() > 0, name
    repeated = predict(ghn, graph, seed=0, exact=True)["w0"]
    assert int(torch.linalg.matrix_rank(repeated)) <= 8


@pytest.mark.parametrize("decoder", DECODED)
def test_prediction_is_of_its_seed_whatever_the_chunks(decoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ghn, graph = small(decoder), every_role()
    first = predict(ghn, graph, seed=3)
    monkeypatch.setattr(prediction, "CHUNK", 1)
    same(first, predict(ghn, graph, seed=3))
    other = predict(ghn, graph, seed=4)
    assert not torch.equal(first["conv.weight"], other["conv.weight"])
    same(predict(ghn, graph, seed=3, exact=True), ghn([graph])[0])


def test_prediction_leaves_the_global_random_state_alone() -> None:
    ghn = small("tiled")
    before = torch.get_rng_state()
    predict(ghn, every_role(), seed=0)
    assert torch.equal(before, torch.get_rng_state())


def test_predicted_weights_can_be_trained_in_their_own_type() -> None:
    found = predict(small("tiled"), every_role(), seed=0, dtype=torch.bfloat16)
    assert {v.dtype for v in found.values()} == {torch.bfloat16}
    assert not any(v.requires_grad or v.is_inference() for v in found.values())


def test_weights_that_are_not_finite_are_refused() -> None:
    ghn = small("tiled")
    with torch.no_grad():
        ghn.decoder.hidden.weight.fill_(torch.nan)
    with pytest.raises(MismatchError, match=r"not finite for conv\.weight.*nothing was filled"):
        predict(ghn, every_role(), seed=0)
