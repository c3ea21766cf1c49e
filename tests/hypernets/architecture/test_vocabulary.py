"""Every layer of the vocabulary: what it becomes, by either tracer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypernets.architecture.graph import ArchitectureGraph, Operation, Role
from hypernets.architecture.trace import trace
from hypernets.architecture.vocabulary import RULES

WEIGHT, BIAS, NORM, SCALE, TABLE = Role.WEIGHT, Role.BIAS, Role.NORM_WEIGHT, Role.SCALE, Role.TABLE
Op = Operation
AFFINE = (NORM, BIAS)
LAYER = (WEIGHT, BIAS)


class Apply(nn.Module):
    """A function of inputs and parameters as a network."""

    def __init__(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.raw = nn.ParameterList([nn.Parameter(torch.ones(shape)) for shape in shapes])

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs, *self.raw)


class Attend(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, **self.options)[0]


def spread(*shape: int) -> Tensor:
    return torch.randn(2, *shape)


def ids(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape) % 10


def hand_made_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * (x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(0.79788 * (x + 0.044715 * torch.pow(x, 3))))


def attend_by_hand(x: Tensor, table: Tensor) -> Tensor:
    q, k, v = x.chunk(3, -1)
    return F.dropout((q @ k.transpose(-2, -1) / 2 + table[ids(5, 5)]).softmax(-1)) @ v


def write_pieces(x: Tensor, y: Tensor) -> Tensor:
    result = torch.zeros(2, 3, 8)
    result[:, 0] = x.sigmoid()
    result[:, 1:] = y[:, None].tanh()
    return result


ROWS: dict[str, tuple[nn.Module, Any, list[tuple[Any, ...]]]] = {
    "linear": (nn.Linear(8, 4), spread(8), [(Op.LINEAR, *LAYER)]),
    "linear without bias": (nn.Linear(8, 4, bias=False), spread(3, 8), [(Op.LINEAR, WEIGHT)]),
    "bilinear": (nn.Bilinear(8, 4, 3), (spread(8), spread(4)), [(Op.LINEAR, *LAYER)]),
    "conv1d": (nn.Conv1d(4, 8, 3), spread(4, 9), [(Op.CONV, *LAYER)]),
    "conv2d": (nn.Conv2d(4, 8, 3), spread(4, 9, 9), [(Op.CONV, *LAYER)]),
    "conv3d": (nn.Conv3d(4, 8, 3), spread(4, 5, 5, 5), [(Op.CONV, *LAYER)]),
    "grouped": (nn.Conv2d(4, 8, 3, groups=2), spread(4, 9, 9), [(Op.CONV, *LAYER)]),
    "same padding": (nn.Conv2d(4, 8, 3, padding="same"), spread(4, 9, 9), [(Op.CONV, *LAYER)]),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), spread(4, 9, 9), [(Op.DEPTHWISE_CONV, *LAYER)]),
    "transposed 1d": (nn.ConvTranspose1d(4, 8, 3), spread(4, 9), [(Op.TRANSPOSED_CONV, *LAYER)]),
    "transposed 2d": (nn.ConvTranspose2d(4, 8, 3), spread(4, 9, 9), [(Op.TRANSPOSED_CONV, *LAYER)]),
    "transposed 3d": (nn.ConvTranspose3d(4, 8, 3), spread(4, 3, 3, 3), [(Op.TRANSPOSED_CONV, *LAYER)]),
    "embedding": (nn.Embedding(10, 4), ids(2, 3), [(Op.EMBEDDING, TABLE)]),
    "embedding bag": (nn.EmbeddingBag(10, 4), ids(2, 3), [(Op.EMBEDDING, TABLE)]),
    "batch norm 1d": (nn.BatchNorm1d(4), spread(4), [(Op.BATCH_NORM, *AFFINE)]),
    "batch norm 2d": (nn.BatchNorm2d(4), spread(4, 5, 5), [(Op.BATCH_NORM, *AFFINE)]),
    "batch norm 3d": (nn.BatchNorm3d(4), spread(4, 3, 3, 3), [(Op.BATCH_NORM, *AFFINE)]),
    "bare batch norm": (nn.BatchNorm2d(4, affine=False), spread(4, 5, 5), [(Op.BATCH_NORM,)]),
    "layer norm": (nn.LayerNorm(4), spread(4), [(Op.LAYER_NORM, *AFFINE)]),
    "group norm": (nn.GroupNorm(2, 4), spread(4, 5), [(Op.GROUP_NORM, *AFFINE)]),
    "instance norm": (nn.InstanceNorm2d(4, affine=True), spread(4, 5, 5), [(Op.GROUP_NORM, *AFFINE)]),
    "rms norm": (nn.RMSNorm(4), spread(4), [(Op.RMS_NORM, NORM)]),
    "rms norm by hand": (Apply(hand_made_rms_norm, (8,)), spread(8), [(Op.RMS_NORM, NORM)]),
    "unit length": (Apply(lambda x: F.normalize(x, dim=-1)), spread(8), [(Op.RMS_NORM,)]),
    "lstm": (nn.LSTM(4, 3, batch_first=True), spread(5, 4), [(Op.RECURRENT, WEIGHT, WEIGHT, BIAS, BIAS)]),
    "gru": (nn.GRU(4, 3), spread(5, 4), [(Op.RECURRENT, WEIGHT, WEIGHT, BIAS, BIAS)]),
    "rnn": (nn.RNN(4, 3, bias=False), spread(5, 4), [(Op.RECURRENT, WEIGHT, WEIGHT)]),
    "relu rnn": (nn.RNN(4, 3, 1, "relu"), spread(5, 4), [(Op.RECURRENT, WEIGHT, WEIGHT, BIAS, BIAS)]),
    "lstm cell": (nn.LSTMCell(4, 3), spread(4), [(Op.RECURRENT, WEIGHT, WEIGHT, BIAS, BIAS)]),
    "gru cell": (nn.GRUCell(4, 3), spread(4), [(Op.RECURRENT, WEIGHT, WEIGHT, BIAS, BIAS)]),
    "rnn cell": (nn.RNNCell(4, 3), spread(4), [(Op.RECURRENT, WEIGHT, WEIGHT, BIAS, BIAS)]),
    "attention": (Attend(need_weights=False), spread(5, 8), [
        (Op.LINEAR, *LAYER), (Op.ATTENTION,), (Op.LINEAR, *LAYER),
    ]),
    "attention by parts": (Attend(), spread(5, 8), [
        (Op.LINEAR, *LAYER), (Op.ATTENTION,), (Op.LINEAR, *LAYER),
    ]),
    "attention by hand": (Apply(attend_by_hand, (10,)), spread(5, 12), [(Op.ATTENTION, TABLE)]),
    "encoder layer": (nn.TransformerEncoderLayer(8, 2, 16), spread(5, 8), [
        (Op.LINEAR, *LAYER), (Op.ATTENTION,), (Op.LINEAR, *LAYER), (Op.ADD,), (Op.LAYER_NORM, *AFFINE),
        (Op.LINEAR, *LAYER), (Op.RELU,), (Op.LINEAR, *LAYER), (Op.ADD,), (Op.LAYER_NORM, *AFFINE),
    ]),
    "prelu": (nn.PReLU(4), spread(4, 5), [(Op.LEAKY_RELU, SCALE)]),
    "relu": (nn.ReLU(), spread(4), [(Op.RELU,)]),
    "relu in place": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(True)), spread(4), [
        (Op.LINEAR, *LAYER), (Op.RELU,),
    ]),
    "relu6": (nn.ReLU6(), spread(4), [(Op.RELU,)]),
    "clamped at zero": (Apply(lambda x: x.clamp(min=0)), spread(4), [(Op.RELU,)]),
    "leaky relu": (nn.LeakyReLU(), spread(4), [(Op.LEAKY_RELU,)]),
    "gelu": (nn.GELU(), spread(4), [(Op.GELU,)]),
    "gelu by tanh": (nn.GELU(approximate="tanh"), spread(4), [(Op.GELU,)]),
    "gelu by hand": (Apply(new_gelu), spread(4), [(Op.GELU,)]),
    "gelu by erf": (Apply(lambda x: x * 0.5 * (1 + torch.erf(x / 1.4142))), spread(4), [(Op.GELU,)]),
    "silu": (nn.SiLU(), spread(4), [(Op.SILU,)]),
    "silu by hand": (Apply(lambda x: x * torch.sigmoid(x)), spread(4), [(Op.SILU,)]),
    "glu is no silu": (Apply(lambda x: x[:, :2] * x[:, 2:].sigmoid()), spread(4), [
        (Op.SIGMOID,), (Op.MULTIPLY,),
    ]),
    "glu": (nn.GLU(), spread(4), [(Op.MULTIPLY,)]),
    "sigmoid": (nn.Sigmoid(), spread(4), [(Op.SIGMOID,)]),
    "hard sigmoid": (nn.Hardsigmoid(), spread(4), [(Op.SIGMOID,)]),
    "tanh": (nn.Tanh(), spread(4), [(Op.TANH,)]),
    "sine": (Apply(lambda x: torch.sin(30 * x)), spread(4), [(Op.SINE,)]),
    "elu": (nn.ELU(), spread(4), [(Op.ACTIVATION,)]),
    "hard swish": (nn.Hardswish(), spread(4), [(Op.ACTIVATION,)]),
    "softplus": (nn.Softplus(), spread(4), [(Op.ACTIVATION,)]),
    "mish": (nn.Mish(), spread(4), [(Op.ACTIVATION,)]),
    "softmax": (nn.Softmax(-1), spread(4), [(Op.SOFTMAX,)]),
    "log softmax": (nn.LogSoftmax(-1), spread(4), [(Op.SOFTMAX,)]),
    "max pool": (nn.MaxPool2d(3, 2), spread(4, 9, 9), [(Op.MAX_POOL,)]),
    "average pool": (nn.AvgPool2d(2), spread(4, 8, 8), [(Op.AVERAGE_POOL,)]),
    "adaptive": (nn.AdaptiveAvgPool2d(2), spread(4, 8, 8), [(Op.AVERAGE_POOL,)]),
    "global": (nn.AdaptiveAvgPool2d(1), spread(4, 8, 8), [(Op.MEAN,)]),
    "mean": (Apply(lambda x: x.mean((2, 3))), spread(4, 8, 8), [(Op.MEAN,)]),
    "nearest": (nn.Upsample(scale_factor=2), spread(4, 8, 8), [(Op.UPSAMPLE,)]),
    "bilinear upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), spread(4, 8, 8), [(Op.UPSAMPLE,)]),
    "pixel shuffle": (nn.PixelShuffle(2), spread(4, 8, 8), [(Op.UPSAMPLE,)]),
    "nothing": (nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Identity()), spread(4, 2), []),
    "padding": (nn.ReflectionPad2d(1), spread(4, 8, 8), []),
    "arithmetic with numbers": (Apply(lambda x: (x - 1) / 2 + ids(4) * 3), spread(4), []),
    "masks": (Apply(lambda x: x.masked_fill(torch.ones(4, 4).triu(1) > 0, -9.0)), spread(4, 4), []),
    "sum": (Apply(lambda x, y: x + y), (spread(4), spread(4)), [(Op.ADD,)]),
    "difference": (Apply(lambda x, y: x - 2 * y), (spread(4), spread(4)), [(Op.ADD,)]),
    "gate": (Apply(lambda x, y: x * y), (spread(4), spread(4)), [(Op.MULTIPLY,)]),
    "product": (Apply(lambda x, y: x @ y), (spread(4, 3), spread(3, 4)), [(Op.MATMUL,)]),
    "concat": (Apply(lambda x, y: torch.cat([x, y], 1)), (spread(4), spread(4)), [(Op.CONCAT,)]),
    "stack": (Apply(lambda x, y: torch.stack([x, y])), (spread(4), spread(4)), [(Op.CONCAT,)]),
    "pieces": (Apply(write_pieces), (spread(8), spread(8)), [(Op.SIGMOID,), (Op.TANH,), (Op.CONCAT,)]),
    "gather": (Apply(lambda x: x[ids(7) % 2]), spread(4), [(Op.GATHER,)]),
    "scatter": (Apply(lambda x: torch.zeros(3, 4).index_add(0, ids(2), x)), spread(4), [(Op.SCATTER,)]),
    "raw matrix": (Apply(lambda x, w, b: x @ w + b, (8, 4), (4,)), spread(5, 8), [(Op.LINEAR, *LAYER)]),
    "transposed matrix": (Apply(lambda x, w: x @ w.T, (4, 8)), spread(8), [(Op.LINEAR, WEIGHT)]),
    "addmm": (Apply(lambda x, w, b: torch.addmm(b, x, w), (8, 4), (4,)), spread(8), [(Op.LINEAR, *LAYER)]),
    "einsum": (Apply(lambda x, w: torch.einsum("bi,io->bo", x, w), (8, 4)), spread(8), [(Op.LINEAR, WEIGHT)]),
    "low rank": (Apply(lambda x, a, b: x @ (a @ b), (8, 2), (2, 4)), spread(8), [
        (Op.LINEAR, WEIGHT, WEIGHT),
    ]),
    "bias of a conv": (Apply(lambda x, w, b: F.conv2d(x, w) + b[:, None, None], (4, 3, 1, 1), (4,)),
                       spread(3, 5, 5), [(Op.CONV, *LAYER)]),
    "late bias": (Apply(lambda x, b: x.relu() + b, (4,)), spread(4), [(Op.RELU,), (Op.ADD, BIAS)]),
    "positions": (Apply(lambda x, p: x + p, (1, 5, 4)), spread(5, 4), [(Op.ADD, TABLE)]),
    "class token": (Apply(lambda x, t: torch.cat([t.expand(2, -1, -1), x], 1), (1, 1, 4)), spread(5, 4),
                    [(Op.CONCAT, TABLE)]),
    "layer scale": (Apply(lambda x, s: x.relu() * s, (4,)), spread(4), [(Op.RELU,), (Op.MULTIPLY, SCALE)]),
    "affine": (Apply(lambda x, s, b: x * s + b, (4,), (4,)), spread(4), [(Op.MULTIPLY, SCALE, BIAS)]),
    "temperature": (Apply(lambda x, t: x * t.clamp(max=4).exp(), (1,)), spread(4), [(Op.MULTIPLY, SCALE)]),
    "queries": (Apply(lambda x, q: F.scaled_dot_product_attention(q.expand(2, -1, -1), x, x), (1, 3, 4)),
                spread(5, 4), [(Op.PARAMETER, TABLE), (Op.ATTENTION,)]),
    "normed queries": (Apply(lambda x, q, w: F.layer_norm(q, (4,), w) @ x.transpose(1, 2), (2, 3, 4), (4,)),
                       spread(5, 4), [(Op.LINEAR, WEIGHT, NORM)]),
    "queries through norms": (
        Apply(lambda x, q, w: F.scaled_dot_product_attention(
            F.rms_norm((F.layer_norm(q, (4,), w) * 2).relu(), (4,)).expand(2, -1, -1), x, x),
            (1, 3, 4), (4,)), spread(5, 4), [
        (Op.PARAMETER, TABLE), (Op.LAYER_NORM, NORM), (Op.RELU,), (Op.RMS_NORM,), (Op.ATTENTION,),
    ]),
    "queries through a layer": (
        Apply(lambda x, q, w: F.scaled_dot_product_attention((q @ w).expand(2, -1, -1), x, x),
              (3, 4), (4, 4)), spread(5, 4), [(Op.PARAMETER, TABLE), (Op.LINEAR, WEIGHT), (Op.ATTENTION,)]),
    "a state that grows from a parameter": (
        Apply(lambda x, h: torch.cat([x, functools.reduce(lambda s, _: s.tanh().sin(), range(600), h)], 1),
              (2, 4)), spread(4), [(Op.CONCAT, TABLE)]),
    "weight norm": (nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), spread(8), [
        (Op.LINEAR, WEIGHT, SCALE, BIAS),
    ]),
    "spectral norm": (nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3)), spread(3, 5, 5), [
        (Op.CONV, *LAYER),
    ]),
    "standardized weight": (Apply(lambda x, w, g: F.conv1d(
        x, F.batch_norm(w.view(1, 8, -1), None, None, weight=g, training=True).view_as(w)), (8, 4, 3), (8,)),
        spread(4, 9), [(Op.CONV, WEIGHT, NORM)]),
    "unknown": (Apply(lambda x: torch.cumsum(x, 0)), spread(4), [(Op.OTHER,)]),
}  # fmt: skip


def summary(graph: ArchitectureGraph) -> list[tuple[Any, ...]]:
    """Return operations and roles without inputs and outputs."""
    ends = (Op.INPUT, Op.OUTPUT)
    return [
        (n.operation, *sorted((p.role for p in n.parameters), key=list(Role).index))
        for n in graph.nodes
        if n.operation not in ends
    ]


@pytest.mark.parametrize("row", ROWS)
def test_a_layer_becomes_its_operation(row: str) -> None:
    network, inputs, expected = ROWS[row]
    graph = trace(network, inputs, tracer="recorded")
    order = list(Role).index
    assert summary(graph) == [(op, *sorted(roles, key=order)) for op, *roles in expected]
    assert not graph.skipped
    assert {p.name: p.shape for p in graph.parameters} == {n: p.shape for n, p in network.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_exporting_gives_the_same_graph(row: str) -> None:
    network, inputs, _ = ROWS[row]
    assert trace(network, inputs, tracer="exported") == trace(network, inputs, tracer="recorded")


@pytest.mark.parametrize("row", ["conv2d", "encoder layer", "lstm", "addmm", "spectral norm", "pieces"])
def test_exporting_gives_the_same_graph_of_some(row: str) -> None:
    network, inputs, _ = ROWS[row]
    assert trace(network, inputs, tracer="exported") == trace(network, inputs, tracer="recorded")


def test_settings_of_convolutions_and_poolings() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2, dilation=3),
        nn.MaxPool2d(3, 2),
        nn.AvgPool2d(2),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4),
    )
    settings = [(n.groups, n.stride, n.dilation, n.kernel) for n in trace(network, spread(4, 40, 40)).nodes]
    assert settings[1:-1] == [(2, 2, 3, 1), (1, 2, 1, 3), (1, 2, 1, 2), (4, 2, 1, 1)]


@pytest.mark.parametrize(
    ("function", "shape", "transposed"),
    [
        (lambda x, w: x @ w, (8, 4), True),
        (lambda x, w: x @ w.T, (4, 8), False),
        (lambda x, w: F.linear(x, w), (4, 8), False),
        (lambda x, w: F.linear(x, w.T), (8, 4), True),
        (lambda x, w: (w @ x.T).T, (4, 8), False),
        (lambda x, w: (w.T @ x.T).T, (8, 4), True),
        (lambda x, w: x @ w, (8, 8), True),
        (lambda x, w: x @ w.transpose(0, 1).contiguous(), (8, 8), False),
        (lambda x, w: torch.einsum("bi,oi->bo", x, w), (8, 8), False),
        (lambda x, w: torch.einsum("io,bi->bo", w, x), (8, 8), True),
        (lambda x, w: x[:, None] @ w, (8, 8), True),
    ],
)
def test_which_dimension_of_a_matrix_is_the_input(
    function: Callable[..., Tensor], shape: tuple[int, int], transposed: bool
) -> None:
    (parameter,) = trace(Apply(function, shape), torch.randn(5, 8)).parameters
    assert parameter.transposed is transposed
    assert parameter.fan_in == 8


def test_every_name_is_an_operator() -> None:
    names = [n for n in RULES if not hasattr(torch.ops.aten, n) and not hasattr(torch.ops.aten, n + "_")]
    assert not names
