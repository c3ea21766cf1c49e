"""Predict a network's weights with a GHN-3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hypernets.architecture.graph import SkipReason
from hypernets.ghn.ghn3_graph import Ghn3Graph, graph_of
from hypernets.ghn.ghn3_network import Ghn3
from hypernets.ghn.ghn3_walk import Inputs


def predict_ghn3(
    ghn: Ghn3,
    network: nn.Module,
    example_inputs: Inputs,
    *,
    graph: Ghn3Graph | None = None,
    seed: int = 0,
) -> tuple[dict[str, Tensor], dict[str, SkipReason]]:
    """Predict a network's parameters; the network is not changed, and can be on the meta device.

    Every name of `named_parameters()` is in exactly one of the two results.

    Args:
        ghn: the hypernetwork.
        network: what to predict for.
        example_inputs: what its `forward` takes; only shapes matter, unless it reads values.
        graph: `graph_of` the network, where it is at hand.
        seed: for rows that the hypernetwork has no word for (a class token's position).

    Returns:
        The tensors, and why each other parameter is left out.

    Raises:
        MismatchError: the network has no graph, or the graph is another network's.
        DivergenceError: the hypernetwork gives numbers that are not finite.

    Example:
        >>> from hypernets.ghn.ghn3_config import Ghn3Config
        >>> ghn = Ghn3(Ghn3Config(hidden=8, layers=1, heads=2, channels=8, kernel=11, classes=10))
        >>> network = nn.Sequential(nn.Linear(4, 30), nn.ReLU(), nn.Linear(30, 3))
        >>> tensors, skipped = predict_ghn3(ghn, network, torch.zeros(2, 4))
        >>> tensors['0.weight'].shape, skipped
        (torch.Size([30, 4]), {})
    """
    graph = _graph(ghn, network, example_inputs, graph)
    like = ghn.embed.weight
    tensors = {t.name: torch.empty(t.shape, dtype=like.dtype, device=like.device) for t in graph.targets}
    ghn.write_(graph, tensors, torch.Generator().manual_seed(seed))
    return tensors, dict(graph.skipped)


def init_ghn3_(
    ghn: Ghn3,
    network: nn.Module,
    example_inputs: Inputs,
    *,
    graph: Ghn3Graph | None = None,
    seed: int = 0,
) -> dict[str, SkipReason]:
    """Write predicted weights into a network, in its own type and device; return what was left as it was.

    Nothing of the network's size is allocated beside it. Arguments and errors as for `predict_ghn3`; where
    one is raised the network keeps the weights it had.
    """
    graph = _graph(ghn, network, example_inputs, graph)
    parameters = dict(network.named_parameters())
    tensors = {target.name: parameters[target.name].detach() for target in graph.targets}
    ghn.write_(graph, tensors, torch.Generator().manual_seed(seed))
    return dict(graph.skipped)


def _graph(ghn: Ghn3, network: nn.Module, example_inputs: Inputs, graph: Ghn3Graph | None) -> Ghn3Graph:
    if graph is None:
        return graph_of(network, example_inputs, ghn.config.virtual_edges)
    graph.require_of(network)
    return graph
