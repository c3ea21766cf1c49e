"""The same answers on a GPU as on a CPU; in double precision, so that kernels' rounding is no excuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import skimage.io
import torch

import metainit
from metainit.card import AdaptationRoutine, Spec
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.fitting import fit_all
from metainit.meta.engine import meta_gradient
from metainit.meta.registry import RULES
from metainit.meta.state import InnerSteps, MetaParameters, TaskLosses
from metainit.networks import build, function_of
from tests.metainit.meta.problems import (
    SineDomain,
    algorithm,
    differences,
    gradient_of,
    small_siren,
    start_of,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")


@pytest.mark.parametrize("row", ["reptile", "fomaml", "maml", "meta_sgd-2-tensor"])
@pytest.mark.parametrize("execution", ["auto", "loop", "vmap"])
def test_meta_gradients_are_those_of_the_cpu(row: str, execution: str) -> None:
    config, domain = algorithm(row), SineDomain()
    found = {}
    for device in (torch.device("cpu"), CUDA):
        network = small_siren().to(device)
        batch = domain.tasks(0, 0, 4).to(device, torch.float64)
        meta = start_of(network, config)
        found[device] = gradient_of(config, domain, network, meta, batch, execution)  # type: ignore[arg-type]
    gradient = found[CUDA]
    assert all(v.is_cuda for v in gradient.weights.values())
    for part in (gradient.weights, gradient.step_sizes):
        for name in part:
            part[name] = part[name].cpu()
    worst = differences(gradient._replace(loss=gradient.loss.cpu()), found[torch.device("cpu")])
    assert max(worst.values()) < 1e-9


def test_a_segmenter_adapts_as_on_the_cpu() -> None:
    domain = SegmentationDomain(
        SegmentationConfig(source="synthesised", height=32, width=32, shots=3, queries=2)
    )
    spec = Spec(name="unet", arguments={"in_channels": 3, "classes": 2, "width": 4, "depth": 3})
    found = {}
    for device in (torch.device("cpu"), CUDA):
        network = build(spec, seed=0).to(device, torch.float64)
        batch = domain.tasks(0, 0, 2).to(device, torch.float64)
        weights = {k: v.detach() for k, v in network.named_parameters()}
        gradient = meta_gradient(
            RULES["fomaml"].orders[1],
            domain,
            function_of(network),
            MetaParameters(weights, {}),
            batch,
            InnerSteps(3, 0.05),
        )
        losses = TaskLosses(domain, function_of(network), batch[:1], batched=False)
        found[device.type] = (
            {k: v.cpu() for k, v in gradient.weights.items()},
            float(losses.support(weights)),
        )
    assert found["cpu"][1] == pytest.approx(found["cuda"][1], rel=1e-10)
    for name, value in found["cpu"][0].items():
        torch.testing.assert_close(found["cuda"][0][name], value, rtol=1e-6, atol=1e-9)


def test_a_drawn_start_is_the_same_on_every_device() -> None:
    spec = Spec(name="siren", arguments={"width": 16, "depth": 3})
    for source in ("siren", "kaiming", "orthogonal"):
        here, there = build(spec), build(spec).to(CUDA)
        metainit.init_(here, source, seed=3)
        metainit.init_(there, source, seed=3)
        for a, b in zip(here.parameters(), there.parameters(), strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=0, atol=0)


def test_files_are_fitted_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(5):
        skimage.io.imsave(folder / f"{i}.png", rng.integers(0, 255, (12, 12), dtype=np.uint8))
    routine = AdaptationRoutine(optimizer="adam", steps=30, step_size=1e-2)
    spec = Spec(name="siren", arguments={"in_features": 2, "out_features": 1, "width": 32, "depth": 3})
    reports = {
        device: fit_all(
            folder,
            metainit.load("siren"),
            tmp_path / device,
            routine=routine,
            network=spec,
            device=device,
            domain="image",
        )
        for device in ("cpu", "cuda")
    }
    for name, here in reports["cpu"]["fitted"].items():
        assert reports["cuda"]["fitted"][name]["psnr"] == pytest.approx(here["psnr"], abs=0.5)
