"""GHN-3's tensors beside those of the published implementation, and what has to hold of any decoder."""

import json
from pathlib import Path

import pytest
import torch

from hypernets.ghn.ghn3_config import SIZES, channel_row, channel_values, kernel_row, kernel_values
from hypernets.ghn.ghn3_decoder import positions, tile, tile_
from hypernets.ghn.ghn3_graph import Form, Ghn3Graph, Target, graph_of
from hypernets.ghn.ghn3_network import Ghn3
from hypernets.ghn.ghn3_prediction import init_ghn3_, predict_ghn3
from metainit.errors import DivergenceError, MismatchError
from tests.hypernets.ghn.ghn3_networks import CONFIG, Convolutional, Transformer, formula, inputs, summary

GOLDEN = json.loads(Path(__file__).with_name("ghn3_golden.json").read_text())
"""Made by the published implementation from the same formula's weights."""
NETWORKS = {"convolutional": Convolutional, "transformer": Transformer}


@pytest.fixture(scope="module")
def ghn() -> Ghn3:
    made = Ghn3(CONFIG)
    made.load_state_dict(formula({name: value.shape for name, value in made.state_dict().items()}))
    return made.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_are_those_of_the_published_implementation(ghn, name):
    network = NETWORKS[name]()
    tensors, skipped = predict_ghn3(ghn, network, inputs())
    expected = GOLDEN[name]["tensors"]
    assert set(tensors) == set(expected)
    assert set(tensors) | set(skipped) == {key for key, _ in network.named_parameters()}
    for key, tensor in tensors.items():
        # The first row of the table of positions is a draw there.
        seen = tensor[:, 1:] if key.endswith("pos_embedding") else tensor
        assert summary(seen) == pytest.approx(expected[key], abs=1e-5), key


@pytest.mark.parametrize("size, count", [("t", 6_906_632), ("s", 35_810_368), ("l", 214_668_960)])
def test_sizes_of_the_paper(size, count):
    with torch.device("meta"):
        made = Ghn3(SIZES[size])
    assert sum(p.numel() for p in made.parameters()) == count


def test_names_and_shapes_of_published_tensors():
    config = SIZES["t"]
    with torch.device("meta"):
        found = {name: tuple(value.shape) for name, value in Ghn3(config).state_dict().items()}
    h, c, s, k = 64, 64, 16, 1000
    expected = {
        "ln.weight": (h,), "ln.bias": (h,), "embed.weight": (15, h),
        "shape_enc.embed_spatial.weight": (11, h // 4), "shape_enc.embed_channel.weight": (392, h // 4),
        "centrality_embed_in.weight": (101, h), "centrality_embed_out.weight": (101, h),
        "input_dist_embed.weight": (1001, h), "gnn.0.attn.edge_embed.embed.weight": (257, h),
        "gnn.0.attn.proj_e.0.weight": (h, 2 * h), "gnn.0.attn.proj_e.0.bias": (h,),
        "gnn.0.attn.proj_e.2.weight": (8, h), "gnn.0.attn.proj_e.2.bias": (8,),
        "decoder.fc.0.weight": (4 * h * s * s, h), "decoder.fc.0.bias": (4 * h * s * s,),
        "decoder.conv.0.weight": (8 * h, 4 * h), "decoder.conv.0.bias": (8 * h,),
        "decoder.conv.2.weight": (c * c, 8 * h), "decoder.conv.2.bias": (c * c,),
        "decoder.class_layer_predictor.1.weight": (k, c), "decoder.class_layer_predictor.1.bias": (k,),
        "decoder_1d.fc.0.weight": (2 * h, h), "decoder_1d.fc.0.bias": (2 * h,),
        "decoder_1d.fc.2.weight": (2 * c, 2 * h), "decoder_1d.fc.2.bias": (2 * c,),
        "bias_class.1.weight": (k, c), "bias_class.1.bias": (k,),
    }  # fmt: skip
    for n in range(3):
        expected |= {
            f"gnn.{n}.ln1.weight": (h,), f"gnn.{n}.ln1.bias": (h,), f"gnn.{n}.attn.to_qkv.weight": (3 * h, h),
            f"gnn.{n}.attn.to_out.0.weight": (h, h), f"gnn.{n}.attn.to_out.0.bias": (h,),
            f"gnn.{n}.ln2.weight": (h,), f"gnn.{n}.ln2.bias": (h,),
            f"gnn.{n}.ff.net.0.weight": (4 * h, h), f"gnn.{n}.ff.net.0.bias": (4 * h,),
            f"gnn.{n}.ff.net.3.weight": (h, 4 * h), f"gnn.{n}.ff.net.3.bias": (h,),
        }  # fmt: skip
    assert found == expected


def test_tables_of_shapes():
    assert len(channel_values(1000)) == 391
    assert (len(kernel_values(16)), len(kernel_values(11))) == (10, 8)
    values = channel_values(10)
    nearest = {1: 1, 2: 1, 3: 3, 4: 8, 7: 8, 9: 8, 10: 10, 12: 10, 13: 10, 14: 16, 72: 64, 73: 80, 9000: 8192}
    assert {n: values[channel_row(n, 10)] for n in nearest} == nearest
    assert [kernel_values(16)[kernel_row(n, 16)] for n in (1, 2, 4, 13, 14, 15, 31)] == [
        1,
        3,
        3,
        13,
        14,
        15,
        16,
    ]


def test_a_batch_of_graphs_gives_what_each_gives_alone(ghn):
    graphs = [graph_of(make(), inputs()) for make in NETWORKS.values()]
    together = ghn(graphs, torch.Generator().manual_seed(0))
    for graph, tensors in zip(graphs, together, strict=True):
        (alone,) = ghn([graph], torch.Generator().manual_seed(0))
        assert set(alone) == set(tensors)
        for name, value in alone.items():
            torch.testing.assert_close(tensors[name], value, atol=1e-6, rtol=1e-5)


def test_the_differentiable_way_gives_what_prediction_writes(ghn):
    network = Transformer()
    graph = graph_of(network, inputs())
    (tensors,) = ghn([graph], torch.Generator().manual_seed(3))
    written, _ = predict_ghn3(ghn, network, inputs(), graph=graph, seed=3)
    for name, value in written.items():
        torch.testing.assert_close(tensors[name], value, atol=1e-6, rtol=1e-5)


def test_gradients_reach_every_tensor_of_the_hypernetwork():
    ghn = Ghn3(CONFIG)
    graphs = [graph_of(make(), inputs()) for make in NETWORKS.values()]
    sum((t**2).sum() for tensors in ghn(graphs) for t in tensors.values()).backward()
    assert [name for name, p in ghn.named_parameters() if p.grad is None] == []


def test_gradient_is_right():
    with torch.random.fork_rng():
        torch.manual_seed(0)  # with other weights a rectifier may bend between the two losses
        ghn = Ghn3(CONFIG).double()
    graph = graph_of(Convolutional(), inputs())
    weight = ghn.decoder.conv[2].weight

    def loss() -> torch.Tensor:
        return sum((t * torch.arange(t.numel()).view(t.shape).cos()).sum() for t in ghn([graph])[0].values())

    loss().backward()
    step = torch.sin(torch.arange(weight.numel(), dtype=torch.float64)).view(weight.shape)
    with torch.no_grad():
        weight += 1e-6 * step
        above = loss()
        weight -= 2e-6 * step
        below = loss()
    assert float((above - below) / 2e-6) == pytest.approx(float((weight.grad * step).sum()), rel=1e-5)


def test_seed_moves_the_class_token_alone(ghn):
    first, _ = predict_ghn3(ghn, Transformer(), inputs(), seed=0)
    again, _ = predict_ghn3(ghn, Transformer(), inputs(), seed=0)
    other, _ = predict_ghn3(ghn, Transformer(), inputs(), seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [name for name in first if not torch.equal(first[name], other[name])] == ["encoder.pos_embedding"]
    table, moved = first["encoder.pos_embedding"], other["encoder.pos_embedding"]
    assert torch.equal(table[:, 1:], moved[:, 1:])


def test_init_writes_what_predict_returns(ghn):
    network = Transformer()
    kept = network.class_token.detach().clone()
    tensors, skipped = predict_ghn3(ghn, network, inputs())
    assert init_ghn3_(ghn, network, inputs()) == skipped
    state = dict(network.named_parameters())
    assert all(torch.equal(state[name], value) for name, value in tensors.items())
    assert torch.equal(network.class_token, kept)


def test_init_in_the_networks_own_type(ghn):
    network = Convolutional().to(torch.bfloat16)
    tensors, _ = predict_ghn3(ghn, network, inputs().to(torch.bfloat16))
    init_ghn3_(ghn, network, inputs().to(torch.bfloat16))
    assert torch.equal(network.large.weight, tensors["large.weight"].to(torch.bfloat16))


def test_weights_that_are_not_finite_change_nothing():
    ghn = Ghn3(CONFIG)
    torch.nn.init.constant_(ghn.decoder_1d.fc[2].bias, float("nan"))
    network = Convolutional()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(DivergenceError, match=r"stem\.1\.weight"):
        init_ghn3_(ghn, network, inputs())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_networks_graph_is_refused(ghn):
    graph = graph_of(Transformer(), inputs())
    with pytest.raises(MismatchError, match=r"classifier\.bias"):
        predict_ghn3(ghn, Convolutional(), inputs(), graph=graph)


@pytest.mark.parametrize("shape", [(5,), (16,), (7, 3), (40, 16), (33, 50), (2, 17, 3, 3)])
def test_a_tiled_block_repeats_from_the_start(shape):
    block = torch.randn(16, 16, 3, 3)[(..., *[0] * (4 - len(shape)))].contiguous()
    expected = block[
        torch.meshgrid(
            *[torch.arange(n) % m for n, m in zip(shape, block.shape, strict=False)], indexing="ij"
        )
    ]
    assert torch.equal(tile(block, shape), expected)
    target = torch.empty(shape)
    tile_(target, block)
    assert torch.equal(target, expected)


@pytest.mark.parametrize("rows", [16, 17, 20])
def test_positions_stand_row_by_row(rows):
    block = torch.arange(32.0).view(1, 2, 4, 4)
    table = positions(block, (1, rows, 5), torch.full((1, 1, 5), -1.0))
    assert table.shape == (1, rows, 5)
    assert (table[0, 0] == -1).all()
    for row in range(1, min(rows, 17)):
        assert table[0, row].tolist() == [row - 1, row + 15, row - 1, row + 15, row - 1]


def test_predictions_do_not_depend_on_how_they_are_cut(ghn, monkeypatch):
    whole, _ = predict_ghn3(ghn, Transformer(), inputs())
    monkeypatch.setattr("hypernets.ghn.ghn3_blocks.CHUNK_ELEMENTS", 1)
    cut, _ = predict_ghn3(ghn, Transformer(), inputs())
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, atol=1e-6, rtol=1e-5)


def test_kernels_larger_than_the_window_are_stretched(ghn):
    shape = (4, 2, 23, 23)
    graph = Ghn3Graph(
        words=(9, 4),
        shapes=(None, shape),
        distances=torch.tensor([[0, 1], [0, 0]]),
        targets=(Target("a", shape, 1, Form.KERNELS), Target("b", (4, 2, 11, 11), 1, Form.KERNELS)),
    )
    (tensors,) = ghn([graph])
    stretched = torch.nn.functional.interpolate(tensors["b"] * 11, (23, 23), mode="bilinear") / 23
    torch.testing.assert_close(tensors["a"], stretched)
