"""Graphs as JSON: nothing is lost, and hostile input ends in one clean error."""

import copy
import json
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypernets.architecture.graph import (
    ArchitectureGraph,
    Edge,
    Node,
    Operation,
    Parameter,
    Role,
    SkipReason,
)
from hypernets.architecture.serialize import Limits, from_json, to_json
from metainit.card import canonical_json
from metainit.errors import GraphError

GRAPH = ArchitectureGraph(
    (
        Node(Operation.INPUT),
        Node(
            Operation.CONV,
            (Parameter("conv.weight", (8, 3, 5, 5), Role.WEIGHT), Parameter("conv.bias", (8,), Role.BIAS)),
            stride=2,
        ),
        Node(Operation.MAX_POOL, kernel=2, stride=2),
        Node(Operation.LINEAR, (Parameter("head", (8, 10), Role.WEIGHT, transposed=True),)),
        Node(Operation.OUTPUT),
    ),
    (Edge(0, 1), Edge(1, 2), Edge(2, 3, 1), Edge(1, 3, 0), Edge(3, 4)),
    {"auxiliary.weight": SkipReason.UNREACHED, "frozen": SkipReason.KEPT},
)


def graphs() -> st.SearchStrategy[ArchitectureGraph]:
    name = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=8)
    shape = st.lists(st.integers(1, 9), max_size=5).map(tuple)

    @st.composite
    def build(draw: st.DrawFn) -> ArchitectureGraph:
        names = draw(st.lists(name, max_size=6, unique=True))
        count = draw(st.integers(1, 6))
        carried: list[list[Parameter]] = [[] for _ in range(count)]
        skipped = {}
        for each in names:
            where = draw(st.integers(-1, count - 1))
            if where < 0:
                skipped[each] = draw(st.sampled_from(SkipReason))
            else:
                role, transposed = draw(st.sampled_from(Role)), draw(st.booleans())
                carried[where].append(Parameter(each, draw(shape), role, transposed))
        nodes = tuple(
            Node(draw(st.sampled_from(Operation)), tuple(own), *draw(st.tuples(*[st.integers(1, 99)] * 4)))
            for own in carried
        )
        pairs = [(a, b) for b in range(count) for a in range(b)]
        chosen = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
        return ArchitectureGraph(nodes, tuple(Edge(*p, draw(st.integers(0, 3))) for p in chosen), skipped)

    return build()


@given(graphs())
@settings(max_examples=100, deadline=None)
def test_nothing_is_lost_as_json(graph: ArchitectureGraph) -> None:
    text = json.dumps(to_json(graph))
    assert from_json(text) == graph
    assert from_json(text.encode()) == graph
    assert from_json(to_json(graph)) == graph
    assert canonical_json(to_json(from_json(text))) == canonical_json(to_json(graph))
    assert from_json(text).hash == graph.hash


def test_the_hash_sees_every_part() -> None:
    value = to_json(GRAPH)
    hashes = {GRAPH.hash}
    for path, new in (
        (("nodes", 1, "operation"), "linear"),
        (("nodes", 1, "stride"), 1),
        (("nodes", 1, "parameters", 0, "shape"), [8, 3, 5, 4]),
        (("nodes", 1, "parameters", 0, "role"), "scale"),
        (("nodes", 3, "parameters", 0, "transposed"), False),
        (("edges", 2), [2, 3, 0]),
        (("skipped", "frozen"), "unreached"),
    ):
        changed = copy.deepcopy(value)
        place: Any = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = new
        hashes.add(from_json(changed).hash)
    assert len(hashes) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"version: expected 1, .* got 2"),
        ({"version": True}, "version"),
        ({"extra": 1}, "no key but"),
        ({"nodes": {}}, r"nodes: expected a list, got an object of 0 keys"),
        ({"nodes": [{"operation": "convolve"}]}, r"nodes\[0\].operation: 'convolve' is not known.*'conv'"),
        ({"nodes": [{"operation": "conv", "stride": 0}]}, r"nodes\[0\].stride: expected an integer from 1"),
        ({"nodes": [{"operation": "conv", "stride": 2.0}]}, r"stride"),
        ({"edges": [[1, 0]]}, r"edges\[0\].*got 1 -> 0: nodes lie in topological order"),
        ({"edges": [[0, 0]]}, "cycles"),
        ({"edges": [[0, 5]]}, "below 5"),
        ({"edges": [[0, 1], [0, 1]]}, "each edge once"),
        ({"edges": [[0]]}, r"edges\[0\]"),
        ({"edges": [[0, 1, -1]]}, r"edges\[0\]\[2\]"),
        ({"skipped": {"conv.weight": "kept"}}, "no other parameter has, got 'conv.weight'"),
        ({"skipped": {"x": "because"}}, "'because' is not known"),
        ({"skipped": {"": "kept"}}, "a name of 1 to 300"),
        ({"skipped": {"a\nb": "kept"}}, "printable"),
        ({"skipped": {"n" * 301: "kept"}}, "301 characters"),
        ({"edges": [[0, 10**5000]]}, r"an integer of \d+ bits"),
    ],
)
def test_an_error_says_where_and_what(change: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        from_json(to_json(GRAPH) | change)


@pytest.mark.parametrize(
    "text",
    [
        "", "nul", "[" * 100_000, '{"a":' * 100_000, "NaN", b"\xff\xfe\x00", "1" * 5000, '{"version": 1e999}',
        '{"version": 1, "version": 1, "nodes": [], "edges": []}', '"\\ud800"', "[[[[]]]]",
    ],
)  # fmt: skip
def test_text_that_is_no_graph_is_refused(text: str | bytes) -> None:
    with pytest.raises(GraphError, match="architecture graph"):
        from_json(text)


def tensor(name: str, *shape: int) -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "role": "weight"}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(characters=100), "characters"),
        (Limits(nodes=4), "nodes: expected at most 4"),
        (Limits(edges=4), "edges: expected at most 4"),
        (Limits(parameters=4), "more than 4 parameters"),
        (Limits(elements=687), "all parameters together have 688"),
        (Limits(dimensions=3), r"nodes\[1\].parameters\[0\].shape: expected at most 3"),
        (Limits(name_length=10), "conv.weight"),
    ],
)
def test_every_limit_holds(limits: Limits, message: str) -> None:
    text = json.dumps(to_json(GRAPH))
    assert from_json(text, Limits(nodes=5, edges=5, parameters=5, elements=688, dimensions=4)) == GRAPH
    with pytest.raises(GraphError, match=message):
        from_json(text, limits)


def test_large_hostile_values_are_refused_in_no_time() -> None:
    begin = time.perf_counter()
    many = [{"operation": "linear", "parameters": [tensor("same", 1)]}] * 20_000
    for value in (
        {"version": 1, "nodes": many, "edges": []},
        {
            "version": 1,
            "nodes": [{"operation": "conv", "parameters": [tensor("w", *[2**31] * 8)]}],
            "edges": [],
        },
        {"version": 1, "nodes": [{"operation": "input"}] * 10**6, "edges": []},
    ):
        with pytest.raises(GraphError):
            from_json(value)
    assert time.perf_counter() - begin < 2


def junk(random_: random.Random, depth: int = 0) -> Any:
    leaves: list[Any] = [
        None, True, -1, 0, 1, 3, 2**31, 10**30, 0.5, float("inf"), "", "conv", "weight", "\ud800", "x" * 400,
    ]  # fmt: skip
    if depth > 3 or random_.random() < 0.6:
        return random_.choice(leaves)
    if random_.random() < 0.5:
        return [junk(random_, depth + 1) for _ in range(random_.randrange(4))]
    return {
        random_.choice(["name", "shape", "version", "q"]): junk(random_, depth + 1)
        for _ in range(random_.randrange(4))
    }


def mutate(value: Any, random_: random.Random) -> Any:
    """Replace, delete, double or swap something at a random place."""
    place = value
    while isinstance(place, (dict, list)) and place:
        key = random_.choice(list(place)) if isinstance(place, dict) else random_.randrange(len(place))
        if random_.random() < 0.4 or not isinstance(place[key], (dict, list)):
            kind = random_.randrange(4)
            if kind == 0:
                del place[key]
            elif kind == 1 and isinstance(place, list):
                place.append(copy.deepcopy(place[key]))
            elif kind == 2 and isinstance(place, dict):
                place[random_.choice(["operation", "stride", "z"])] = place[key]
            else:
                place[key] = junk(random_)
            return value
        place = place[key]
    return junk(random_)


def fuzz(count: int, seed: int) -> int:
    """Read mutated graphs, values and texts; return how many were still graphs."""
    random_ = random.Random(seed)
    original = to_json(GRAPH)
    good = 0
    for _ in range(count):
        value: Any = copy.deepcopy(original)
        for _ in range(random_.choice([1, 1, 2, 5])):
            value = mutate(value, random_)
        if random_.random() < 0.3:
            text = bytearray(json.dumps(value).encode())
            for _ in range(random_.randrange(3)):
                text[random_.randrange(len(text))] = random_.randrange(256)
            value = bytes(text)
        try:
            graph = from_json(value)
        except GraphError as error:
            assert 0 < len(str(error)) < 1000
            str(error).encode()
        else:
            assert from_json(to_json(graph)) == graph
            good += 1
    return good


def test_only_clean_errors_come_out() -> None:
    assert fuzz(3000, seed=1) > 100


@pytest.mark.slow
def test_only_clean_errors_come_out_of_many_inputs() -> None:
    assert fuzz(100_000, seed=2) > 1000


def test_the_map_of_a_flattened_weight_travels() -> None:
    parameter = {"name": "fc.weight", "shape": [10, 98], "role": "weight", "spatial": [7, 7]}
    value = {"version": 1, "nodes": [{"operation": "linear", "parameters": [parameter]}], "edges": []}
    graph = from_json(value)
    assert graph.parameters[0].matrix == (10, 2, 7, 7)
    assert to_json(graph) == value


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"spatial": [7]}, "height, width"),
        ({"spatial": [5, 5]}, "divide the inputs"),
        ({"spatial": [0, 7]}, "spatial"),
        ({"spatial": "7x7"}, "spatial"),
        ({"role": "bias"}, "matrix of weights"),
        ({"shape": [10, 98, 1, 1]}, "matrix of weights"),
        ({"transposed": True}, "matrix of weights"),
    ],
)
def test_a_map_that_no_matrix_could_see_is_refused(change: dict[str, Any], text: str) -> None:
    parameter = {"name": "fc.weight", "shape": [10, 98], "role": "weight", "spatial": [7, 7]} | change
    value = {"version": 1, "nodes": [{"operation": "linear", "parameters": [parameter]}], "edges": []}
    with pytest.raises(GraphError, match=text):
        from_json(value)
