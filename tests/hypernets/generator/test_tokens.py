from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from hypernets.generator.flat import FlatLayout
from hypernets.generator.tokens import TokenKind, TokenLayout, owned
from metainit.card import Spec
from metainit.errors import MismatchError
from metainit.networks import NETWORKS, Siren, build


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 3)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(3, 5)
        self.head.weight = self.words.weight
        self.empty = nn.Parameter(torch.zeros(0, 4))


MODULES = {name: lambda name=name: build(Spec(name=name)) for name in NETWORKS} | {
    "lstm": lambda: nn.LSTM(3, 4, num_layers=2, bidirectional=True),
    "attention": lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
    "tied": Tied,
    "normalized": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU()),
}


def layouts(network: nn.Module, kind: TokenKind, size: int) -> tuple[FlatLayout, TokenLayout]:
    flat = FlatLayout.of(dict(network.named_parameters()))
    return flat, TokenLayout.of(flat, owned(network), kind, size)


@pytest.mark.parametrize("kind", ["neuron", "block"])
@pytest.mark.parametrize("name", MODULES)
def test_any_network_comes_back_bit_by_bit(name: str, kind: TokenKind) -> None:
    network = MODULES[name]()
    flat, tokens = layouts(network, kind, 37)
    bits = torch.randint(-(2**31), 2**31, (2, flat.size), generator=torch.Generator().manual_seed(0))
    vectors = bits.to(torch.int32).view(torch.float32)  # among them many kinds of NaN
    vectors[:, 0], vectors[:, 1] = -0.0, torch.inf
    encoded = tokens.encode(vectors)
    assert encoded.shape == (2, len(tokens), tokens.index.shape[1])
    assert tokens.index.shape[1] <= 37
    assert torch.equal(tokens.decode(encoded).view(torch.int32), vectors.view(torch.int32))
    assert not encoded.view(torch.int32)[:, ~tokens.mask].any()
    assert tokens.mask.sum() == flat.size
    assert tokens.mask.any(-1).all()


def test_what_owns_a_parameter_is_its_module_and_a_shared_one_comes_once() -> None:
    assert owned(Tied()) == (("scale", "empty"), ("words.weight",), ("head.bias",))
    assert [n for layer in owned(Tied()) for n in layer] == [n for n, _ in Tied().named_parameters()]
    names = owned(nn.LSTM(3, 4))
    assert names == (("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"),)


def test_a_neuron_is_the_row_of_its_weight_and_its_bias() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    flat, tokens = layouts(network, "neuron", 64)
    encoded = tokens.encode(flat.flatten(dict(network.named_parameters())))
    first, last = network[0], network[2]
    for row in range(3):
        expected = torch.cat([first.weight[row], first.bias[row : row + 1], torch.zeros(1)])
        assert torch.equal(encoded[row], expected)
    assert torch.equal(encoded[3], torch.cat([last.weight[0], last.bias]))
    assert tokens.layer.tolist() == [0, 0, 0, 1]
    assert tokens.place.tolist() == [0, 1, 2, 0]
    assert tokens.kind.tolist() == [0, 0, 0, 1]


def test_long_rows_are_cut_into_equal_pieces_each_of_a_kind() -> None:
    _, tokens = layouts(nn.Linear(9, 2), "neuron", 4)
    assert tokens.mask.sum(-1).tolist() == [4, 4, 3, 3, 3, 3]
    assert tokens.kind.tolist() == [0, 0, 1, 1, 2, 2]
    assert tokens.place.tolist() == [0, 1, 0, 1, 0, 1]


def test_blocks_do_not_cross_layers() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    flat, tokens = layouts(network, "block", 4)
    assert tokens.layer.tolist() == [0, 0, 0, 1]
    assert tokens.index[:2].flatten().tolist() == list(range(8))
    assert tokens.index[2].tolist() == [8, flat.size, flat.size, flat.size]


@pytest.mark.parametrize(
    "network",
    [
        Siren(2, 1, 6, 3),
        nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1)),
    ],
)
def test_hidden_neurons_can_change_places(network: nn.Module) -> None:
    """Tokens of a hidden layer permuted, and the next layer's columns with them: the same function."""
    flat, tokens = layouts(network, "neuron", 64)
    vector = flat.flatten({k: v.detach() for k, v in network.named_parameters()})
    encoded = tokens.encode(vector)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    permuted = encoded.clone()
    permuted[tokens.layer == 1] = encoded[tokens.layer == 1][order]
    rows = permuted[tokens.layer == 2]
    permuted[tokens.layer == 2] = torch.cat([rows[:, :6][:, order], rows[:, 6:]], -1)
    moved = tokens.decode(permuted)
    assert not torch.equal(moved, vector)
    inputs = torch.randn(10, 2, generator=torch.Generator().manual_seed(2))
    output: Tensor = functional_call(network, flat.unflatten(moved), (inputs,))
    torch.testing.assert_close(output, network(inputs))


def test_layers_of_other_parameters_are_refused() -> None:
    network = nn.Linear(2, 3)
    flat = FlatLayout.of(dict(network.named_parameters()))
    for layers in ((("weight",),), (("weight", "bias"), ("bias",)), ()):
        with pytest.raises(MismatchError, match="weight, bias"):
            TokenLayout.of(flat, layers, "neuron", 8)
