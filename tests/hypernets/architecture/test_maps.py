from __future__ import annotations

import pytest
import torch
from torch import nn

from hypernets.architecture.trace import Tracer, trace


@pytest.mark.parametrize("tracer", ["recorded", "exported"])
def test_a_linear_layer_over_a_flattened_map_knows_its_sides(tracer: Tracer) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Dropout(0.1), nn.Linear(4 * 6 * 5, 7), nn.ReLU(), nn.Linear(7, 3)
    )
    graph = trace(network, torch.zeros(2, 1, 8, 7), tracer=tracer)
    sides = {p.name: p.spatial for p in graph.parameters if p.name.endswith("weight")}
    assert sides == {"0.weight": (1, 1), "3.weight": (6, 5), "5.weight": (1, 1)}
    assert next(p for p in graph.parameters if p.name == "3.weight").matrix == (7, 4, 6, 5)


def test_an_image_that_goes_into_a_linear_layer_is_a_map() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    assert trace(network, torch.zeros(2, 3, 4, 4)).parameters[0].matrix == (5, 3, 4, 4)


def test_a_view_that_mixes_the_batch_is_no_map() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.layer(images.reshape(-1, 16))
            return outputs

    assert trace(Tokens(), torch.zeros(2, 3, 4, 4)).parameters[0].spatial == (1, 1)
