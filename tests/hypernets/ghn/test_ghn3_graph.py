"""GHN-3's graphs beside the published ones, and that no parameter is lost without a word."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypernets.architecture.graph import SkipReason
from hypernets.ghn.ghn3_config import Word
from hypernets.ghn.ghn3_graph import Form, graph_of
from metainit.errors import MismatchError
from tests.hypernets.ghn.ghn3_networks import Convolutional, Transformer, inputs

GOLDEN = json.loads(Path(__file__).with_name("ghn3_golden.json").read_text())


@pytest.mark.parametrize("name, make", [("convolutional", Convolutional), ("transformer", Transformer)])
def test_graphs_are_the_published_ones(name, make):
    network = make()
    graph = graph_of(network, inputs())
    assert list(graph.words) == GOLDEN[name]["words"]
    assert graph.distances.tolist() == [list(map(int, row.split())) for row in GOLDEN[name]["distances"]]


def test_without_virtual_edges_only_edges_are_left():
    near, far = (graph_of(Convolutional(), inputs(), virtual).distances for virtual in (False, True))
    assert near.max() == 1 < far.max()
    assert torch.equal(near, (far == 1).long())


def test_a_network_on_meta_has_the_same_graph_and_values_are_left_alone():
    network = Convolutional()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    graph = graph_of(network, inputs())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    with torch.device("meta"):
        skeleton = Convolutional()
    other = graph_of(skeleton, inputs())
    assert (graph.words, graph.shapes, graph.targets) == (other.words, other.shapes, other.targets)


class Reading(nn.Module):
    """Looks at values, so that meta tensors do not do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[int(x.sum().item() > 0)](x)


def test_a_network_that_reads_values_is_run_on_them():
    graph = graph_of(Reading(), torch.ones(2, 4))
    assert {target.name for target in graph.targets} == {"layers.1.weight", "layers.1.bias"}
    assert graph.skipped == {
        "layers.0.weight": SkipReason.UNREACHED,
        "layers.0.bias": SkipReason.UNREACHED,
    }
    with torch.device("meta"):
        skeleton = Reading()
    with pytest.raises(MismatchError, match="without values"):
        graph_of(skeleton, torch.ones(2, 4))


def test_an_error_of_the_network_itself_comes_through():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        graph_of(nn.Linear(3, 3), torch.zeros(2, 4))


def test_every_parameter_is_made_or_has_its_reason():
    network = nn.Sequential(
        nn.Conv1d(3, 8, 3),
        nn.BatchNorm1d(8),
        nn.Flatten(),
        nn.Linear(48, 8),
        nn.PReLU(),
        nn.Linear(8, 8, bias=False).requires_grad_(False),
        nn.Linear(8, 2),
    )
    graph = graph_of(network, torch.zeros(2, 3, 8))
    made = {target.name for target in graph.targets}
    assert made | graph.skipped.keys() == dict(network.named_parameters()).keys()
    assert not made & graph.skipped.keys()
    assert made == {"3.weight", "3.bias", "6.weight", "6.bias"}
    assert graph.skipped["5.weight"] is SkipReason.KEPT
    assert graph.skipped["0.weight"] is SkipReason.OUTSIDE_VOCABULARY


def test_names_that_end_alike_are_told_apart():
    # The norm's "1.bias" is no word; the convolution's "11.bias" is.
    layers = [nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), *[nn.Identity() for _ in range(9)], nn.Conv2d(2, 2, 1)]
    graph = graph_of(nn.Sequential(*layers), torch.zeros(2, 2, 4, 4))
    assert "11.bias" in {target.name for target in graph.targets}
    assert not graph.skipped


def test_subclasses_count_as_what_they_are():
    class Norm(nn.LayerNorm):
        pass

    graph = graph_of(nn.Sequential(nn.Linear(4, 4), Norm(4), nn.Linear(4, 4)), torch.zeros(2, 4))
    assert graph.words[3] is Word.LAYER_NORM
    assert not graph.skipped


def test_a_tied_weight_is_made_once_under_its_own_name():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 4)
            self.norm = nn.LayerNorm(4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.table(x)))

    graph = graph_of(Tied(), torch.zeros(2, 3, dtype=torch.long))
    assert sorted(target.name for target in graph.targets) == ["norm.bias", "norm.weight", "table.weight"]


def test_the_last_two_nodes_are_the_classifier():
    forms = {t.name: t.form for t in graph_of(Convolutional(), inputs()).targets}
    assert (forms["classifier.weight"], forms["classifier.bias"]) == (Form.CLASS_WEIGHT, Form.CLASS_BIAS)
    assert (forms["stem.1.weight"], forms["stem.1.bias"]) == (Form.NORM_WEIGHT, Form.BIAS)


def test_a_classifier_that_is_averaged_comes_after_the_average():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    graph = graph_of(network, torch.zeros(2, 3, 8, 8))
    assert [word.name for word in graph.words[-3:]] == ["GLOBAL_AVERAGE", "CONV", "BIAS"]
    assert {t.name: t.form for t in graph.targets}["1.weight"] is Form.CLASS_WEIGHT


def test_all_outputs_count():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": self.a(x), "b": self.b(x)}

    assert not graph_of(Two(), torch.zeros(2, 4)).skipped


def test_a_network_without_a_gradient_is_refused():
    with pytest.raises(MismatchError, match="requires a gradient"):
        graph_of(nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2))


def test_a_deep_network_needs_no_deep_recursion():
    network = nn.Sequential(*[nn.Linear(2, 2) for _ in range(600)])
    graph = graph_of(network, torch.zeros(1, 2))
    assert len(graph.targets) == 1200
    assert int(graph.distances.max()) == 50
