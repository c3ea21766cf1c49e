"""What the same work costs on a GPU: adapting a segmenter, meta-gradients, many fits at once, a hypernetwork.

python -m benchmarks.gpu [--out FOLDER]

Every contender is run once to warm up, then timed with the device idle before and after; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.segmentation_cost import INNER, SIZE, STEPS, TASKS, tasks
from benchmarks.segmentation_starts import network_spec
from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.training import GhnTraining, TrainingConfig
from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Continuation, Spec
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.evidence.curves import weights_of
from metainit.initialization import init_
from metainit.meta.engine import Execution, meta_gradient
from metainit.meta.registry import RULES
from metainit.meta.state import MetaParameters, TaskLosses
from metainit.networks import build, fitted_spec, function_of

ROUNDS = 5
FITS = (1, 16, 64, 256)


def timed(work: Callable[[], object], device: torch.device, rounds: int = ROUNDS) -> float:
    """Return the median seconds of some rounds, after one to warm up."""
    found = []
    for turn in range(rounds + 1):
        _wait(device)
        begin = time.perf_counter()
        work()
        _wait(device)
        if turn:
            found.append(time.perf_counter() - begin)
    return statistics.median(found)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def segmentation(device: torch.device) -> dict[str, Any]:
    """Return seconds of adapting to five images, and tasks a second of first-order meta-gradients."""
    network = build(network_spec(), 0).to(device)
    weights = weights_of(network)
    found: dict[str, Any] = {}
    domain, one = tasks(1)
    losses = TaskLosses(domain, function_of(network), one.to(device, torch.float32), batched=False)
    routine = AdaptationRoutine(steps=5, step_size=SIZE, continuation=Continuation(step_size=1e-3))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = timed(lambda: list(trajectory(losses, weights, routine, {}, STEPS)), device)
    found["adapt_seconds"] = round(seconds, 4)
    if device.type == "cuda":
        found["adapt_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    kinds: tuple[Execution, ...] = ("loop", "vmap") if device.type == "cuda" else ("loop",)
    for count in (TASKS, 4 * TASKS):
        domain, batch = tasks(count)
        batch = batch.to(device, torch.float32)
        for kind in kinds:
            work = lambda b=batch, d=domain, k=kind: meta_gradient(  # noqa: E731
                RULES["fomaml"].orders[1], d, function_of(network), MetaParameters(weights, {}), b, INNER, k
            )
            found[f"meta_{kind}_{count}"] = round(count / timed(work, device, 3), 2)
    return found


def fits(device: torch.device) -> dict[str, float]:
    """Return fits a second of 64x64 images with a SIREN of width 128 and 20 steps, so many at once."""
    pixels = np.random.default_rng(0).random((320, 64, 64, 3))
    domain = ImageDomain.from_arrays(pixels, ImageConfig(height=64, width=64))
    spec = fitted_spec(Spec(name="siren", arguments={"width": 128, "depth": 4}), domain)
    network = init_(build(spec), "siren", seed=0).to(device)
    routine = AdaptationRoutine(optimizer="adam", steps=20, step_size=1e-3)
    found = {}
    for count in FITS if device.type == "cuda" else FITS[:2]:
        batch = domain.tasks(0, 0, count).to(device, torch.float32)
        losses = TaskLosses(domain, function_of(network), batch, batched=True)
        work = lambda ls=losses: list(trajectory(ls, weights_of(network), routine, {}, 20))  # noqa: E731
        found[str(count)] = round(count / timed(work, device, 3), 2)
    return found


class Noise:
    """Images that show nothing: the speed does not see it."""

    def batch(
        self, seed: int, index: int, count: int, split: str = "train"
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return images and classes."""
        generator = torch.Generator().manual_seed(index)
        return torch.randn(count, 1, 14, 14, generator=generator), torch.randint(
            10, (count,), generator=generator
        )


def hypernetwork(device: torch.device) -> dict[str, float]:
    """Return architectures times images a second of training steps, by precision."""
    found = {}
    for precision in ("float32", "bfloat16") if device.type == "cuda" else ("float32",):
        config = TrainingConfig.model_validate({"precision": precision, "pool": 24, "steps": 1000})
        learner = GhnTraining(config, Ghn(GhnConfig()).to(device), SpaceConfig(), Noise())
        for index in range(config.pool):
            learner.member(index)
        seconds = timed(lambda t=learner: t.apply(t.gradient()), device, 9)  # type: ignore[misc]
        found[precision] = round(config.meta_batch * config.images / seconds, 1)
    return found


PARTS = {"segmentation": segmentation, "fits": fits, "hypernetwork": hypernetwork}


def main() -> None:
    """Measure all parts on the CPU and, where there is one, on the GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    given = parser.parse_args()
    devices = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
    values: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if len(devices) == 2:
        values["device"] = torch.cuda.get_device_name()
    for name, part in PARTS.items():
        for device in devices:
            values[f"{name}/{device.type}"] = part(device)
            print(name, device.type, values[f"{name}/{device.type}"], flush=True)
            (given.out / "gpu.json").write_text(json.dumps(values, indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
