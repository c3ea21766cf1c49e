"""The published GHN-3 (SamsungSAILMontreal/ghn3 on facebookresearch/ppuda), run as it is.

METAINIT_GHN3 names a folder with checkouts of both, `ghn3` and `ppuda`, and with `site`: what they import and
this project does not (pip install --target site --no-deps einops h5py joblib huggingface_hub transformers,
and what these ask for).
"""

from __future__ import annotations

import copy
import functools
import os
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hypernets.ghn.ghn3_config import Ghn3Config

_kept: list[Any] = []
PENALTY, CLIP = 3e-5, 5.0
LEARNING_RATE, WEIGHT_DECAY = 4e-4, 1e-2


def folder() -> Path:
    """Return the folder that METAINIT_GHN3 names."""
    named = os.environ.get("METAINIT_GHN3", "")
    if not (Path(named) / "ghn3" / "ghn3").is_dir() or not (Path(named) / "ppuda" / "ppuda").is_dir():
        raise SystemExit("set METAINIT_GHN3 to a folder with checkouts of ghn3 and ppuda")
    return Path(named)


def torchvision_models() -> Any:
    """Return torchvision.models; operators that its binaries lack here are declared, for none is called."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    import torchvision.models

    return torchvision.models


@functools.cache
def import_reference() -> Any:
    """Return the package ghn3."""
    root = folder()
    torchvision_models()
    sys.path[:0] = [str(root / "ghn3"), str(root / "ppuda")]
    sys.path.append(str(root / "site"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _quiet():
            import ghn3
    warnings.filterwarnings("ignore", message=".*amp.autocast.*")
    return ghn3


@contextmanager
def _quiet() -> Any:
    with open(os.devnull, "w") as sink:
        kept, sys.stdout = sys.stdout, sink
        try:
            yield
        finally:
            sys.stdout = kept


def build(config: Ghn3Config, weights: Mapping[str, Tensor]) -> Any:
    """Return the published network with given weights, under the published names."""
    shape = (config.channels, config.channels, config.kernel, config.kernel)
    made = import_reference().GHN3(
        max_shape=shape,
        num_classes=config.classes,
        hid=config.hidden,
        heads=config.heads,
        layers=config.layers,
        weight_norm=config.weight_norm,
        ve=config.virtual_edges,
        layernorm=config.final_norm,
        pretrained=True,
    )
    made.load_state_dict(dict(weights))
    made.fix_embed_layers()
    return made.eval()


def graph_of(network: nn.Module) -> Any:
    """Return the published graph."""
    return import_reference().Graph(network, verbose=False)


def predict_(ghn: Any, network: nn.Module, graph: Any) -> None:
    """Write the published prediction into a network."""
    with torch.no_grad(), _quiet():
        ghn(network, graph, bn_track_running_stats=True)


def reference_training_step(
    networks: Sequence[nn.Module],
    images: Tensor,
    labels: Tensor,
    config: Ghn3Config,
    weights: Mapping[str, Tensor],
    steps: int = 10,
) -> dict[str, Any]:
    """Time training steps of the published GHN-3 on one meta-batch of networks.

    A step is that of its trainer: predict for all networks, the mean of their cross-entropies on the batch
    plus the penalty of predicted weights, clip, AdamW. What its loader does in other processes (making
    networks and graphs) is outside the timing. The median step counts, after one that warms up.

    Returns:
        `rate` in architectures x images a second, `seconds` of a step, and the `losses`.
    """
    package = import_reference()
    ghn = build(config, weights).train()
    optimizer = torch.optim.AdamW(ghn.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    graphs = []
    for network in networks:
        traced = copy.deepcopy(network)
        traced.expected_input_sz = tuple(images.shape[1:])
        graphs.append(package.Graph(traced, verbose=False))
    took, losses = [], []
    for _ in range(steps + 1):
        fresh = [copy.deepcopy(network).train() for network in networks]
        begun = time.perf_counter()
        optimizer.zero_grad()
        batch = package.GraphBatch(graphs, dense=True).to_device(torch.device("cpu"))
        with _quiet():
            filled = ghn(fresh, batch, bn_track_running_stats=True, keep_grads=True, reduce_graph=True)
        penalty = sum(torch.norm(p) for network in filled for p in network.parameters())
        loss = sum(functional.cross_entropy(network(images), labels) for network in filled)
        loss = (loss + PENALTY * penalty) / len(filled)
        loss.backward()
        nn.utils.clip_grad_norm_(ghn.parameters(), CLIP)
        optimizer.step()
        took.append(time.perf_counter() - begun)
        losses.append(float(loss.detach()))
    seconds = statistics.median(took[1:])
    return {"rate": len(networks) * len(images) / seconds, "seconds": seconds, "losses": losses}
