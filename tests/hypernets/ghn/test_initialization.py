from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metainit
from hypernets.architecture import cache
from hypernets.architecture.trace import Traced, trace_fully
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.initialization import Predicted
from hypernets.ghn.model import Ghn
from metainit import checkpoint
from metainit.card import Card, Method, Provenance
from metainit.errors import (
    CheckpointError,
    DataError,
    DivergenceError,
    GraphError,
    MismatchError,
    SourceError,
)

CONFIG = GhnConfig(width=16, heads=2, layers=1, block=8, kernel=3)
INPUTS = torch.zeros(2, 1, 8, 8)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 10)
    )


def saved(path: Path, config: GhnConfig = CONFIG) -> Path:
    torch.manual_seed(0)
    card = Card(
        kind="ghn",
        name="ghn-test",
        method=Method(name="ghn"),
        provenance=Provenance(recipe={"hypernetwork": config.model_dump(mode="json")}),
    )
    checkpoint.save(path / "ghn.safetensors", Ghn(config).state_dict(), card)
    return path / "ghn.safetensors"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    found = metainit.load(saved(tmp_path_factory.mktemp("ghn")))
    assert isinstance(found, Predicted)
    return found


def values(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def test_a_network_is_filled_as_its_seed_says(start: Predicted) -> None:
    first, second = (
        start.init_(small_network(i), seed=3, example_inputs=INPUTS).state_dict() for i in range(2)
    )
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = start.init_(small_network(), seed=4, example_inputs=INPUTS).state_dict()
    assert not torch.equal(first["0.weight"], other["0.weight"])  # 12 channels out of a block of 8


def test_what_is_kept_keeps_its_values(start: Predicted) -> None:
    network = small_network()
    before = values(network)
    filled = start.fill_(network, INPUTS, seed=0, keep=["4.weight", "0.bias"])
    assert set(filled.skipped) == {"4.weight", "0.bias"}
    assert set(filled.predicted) == {"0.weight", "1.weight", "1.bias", "4.bias"}
    for name in filled.skipped:
        assert torch.equal(network.state_dict()[name], before[name])
    assert not torch.equal(network.state_dict()["0.weight"], before["0.weight"])


def test_running_statistics_are_those_of_the_users_data(start: Predicted) -> None:
    network, data = small_network(), torch.randn(64, 1, 8, 8)
    filled = start.fill_(network, INPUTS, seed=0, observation=data)
    assert filled.recalibrated is not None and filled.recalibrated.layers == ("1",)
    with torch.no_grad():
        inside = network[0](data)
    torch.testing.assert_close(network[1].running_mean, inside.mean((0, 2, 3)))
    untouched = small_network()
    assert start.fill_(untouched, INPUTS, seed=0).recalibrated is None
    assert torch.equal(untouched[1].running_mean, torch.zeros(12))


@pytest.mark.parametrize(
    ("observation", "error", "words"),
    [
        (torch.zeros(3, 5), DataError, r"observation of shape \(3, 5\).*nothing was filled"),
        (torch.zeros(2, 3, 8, 8), DataError, r"expected input.* to have 1 channels"),
        (torch.full((8, 1, 8, 8), torch.nan), DivergenceError, "not finite"),
    ],
)
def test_an_observation_that_does_not_fit_leaves_nothing_half_filled(
    start: Predicted, observation: Tensor, error: type[Exception], words: str
) -> None:
    network = small_network()
    before = values(network)
    with pytest.raises(error, match=words):
        start.init_(network, seed=0, example_inputs=INPUTS, observation=observation)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_an_observation_takes_the_type_of_the_network(start: Predicted) -> None:
    network, data = small_network().double(), torch.randn(16, 1, 8, 8)
    start.init_(network, seed=0, example_inputs=INPUTS.double(), observation=data)
    with torch.no_grad():
        inside = network[0](data.double())
    torch.testing.assert_close(network[1].running_mean, inside.mean((0, 2, 3)))


def test_networks_of_one_structure_are_traced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def counted(*arguments: Any, **options: Any) -> Traced:
        traced.append(arguments)
        return trace_fully(*arguments, **options)

    monkeypatch.setattr(cache, "trace_fully", counted)
    start = metainit.load(saved(tmp_path))
    first, second = (start.init_(small_network(i), seed=1, example_inputs=INPUTS) for i in range(2))
    assert len(traced) == 1
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    start.init_(nn.Linear(3, 2), seed=1, example_inputs=torch.zeros(2, 3))
    assert len(traced) == 2


def test_tied_parameters_stay_tied(start: Predicted) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(20, 6)
            self.head = nn.Linear(6, 20, bias=False)
            self.head.weight = self.words.weight

        def forward(self, tokens: Tensor) -> Tensor:
            logits: Tensor = self.head(self.words(tokens))
            return logits

    network = Tied()
    start.init_(network, seed=0, example_inputs=torch.zeros(2, 3, dtype=torch.long))
    assert network.head.weight is network.words.weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_follows_the_network(start: Predicted, dtype: torch.dtype) -> None:
    network = start.init_(small_network().to(dtype), seed=0, example_inputs=INPUTS.to(dtype))
    reference = start.init_(small_network(), seed=0, example_inputs=INPUTS)
    for (name, value), other in zip(network.named_parameters(), reference.parameters(), strict=True):
        assert value.dtype == dtype, name
        torch.testing.assert_close(value, other.to(dtype))


def test_a_trained_network_is_not_overwritten_unasked(start: Predicted) -> None:
    network = small_network()
    network(torch.randn(4, 1, 8, 8))  # moves the running statistics
    before = values(network)
    with pytest.raises(MismatchError, match=r"looks trained .*num_batches_tracked.*overwrite=True"):
        start.init_(network, seed=0, example_inputs=INPUTS)
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    start.init_(network, seed=0, example_inputs=INPUTS, overwrite=True)
    assert not torch.equal(before["0.weight"], network.state_dict()["0.weight"])
    with_gradients = nn.Linear(2, 2)
    with_gradients(torch.ones(1, 2)).sum().backward()
    with pytest.raises(MismatchError, match="looks trained"):
        start.init_(with_gradients, seed=0, example_inputs=torch.ones(1, 2))


def test_a_network_without_storage_is_refused(start: Predicted) -> None:
    with torch.device("meta"):
        network = small_network()
    with pytest.raises(MismatchError, match=r"meta device .*to_empty"):
        start.init_(network, seed=0, example_inputs=INPUTS)


def test_what_is_missing_is_said(start: Predicted) -> None:
    network = small_network()
    with pytest.raises(SourceError, match="example_inputs"):
        start.init_(network, seed=0)
    with pytest.raises(SourceError, match="takes no condition"):
        start.init_(network, seed=0, example_inputs=INPUTS, condition=3)
    with pytest.raises(GraphError):
        start.init_(network, seed=0, example_inputs=torch.zeros(2, 3, 8, 8))
    with pytest.raises(GraphError, match=r"no parameter of the network.*0\.weight"):
        start.init_(network, seed=0, example_inputs=INPUTS, keep=["0.weigth"])


def test_a_checkpoint_of_other_sizes_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    stored = checkpoint.load(path)
    for recipe, text in (
        ({}, "does not say the sizes"),
        ({"hypernetwork": CONFIG.model_dump() | {"width": 32}}, "not those of its hypernetwork"),
    ):
        card = stored.card.model_copy(update={"provenance": Provenance(recipe=recipe)})
        with pytest.raises(CheckpointError, match=text):
            Predicted(checkpoint.Checkpoint(stored.tensors, card))


def test_the_probe_takes_a_hypernetwork(start: Predicted) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(16, 1, 8, 8, generator=generator), torch.randint(10, (16,), generator=generator))
        for _ in range(3)
    ]
    network = small_network()
    before = values(network)
    report = metainit.probe(network, ["default", start], batches, nn.functional.cross_entropy, steps=(0, 2))
    assert {row.source for row in report.rows} == {"default", "ghn-test"}
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_the_probe_takes_a_network_that_was_run_before(start: Predicted) -> None:
    network = small_network()
    batches = [(torch.randn(16, 1, 8, 8), torch.randint(10, (16,))) for _ in range(3)]
    network(batches[0][0]).sum().backward()
    before = values(network)
    report = metainit.probe(network, [start], batches, nn.functional.cross_entropy, steps=(0, 1), seeds=1)
    assert report.kept == "ghn-test"
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert network[0].weight.grad is not None


def test_a_published_hypernetwork_is_a_start(tmp_path: Path) -> None:
    from hypernets.ghn.ghn3_checkpoint import to_checkpoint
    from hypernets.ghn.ghn3_config import Ghn3Config
    from hypernets.ghn.ghn3_network import Ghn3
    from hypernets.ghn.ghn3_prediction import predict_ghn3

    config = Ghn3Config(hidden=8, layers=1, heads=2, channels=8, kernel=11, classes=10)
    torch.manual_seed(0)
    ghn = Ghn3(config).eval()
    to_checkpoint(config, ghn.state_dict(), tmp_path / "p.safetensors", "published", "a file of ours")
    start = metainit.load(tmp_path / "p.safetensors")
    network = start.init_(small_network(), seed=1, example_inputs=INPUTS, exact=True)  # type: ignore[call-arg]
    tensors, skipped = predict_ghn3(ghn, small_network(), INPUTS, seed=1)
    own = dict(network.named_parameters())
    assert set(tensors) | set(skipped) == set(own)
    for name, value in tensors.items():
        torch.testing.assert_close(own[name].detach(), value)
    apart = start.init_(small_network(), seed=1, example_inputs=INPUTS)
    rows = dict(apart.named_parameters())["0.weight"].detach().flatten(1)
    assert (torch.cdist(rows, rows) + torch.eye(len(rows))).min() > 0


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    stored = checkpoint.load(saved(tmp_path))
    card = stored.card.model_copy(update={"method": Method(name="ghn9")})
    checkpoint.save(tmp_path / "other.safetensors", stored.tensors, card)
    with pytest.raises(CheckpointError, match=r"'ghn9'.*did you mean 'ghn'|'ghn9'.*choices"):
        metainit.load(tmp_path / "other.safetensors")
