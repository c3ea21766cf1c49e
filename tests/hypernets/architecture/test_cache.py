"""The cache: found again where nothing but numbers differs, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypernets.architecture.cache import GraphCache
from hypernets.architecture.trace import trace


class Net(nn.Module):
    def __init__(self, width: int = 8, slope: float = 0.1, gate: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, width), nn.Linear(width, 4)
        self.activation: nn.Module = nn.LeakyReLU(slope)
        self.gate = gate
        self.finish: Callable[[Tensor], Tensor] = torch.sigmoid

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.activation(self.a(x)))
        return y * x if self.gate else self.finish(y)


def tied(network: Net) -> Net:
    network.b.weight = network.a.weight
    return network


def changed(network: Net, **attributes: Any) -> Net:
    for name, value in attributes.items():
        setattr(network, name, value)
    return network


X = torch.randn(3, 4)


def test_what_has_the_same_structure_is_found_again() -> None:
    cache = GraphCache()
    first = cache.trace(Net(), X)
    assert first == trace(Net(), X)
    assert cache.trace(Net(), torch.zeros(3, 4)) is first
    network = Net()
    cache.trace(network, X)
    with torch.no_grad():
        network.a.weight.zero_()
    assert cache.trace(network, X) is first
    assert len(cache) == 1


@pytest.mark.parametrize(
    "other",
    [
        lambda: (Net(width=9), X),
        lambda: (Net(slope=0.2), X),
        lambda: (Net(gate=True), X),
        lambda: (changed(Net(), activation=nn.ReLU()), X),
        lambda: (changed(Net(), finish=torch.tanh), X),
        lambda: (changed(Net(), finish=lambda y: y * 2), X),
        lambda: (changed(Net(), finish=lambda y: y.sin()), X),
        lambda: (Net().double(), X.double()),
        lambda: (Net(), X[:2]),
        lambda: (Net(), {"x": X}),
        lambda: (tied(Net(width=4)), X),
        lambda: (Net(width=4), X),
        lambda: (Net().eval(), X),
    ],
)
def test_what_differs_is_traced_anew(other: Callable[[], tuple[Net, Any]]) -> None:
    cache = GraphCache()
    first = cache.trace(Net(), X)
    network, inputs = other()
    assert cache.trace(network, inputs) == trace(network, inputs)
    assert len(cache) == 2
    assert cache.trace(Net(), X) is first
    assert cache.trace(Net(), X, keep=["a.bias"]).skipped


def test_a_class_that_is_written_anew_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook: under the same name, with the same attributes."""

    def versions() -> list[type[Net]]:
        class Mine(Net):
            def forward(self, x: Tensor) -> Tensor:
                return self.a(x).relu()

        first = Mine

        class Mine(Net):  # type: ignore[no-redef]
            def forward(self, x: Tensor) -> Tensor:
                return self.b(self.a(x).sin())

        return [first, Mine]

    cache = GraphCache()
    first, second = versions()
    for kind in (first, second, first):
        assert cache.trace(kind(), X) == trace(kind(), X)
    assert len(cache) == 2
    before = cache.trace(first(), X)
    monkeypatch.setattr(first, "forward", second.forward)
    assert cache.trace(first(), X) == cache.trace(second(), X) != before


def test_closures_tell_functions_apart() -> None:
    def close(constant: float) -> Callable[[Tensor], Tensor]:
        return lambda y: (y + constant).relu()

    cache = GraphCache()
    for constant, size in ((1.0, 1), (2.0, 2), (1.0, 2)):
        cache.trace(changed(Net(), finish=close(constant)), X)
        assert len(cache) == size


def test_the_oldest_goes_first() -> None:
    cache = GraphCache(size=2)
    one = cache.trace(Net(1), X)
    cache.trace(Net(2), X)
    assert cache.trace(Net(1), X) is one
    cache.trace(Net(3), X)
    assert cache.trace(Net(1), X) is one
    assert len(cache) == 2
    with pytest.raises(ValueError, match="at least 1"):
        GraphCache(size=0)


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        for _ in range(int(times)):
            x = self.layer(x)
        return x


def test_integers_that_were_looked_at_count() -> None:
    cache = GraphCache()
    one, two = (cache.trace(Loop(), (X, torch.tensor(n))) for n in (1, 2))
    assert len(one.nodes) + 1 == len(two.nodes)
    assert cache.trace(Loop(), (X, torch.tensor(2))) is two


def test_what_depends_on_other_numbers_is_not_kept() -> None:
    cache = GraphCache()
    lengths = [len(cache.trace(Loop(), (X, torch.tensor(n))).nodes) for n in (1.0, 3.0)]
    assert lengths == [4, 6]
    assert len(cache) == 0


def test_what_cannot_be_compared_is_not_kept() -> None:
    cache = GraphCache()
    network = changed(Net(), stream=iter([1]))
    assert cache.trace(network, X) == trace(Net(), X)
    assert len(cache) == 0


def test_sizes_that_integers_determine_count() -> None:
    class Select(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor, kinds: Tensor) -> Tensor:
            for row in kinds[kinds > 0]:
                x = self.layer(x) + row
            return x

    cache = GraphCache()
    graphs = [cache.trace(Select(), (X, torch.tensor(kinds))) for kinds in ([0, 1, 2], [0, 0, 1], [0, 0, 1])]
    assert [len(graph.nodes) for graph in graphs] == [5, 4, 4]
    assert graphs[1] is graphs[2]
