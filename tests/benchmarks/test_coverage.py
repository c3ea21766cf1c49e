"""The coverage benchmark's small networks: every parameter is carried and predicted, or has a reason."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from benchmarks.coverage import counts, kinds, predict_for
from benchmarks.coverage_networks import NETWORKS
from hypernets.architecture.trace import trace

SMALL = [name for name in NETWORKS if name.split()[0] not in ("torchvision", "timm", "transformers")]


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_is_accounted_for(name: str) -> None:
    if name.startswith("torch_geometric"):
        pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    network, inputs = NETWORKS[name]()
    graph = trace(network, inputs)
    sizes = {n: p.numel() for n, p in network.named_parameters()}
    found = counts(graph, sizes)
    assert found["carried"] + sum(found["skipped"].values()) == len(sizes)
    assert found["skipped"] == ({"unreached": 2} if name == "branch on data" else {})
    assert kinds(graph) == Counter(found["operations"])
    assert kinds(graph)["other"] == 0


@pytest.mark.parametrize("name", SMALL)
def test_every_carried_parameter_gets_a_value(name: str) -> None:
    if name.startswith("torch_geometric"):
        pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    network, inputs = case = NETWORKS[name]()
    carried = len(trace(network, inputs).parameters)
    for found in predict_for(case).values():
        assert found["predicted"] == carried > 0 and not found["missing"]


def test_the_list_is_as_long_as_the_docs_say() -> None:
    assert len(NETWORKS) == 44
