"""Which graph a card is about."""

from __future__ import annotations

import pytest
import torch

from hypernets.architecture.trace import trace
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.predicted import predicted_checkpoint
from metainit.card import Card, Method, Provenance, Spec
from metainit.networks import build
from serving.catalog import Missing
from serving.graphs import drawing_of

NETWORKS = [
    Spec(name="siren", arguments={"in_features": 2, "out_features": 1, "width": 8, "depth": 3}),
    Spec(name="fourier_mlp", arguments={"width": 8, "frequencies": 4}),
    Spec(name="unet", arguments={"in_channels": 1, "width": 2, "depth": 2}),
    Spec(name="classifier", arguments={"in_channels": 1, "size": 28, "width": 2}),
]


@pytest.mark.parametrize("spec", NETWORKS, ids=lambda spec: spec.name)
def test_the_networks_of_cards_are_traced(spec: Spec) -> None:
    drawing = drawing_of(Card(kind="prior", name="a", method=Method(name="maml"), network=spec))
    assert drawing.of == "network"
    assert drawing.elements == sum(p.numel() for p in build(spec).parameters())


def test_predicted_weights_show_the_graph_they_were_predicted_for() -> None:
    graph = trace(
        torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)), torch.zeros(4, 2)
    )
    source = Card(kind="ghn", name="digits", method=Method(name="ghn"))
    _, card = predicted_checkpoint(Ghn(GhnConfig(width=16, heads=2, block=4)), source, graph)
    drawing = drawing_of(card)
    assert drawing.of == "predicted"
    assert [node.sort for node in drawing.nodes][1:4] == [
        "linear, recurrent",
        "activation",
        "linear, recurrent",
    ]


def test_a_hypernetwork_shows_an_architecture_that_it_was_tested_on() -> None:
    space = {"channels": 1, "size": 8, "classes": 10, "max_parameters": 10_000, "max_macs": 300_000}
    card = Card(
        kind="ghn", name="a", method=Method(name="ghn"), provenance=Provenance(recipe={"space": space})
    )
    drawing = drawing_of(card)
    assert drawing.of == "example" and 0 < drawing.elements <= 10_000


@pytest.mark.parametrize("network", [None, Spec(name="unheard_of")])
def test_a_card_without_a_graph_says_so(network: Spec | None) -> None:
    with pytest.raises(Missing, match="'a'"):
        drawing_of(Card(kind="weights", name="a", method=Method(name="fit"), network=network))
