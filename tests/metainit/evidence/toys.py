"""Small domains and starts whose answers are known."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, Method, Spec
from metainit.domains.base import Predict, Split, TaskBatch, Tensors
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.meta.engine import meta_gradient
from metainit.meta.outer import AlgorithmConfig, OuterConfig, OuterLoop, initial_meta_parameters, routine_of
from metainit.meta.registry import rule_for
from metainit.networks import build, function_of

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
NETWORK = Spec(
    name="siren",
    arguments={"width": 24, "depth": 3, "out_features": 1, "omega": 10, "omega_first": 10},
)
SIDE = 8
BLOB_DOMAIN = Spec(
    name="image",
    arguments={
        "height": SIDE,
        "width": SIDE,
        "channels": 1,
        "fit": "resize",
        "flip": False,
        "validation_share": 0.2,
        "test_share": 0.2,
    },
)


class Level(nn.Module):
    """A network that is one number, whatever it is asked."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([level], dtype=torch.float64))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.level)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.level.expand(len(inputs), 1)


class Bowls:
    r"""Task t: lower :math:`\frac12 h_t (w - c_t)^2`.

    One gradient step of size 1/h ends at c exactly; an Adam step of size |c| does from w = 0.
    """

    metric = "psnr"
    controls = ("default", "siren")
    network_arguments: Mapping[str, int] = MappingProxyType({"in_features": 1, "out_features": 1})

    def __init__(self, curvatures: Sequence[float], centres: Sequence[float]) -> None:
        self.curvatures = torch.tensor(curvatures, dtype=torch.float64)
        self.centres = torch.tensor(centres, dtype=torch.float64)

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        part = slice(index * count, (index + 1) * count)
        observed = {"h": self.curvatures[part], "c": self.centres[part]}
        ids = tuple(f"bowl-{i}" for i in range(len(self.centres))[part])
        return TaskBatch(observed, observed, {"coordinates": torch.zeros(1, 1, dtype=torch.float64)}, ids)

    def size(self, split: Split) -> int | None:
        return len(self.centres)

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        away = predict(shared["coordinates"]).squeeze() - support["c"]
        return 0.5 * support["h"] * away.square()

    query_loss = support_loss

    def example_inputs(self) -> Tensor:
        return torch.zeros(1, 1, dtype=torch.float64)

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        return predict(shared["coordinates"])[None]

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        return rendered

    def target(self, query: Tensors) -> Tensor:
        return query["c"].reshape(1, 1, 1)

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        squared = float((rendered - self.target(query)).square())
        return {"psnr": -10 * math.log10(squared + 1e-10), "ssim": 1 / (1 + squared)}

    def fingerprint(self) -> str:
        return "bowls"


def blobs(count: int, seed: int = 0, side: int = SIDE) -> Array:
    """Grey images of one soft blob each: of different places and sizes on the same slope."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(-1, 1, side)
    x, y = np.meshgrid(grid, grid)
    images = []
    for _ in range(count):
        a, b = rng.uniform(-0.4, 0.4, 2)
        radius = rng.uniform(0.3, 0.5)
        images.append(0.2 + 0.1 * x + 0.5 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / radius))
    return np.stack(images).astype(np.float32)


def blob_domain(count: int = 30) -> ImageDomain:
    """The blobs as a domain: 18 to train on, 6 for validation and 6 for test, of 30."""
    return ImageDomain.from_arrays(blobs(count), ImageConfig.model_validate(BLOB_DOMAIN.arguments))


def blob_prior(folder: Path, name: str = "blobs", seed: int = 0, steps: int = 80) -> Path:
    """Learn a prior for the blobs (Meta-SGD, 2 inner steps) and write its checkpoint."""
    domain = blob_domain()
    config = AlgorithmConfig(
        rule="meta_sgd", order=2, inner_steps=2, inner_step_size=0.02, step_sizes="parameter"
    )
    network = build(NETWORK, seed)
    loop = OuterLoop(
        initial_meta_parameters(network, config),
        OuterConfig(steps=steps, meta_batch=3, step_size=3e-3, warm_up=0),
        config,
    )
    for step in range(steps):
        batch = domain.tasks(seed, step, 3)
        loop.apply(
            meta_gradient(
                rule_for(config),
                domain,
                function_of(network),
                loop.meta,
                batch,
                config.inner(network),
                "loop",
            )
        )
    meta = loop.result()
    sizes = {f"{checkpoint.STEP_SIZE_PREFIX}{k}": v for k, v in meta.step_sizes.items()}
    path = folder / f"{name}-{seed}.safetensors"
    return write_prior(
        path, {**meta.weights, **sizes}, routine_of(meta, config, config.inner(network)), domain=BLOB_DOMAIN
    )


def write_prior(
    path: Path,
    tensors: Mapping[str, Tensor],
    routine: AdaptationRoutine | None,
    network: Spec | None = NETWORK,
    kind: str = "prior",
    domain: Spec | None = None,
) -> Path:
    """Write a checkpoint with a card."""
    method = Method(name="meta_sgd")
    card = Card(kind=kind, name=path.stem, method=method, network=network, domain=domain, routine=routine)
    checkpoint.save(path, tensors, card)
    return path
