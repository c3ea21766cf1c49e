"""Tracing: what is guaranteed whatever the network is."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

from hypernets.architecture import reading, recording
from hypernets.architecture import trace as tracing
from hypernets.architecture.builder import Builder
from hypernets.architecture.drafts import Fixed
from hypernets.architecture.graph import ArchitectureGraph, Operation, Role, SkipReason
from hypernets.architecture.serialize import Limits, from_json, to_json
from hypernets.architecture.trace import Dependence, Tracer, trace, trace_fully
from hypernets.architecture.vocabulary import Einsum, Rule, operator_name, rule_of
from metainit.errors import GraphError


class Residual(nn.Module):
    """A convolutional network with a residual, dropout, statistics, an auxiliary head and a spare layer."""

    def __init__(self, stem: str = "stem") -> None:
        super().__init__()
        self.first = stem
        self.add_module(stem, nn.Conv2d(3, 8, 3, padding=1))
        self.block = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(True), nn.Conv2d(8, 8, 3, padding=1))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)
        self.auxiliary = nn.Linear(8, 2)
        self.spare = nn.Linear(2, 2)
        self.calls = 0
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        x = getattr(self, self.first)(x)
        self.seen.append(x)
        x = self.drop(F.relu(x + self.block(x))).mean((2, 3))
        result = {"logits": self.head(x)}
        return result | ({"auxiliary": self.auxiliary(x)} if self.training else {})


PICTURES = torch.randn(2, 3, 8, 8)


def kinds(graph: ArchitectureGraph) -> list[Operation]:
    return [node.operation for node in graph.nodes]


def ways(graph: ArchitectureGraph) -> set[tuple[str, str]]:
    names = [
        n.parameters[0].name.rsplit(".", 1)[0] if n.parameters else n.operation.value for n in graph.nodes
    ]
    return {(names[e.source], names[e.target]) for e in graph.edges}


def test_a_residual_network_is_read_right() -> None:
    graph = trace(Residual(), PICTURES)
    assert graph.skipped == {"spare.weight": SkipReason.UNREACHED, "spare.bias": SkipReason.UNREACHED}
    assert {("input", "stem"), ("stem", "block.0"), ("stem", "add"), ("block.2", "add"), ("mean", "head"),
            ("mean", "auxiliary")} <= ways(graph)  # fmt: skip
    assert kinds(graph).count(Operation.OUTPUT) == 2
    assert [p.role for p in graph.parameters][:4] == [Role.WEIGHT, Role.BIAS, Role.NORM_WEIGHT, Role.BIAS]


@pytest.mark.parametrize("tracer", ["recorded", "exported"])
def test_the_network_is_not_touched(tracer: tracing.Tracer) -> None:
    network = Residual().eval()
    network.block.train()
    network.head.weight.grad = torch.ones(4, 8)
    before = copy.deepcopy(network.state_dict())
    held = [(m, dict(vars(m)), m.training) for m in network.modules()]
    random_states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    trace(network, PICTURES, tracer=tracer)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert [(m, dict(vars(m)), m.training) for m in network.modules()] == held
    assert (network.calls, network.seen) == (0, [])
    assert torch.equal(network.head.weight.grad, torch.ones(4, 8)) and network.head.bias.grad is None
    assert torch.equal(torch.get_rng_state(), random_states[0])
    assert random.getstate() == random_states[1]
    assert np.array_equal(np.random.get_state()[1], random_states[2])


def test_tracing_is_deterministic() -> None:
    graphs = [trace(Residual(), torch.randn(2, 3, 8, 8)) for _ in range(2)]
    assert graphs[0] == graphs[1]
    assert graphs[0].hash == graphs[1].hash
    assert from_json(to_json(graphs[0])) == graphs[0]


def test_names_of_modules_change_names_only() -> None:
    one, other = trace(Residual(), PICTURES), trace(Residual("renamed"), PICTURES)
    text = str(to_json(other)).replace("renamed.", "stem.")
    assert str(to_json(one)) == text
    assert one.edges == other.edges


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_type(dtype: torch.dtype) -> None:
    assert trace(Residual().to(dtype), PICTURES.to(dtype)) == trace(Residual(), PICTURES)


def test_a_network_without_numbers() -> None:
    with torch.device("meta"):
        network = Residual()
    expected = trace(Residual(), PICTURES)
    assert trace(network, PICTURES) == expected
    assert trace(network, PICTURES.to("meta")) == expected
    assert trace(network, PICTURES, tracer="exported") == expected


def test_inputs_by_name_position_and_nesting() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 2), nn.Linear(3, 2)

        def forward(self, first: Tensor, rest: dict[str, Any], scale: float = 1.0) -> tuple[Tensor, Any]:
            total = self.left(first) + self.right(rest["x"][0]) * scale
            return total, {"again": [total, None]}

    first, second = torch.randn(5, 4), torch.randn(5, 3)
    graph = trace(Two(), (first, {"x": [second]}))
    assert trace(Two(), {"first": first, "rest": {"x": [second]}, "scale": 2.0}) == graph
    assert kinds(graph) == [
        Operation.INPUT, Operation.INPUT, Operation.LINEAR, Operation.LINEAR, Operation.ADD,
        Operation.OUTPUT, Operation.OUTPUT,
    ]  # fmt: skip
    assert [(e.source, e.target, e.operand) for e in graph.edges] == [
        (0, 2, 0), (1, 3, 0), (2, 4, 0), (3, 4, 1), (4, 5, 0), (4, 6, 0),
    ]  # fmt: skip


def test_operands_keep_their_order() -> None:
    class Join(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([b.relu(), a, b], 1)

    graph = trace(Join(), (torch.randn(2, 3), torch.randn(2, 3)))
    ordered = sorted((e.operand, e.source) for e in graph.edges if e.target == 3)
    assert ordered == [(0, 2), (1, 0), (2, 1)]


def test_tied_parameters_belong_to_their_first_use() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.table(ids))

    graph = trace(Tied(), torch.zeros(2, 3, dtype=torch.long))
    assert kinds(graph) == [Operation.INPUT, Operation.EMBEDDING, Operation.LINEAR, Operation.OUTPUT]
    assert [len(node.parameters) for node in graph.nodes] == [0, 1, 0, 0]
    assert [p.name for p in graph.parameters] == ["table.weight"]


def test_frozen_parameters_and_blocks_without_gradient() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                x = self.body(x).relu()
            return self.head(x)

    expected = [Operation.INPUT, Operation.LINEAR, Operation.RELU, Operation.LINEAR, Operation.OUTPUT]
    for tracer in ("recorded", "exported"):
        graph = trace(Frozen(), torch.randn(2, 4), tracer=tracer)  # type: ignore[arg-type]
        assert kinds(graph) == expected
        assert len(graph.parameters) == 4


def test_what_is_kept_and_what_cannot_be_predicted() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.empty = nn.Parameter(torch.zeros(0, 3))
            self.count = nn.Parameter(torch.zeros(2, dtype=torch.long), requires_grad=False)
            self.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x) * self.phase).real + self.count[0]

    graph = trace(Odd(), torch.randn(2, 4), keep=["layer.bias"])
    assert graph.skipped == {
        "layer.bias": SkipReason.KEPT,
        "empty": SkipReason.EMPTY,
        "count": SkipReason.NOT_FLOATING,
        "phase": SkipReason.NOT_FLOATING,
    }
    assert [p.name for p in graph.parameters] == ["layer.weight"]
    with pytest.raises(GraphError, match=r"'layer.bais' is no parameter.*'layer.bias'"):
        trace(Odd(), torch.randn(2, 4), keep=["layer.bais"])


class Switch(nn.Module):
    """Looks at its input."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # looks
            return self.positive(x)
        return self.negative(x)


@pytest.mark.parametrize(("sign", "reached"), [(1.0, "positive"), (-1.0, "negative")])
def test_control_flow_on_data_is_followed_with_numbers(sign: float, reached: str) -> None:
    traced = trace_fully(Switch(), sign * torch.ones(3, 4))
    assert {p.name.split(".")[0] for p in traced.graph.parameters} == {reached}
    assert set(traced.graph.skipped.values()) == {SkipReason.UNREACHED}
    assert traced.depends_on is Dependence.NUMBERS
    assert trace_fully(Switch().half(), sign * torch.ones(3, 4).half()).graph == traced.graph


@pytest.mark.parametrize(
    "make",
    [lambda: (Switch().to("meta"), torch.ones(3, 4)), lambda: (Switch(), torch.ones(3, 4, device="meta"))],
)
def test_without_numbers_the_line_that_looks_at_them_is_named(make: Callable[[], Any]) -> None:
    with pytest.raises(GraphError, match=r"depends on data at .*test_trace.py:\d+, in forward .*looks"):
        trace(*make())


def test_control_flow_on_integers_needs_no_numbers() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.register_buffer("ready", torch.tensor(False))

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            count = int(edges.max()) + 1
            if not self.ready:
                x = x.relu()
            return torch.zeros(count, 2).index_add(0, edges[1], self.layer(x)[edges[0]])

    edges = torch.tensor([[0, 1, 2], [1, 2, 0]])
    traced = trace_fully(Sized(), (torch.randn(3, 4), edges))
    assert traced.depends_on is Dependence.INTEGERS
    assert kinds(traced.graph) == [
        Operation.INPUT, Operation.INPUT, Operation.RELU, Operation.LINEAR, Operation.GATHER,
        Operation.SCATTER, Operation.OUTPUT,
    ]  # fmt: skip
    # The edge list leads to where it is used.
    assert {(1, 4), (1, 5)} <= {(e.source, e.target) for e in traced.graph.edges}


def test_a_forward_pass_that_fails_is_explained() -> None:
    with pytest.raises(
        GraphError, match=r"Residual cannot be traced.*test_trace.py:\d+, in forward .*channels"
    ):
        trace(Residual(), torch.randn(2, 4, 8, 8))
    with pytest.raises(GraphError, match="expected a tensor, a tuple"):
        trace(Residual(), "picture")  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"0.weight has no shape before the first forward pass"):
        trace(nn.Sequential(nn.LazyLinear(3)), torch.randn(2, 4))


def test_a_batch_of_one_is_enough() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
    assert trace(network, torch.randn(1, 4)) == trace(network, torch.randn(9, 4))


def test_a_network_that_evaluates_only() -> None:
    class Evaluates(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("this network can only be evaluated")
            return super().forward(x)

    assert kinds(trace(Evaluates(4, 2), torch.randn(2, 4)))[1] is Operation.LINEAR


class InPlace(nn.Module):
    """Gives a function two linear layers' results."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 4), nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.a(x), self.b(x))


def write_slice(a: Tensor, b: Tensor) -> Tensor:
    a[:, :2] = b[:, :2]
    return a


def write_all(a: Tensor, b: Tensor) -> Tensor:
    result = torch.empty_like(a)
    result.copy_(b)
    return result


def through_a_view(a: Tensor, b: Tensor) -> Tensor:
    whole = a.view(-1)
    whole.mul_(b.view(-1))
    return a


def one_half(a: Tensor, b: Tensor) -> Tensor:
    left, right = a.chunk(2, 1)
    left.sigmoid_()
    return right + b[:, :2]


def write_masked(a: Tensor, b: Tensor) -> Tensor:
    a[torch.arange(4) > 1] = b[torch.arange(4) > 1]
    return a


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (write_slice, {("a", "concat"), ("b", "concat"), ("concat", "output")}),
        (write_all, {("b", "output")}),
        (through_a_view, {("a", "multiply"), ("b", "multiply"), ("multiply", "output")}),
        (one_half, {("a", "add"), ("b", "add"), ("add", "output")}),
        (write_masked, {("a", "concat"), ("b", "gather"), ("gather", "concat"), ("concat", "output")}),
    ],
)
@pytest.mark.parametrize("tracer", ["recorded", "exported"])
def test_writes_in_place_reach_who_reads_them(
    function: Callable[[Tensor, Tensor], Tensor], expected: set[tuple[str, str]], tracer: tracing.Tracer
) -> None:
    if tracer == "exported" and function is write_masked:
        pytest.skip("the shape depends on the mask")
    graph = trace(InPlace(function), torch.randn(4, 4), tracer=tracer)
    assert {way for way in ways(graph) if way[0] != "input"} == expected


def test_attributes_that_cannot_be_copied() -> None:
    import threading

    network = Residual()
    network.lock = threading.Lock()  # type: ignore[assignment]
    network.last = network.head(torch.randn(2, 8))  # type: ignore[assignment]
    assert trace(network, PICTURES) == trace(Residual(), PICTURES)


def test_a_graph_of_too_many_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(100):
                x = x.sin()
            return x

    monkeypatch.setattr(tracing, "Limits", lambda: Limits(nodes=50))
    with pytest.raises(GraphError, match="102 nodes, expected at most 50"):
        trace(Loop(), torch.randn(2, 4))
    monkeypatch.setattr(recording, "MAX_CALLS", 99)
    with pytest.raises(GraphError, match="more than 99 calls"):
        trace(Loop(), torch.randn(2, 4))


def test_one_forward_pass_on_shapes_is_cheap() -> None:
    with torch.device("meta"):
        wide = nn.Sequential(*[nn.Linear(4096, 4096) for _ in range(20)])
    graph = trace(wide, torch.zeros(512, 4096, device="meta"))
    assert graph.numel == 20 * 4096 * 4097


def test_a_product_that_is_written_over_data_is_of_its_factors_alone() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ torch.mul(self.weight.detach(), 2.0, out=x.clone())

    graph = trace(Written(), torch.zeros(4, 4))
    assert [p.name for p in graph.parameters] == ["weight"]


@pytest.mark.parametrize("tracer", ["auto", "recorded", "exported"])
def test_a_call_of_an_unknown_form_is_named(tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule of another operator reads arguments that the call does not have."""

    def wrong(operator: OpOverload) -> Rule:
        return Einsum() if operator_name(operator) == "tanh" else rule_of(operator)

    monkeypatch.setattr(reading, "rule_of", wrong)
    network = nn.Sequential(nn.Linear(3, 5), nn.Tanh())
    with pytest.raises(GraphError, match=r"Sequential cannot be traced: the call of 'tanh' .*\(2, 5\)"):
        trace(network, torch.zeros(2, 3), tracer=tracer)


def test_what_is_learned_and_becomes_no_node_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(3)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x, (self.a * self.b)[None])

    trace(Lifted(), torch.zeros(2, 3))
    monkeypatch.setattr(Builder, "_lifted", lambda *_: Fixed())
    with pytest.raises(GraphError, match=r"the call of 'mul' .*is no node"):
        trace(Lifted(), torch.zeros(2, 3))
