"""A prior for faces: how far two steps get, and when an ordinary start draws level.

METAINIT_DATA=... python -m benchmarks.faces train --seed 0     (then 1 and 2)
METAINIT_DATA=... python -m benchmarks.faces measure | deep | native | table
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cells import Cells, cpu_seconds, data_set, machine
from benchmarks.training import Plan, train
from metainit import load
from metainit.card import AdaptationRoutine, Continuation, Spec
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.evidence.controls.base import Setting
from metainit.evidence.controls.registry import ANALYTIC, make_controls
from metainit.evidence.curves import GRID_RATIO, Bench, Start, best_routines, tuned_curve, weights_of
from metainit.evidence.measuring import held_out
from metainit.evidence.statistics import bootstrap, paired_bootstrap
from metainit.initialization import Prior
from metainit.initializers import Context, pretrain_shared_encoder
from metainit.initializers.shared_encoder import snp
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks import build

NETWORK = Spec(name="siren", arguments={"width": 128, "depth": 5, "out_features": 3})
PLAN = Plan(
    name="faces",
    network=NETWORK,
    algorithm=AlgorithmConfig(
        rule="meta_sgd",
        order=2,
        inner_steps=2,
        inner_step_size=0.02,
        step_sizes="parameter",
        execution="loop",
    ),
    outer=OuterConfig(steps=4000, meta_batch=2, step_size=4e-4, step_size_rate=0.06, averaging=0.99),
)
SOME, SOME_STEPS = 1024, 3400
"""Pixels of each image in the first outer steps, and how many those are; the others use all pixels."""
SEEDS = (0, 1, 2)
FEW = (0, 1, 2)
NATIVE_CONTROLS = ("siren_scaled", "mean_signal")
"""The best ordinary start and the best control of all at 64x64."""
MANY = (5, 10, 25, 50)
DEEP = (0, 1, 2, 5, 10, 25, 50, 100, 200, 500, 1000, 2000)
DEEP_TASKS = 3
DEEP_RATES = (1e-4 * GRID_RATIO, 1e-3, 1e-3 * GRID_RATIO)
MAX_RATES = 6
ENCODER_STEPS = 2000
"""Of the STRAINER-like start: about as much CPU time as the prior's training."""


def domain(side: int = 64, points: int | None = None) -> ImageDomain:
    """Return the faces at a size; validation is carved out of split 0, split 1 is reported."""
    return ImageDomain(
        ImageConfig(
            npz=data_set("caltech_faces"),
            split_array="split",
            fit="resize",
            height=side,
            width=side,
            points=points,
        )
    )


def trained(seed: int) -> tuple[Path, dict[str, Any]]:
    """Return the prior of one seed: on some pixels first, which are cheaper, then on all."""
    some, all_pixels = domain(points=SOME), domain()
    return train(PLAN, lambda step: some if step < SOME_STEPS else all_pixels, seed)


def prior_start(seed: int, network: nn.Module) -> Start:
    """Return the trained prior of one seed."""
    start = load(trained(seed)[0])
    assert isinstance(start, Prior)
    filled = start.init_(copy.deepcopy(network))
    return Start("prior", weights_of(filled), start.card.routine, start.checkpoint.step_sizes)


@cache
def controls(seed: int) -> list[Start]:
    """Return every control of one seed."""
    network = build(NETWORK)
    return make_controls(Setting(network, domain(), prior_start(seed, network), seed))


def measure(cells: Cells) -> None:
    """Measure the prior and every control after few steps, then the best control after many."""
    network, faces = build(NETWORK), domain()
    test, tuning = held_out(faces, "test", 64), held_out(faces, "validation", 6)
    bench = Bench(network, faces)
    for seed in SEEDS:
        cells.cell(
            f"prior/{seed}",
            lambda s=seed: _values(bench, prior_start(s, network), tuning, test, (0, 1, 2, 5, 10)),
        )
    for seed in SEEDS:
        for start in controls(seed):
            cells.cell(f"few/{start.name}/{seed}", lambda s=start: _values(bench, s, tuning, test, FEW))
    # Every control is judged after 25 steps on the tuning tasks; the best ordinary start is followed on the
    # test tasks, and the best control of all with its first seed.
    scores = {}
    for start in controls(0):
        scores[start.name] = cells.cell(
            f"validation/{start.name}", lambda s=start: _validation(bench, s, tuning)
        )["psnr"]
    ordinary = max((k for k in scores if k in ANALYTIC), key=lambda k: scores[k])
    best = max(scores, key=lambda k: scores[k])
    for name, seed in dict.fromkeys([*((ordinary, seed) for seed in SEEDS), (best, 0)]):
        start = next(s for s in controls(seed) if s.name == name)
        cells.cell(f"many/{name}/{seed}", lambda s=start: _values(bench, s, tuning, test, MANY))


def deep(cells: Cells) -> None:
    """Follow prior, best ordinary start, Snp and STRAINER-like start to 2,000 steps."""
    network, faces = build(NETWORK), domain()
    test, tuning = held_out(faces, "test", DEEP_TASKS), held_out(faces, "validation", 1)
    bench = Bench(network, faces)
    for start in _deep_starts(network, faces):
        cells.cell(f"deep/{start.name}", lambda s=start: _deep(bench, s, tuning, test))


def _deep(bench: Bench, start: Start, tuning: Any, test: Any) -> dict[str, Any]:
    """Adam with the rate that is best on validation for each number of steps; a prior takes its own first."""

    def routine(rate: float) -> AdaptationRoutine:
        if start.routine is None:
            return AdaptationRoutine(optimizer="adam", steps=DEEP[-1], step_size=rate)
        return start.routine.model_copy(update={"continuation": Continuation(step_size=rate)})

    scores: dict[float, np.ndarray] = {}
    wanted = set(DEEP_RATES)
    while wanted:
        for rate in sorted(wanted):
            scores[rate] = bench.curve(start, routine(rate), tuning, DEEP)["psnr"].mean(0)
        best = [max(scores, key=lambda k: scores[k][i]) for i in range(len(DEEP))]
        # Of the early steps only the learned ones matter, whatever the rate of those that follow.
        own = start.routine.steps if start.routine else 0
        edges = {b for b, step in zip(best, DEEP, strict=True) if step > own}
        wanted = {
            rate
            for edge, rate in (
                (min(scores), min(scores) / GRID_RATIO),
                (max(scores), max(scores) * GRID_RATIO),
            )
            if edge in edges and len(scores) < MAX_RATES
        }
    columns: dict[int, np.ndarray] = {}
    for rate in set(best):
        steps = [s for s, b in zip(DEEP, best, strict=True) if b == rate]
        values = bench.curve(start, routine(rate), test, steps)["psnr"]
        columns |= {step: values[:, i] for i, step in enumerate(steps)}
    return {
        "rates": best,
        "steps": list(DEEP),
        "psnr": np.round(np.stack([columns[s] for s in DEEP], axis=1), 3).tolist(),
    }


def _deep_starts(network: nn.Module, faces: ImageDomain) -> list[Start]:
    coordinates = faces.tasks(0, 0, 1, "validation").shared["query_coordinates"]
    signals = faces.tasks(0, 0, 10, "train").support["values"]
    found = [prior_start(0, network)]
    found += make_controls(Setting(network, faces), ["siren_scaled"])
    for name in ("snp", "strainer"):
        filled = copy.deepcopy(network)
        generator = torch.Generator().manual_seed(0)
        if name == "snp":
            snp(filled, Context(generator))
        else:
            pretrain_shared_encoder(filled, coordinates, signals, generator, ENCODER_STEPS)
        found.append(Start(name, weights_of(filled)))
    return found


def native(cells: Cells) -> None:
    """The same prior on the faces' own 96x96 pixels: coordinates generalise over sizes."""
    network, faces = build(NETWORK), domain(96)
    test, tuning = held_out(faces, "test", 64), held_out(faces, "validation", 3)
    bench = Bench(network, faces)
    for seed in SEEDS:
        cells.cell(
            f"native/prior/{seed}", lambda s=seed: _values(bench, prior_start(s, network), tuning, test, FEW)
        )
        for start in make_controls(Setting(network, faces, seed=seed), NATIVE_CONTROLS if seed == 0 else ()):
            cells.cell(f"native/{start.name}/{seed}", lambda s=start: _values(bench, s, tuning, test, FEW))


def _values(bench: Bench, start: Start, tuning: Any, test: Any, steps: Sequence[int]) -> dict[str, Any]:
    begin = cpu_seconds()
    values, routines = tuned_curve(bench, start, tuning, test, steps)
    return {
        "steps": list(steps),
        "psnr": np.round(values["psnr"], 3).tolist(),
        "ssim": np.round(values["ssim"].mean(0), 4).tolist(),
        "routines": {str(k): [r.optimizer, r.step_size] for k, r in routines.items()},
        "cpu_seconds": round(cpu_seconds() - begin, 1),
    }


def _validation(bench: Bench, start: Start, tuning: Any) -> dict[str, Any]:
    routine = best_routines(bench, [start], tuning, [25])[25]
    values = bench.curve(start, routine, tuning, [25])["psnr"]
    return {"psnr": float(values.mean()), "routine": [routine.optimizer, routine.step_size]}


def table(cells: Cells) -> None:
    """Print the tables for RESULTS.md."""
    v = cells.values
    prior = np.array([v[f"prior/{s}"]["psnr"] for s in SEEDS])
    print("| start | " + " | ".join(f"{s} steps" for s in (0, 1, 2, 5, 10)) + " |\n|---|---|---|---|---|---|")
    print("| **prior** | " + " | ".join(_cell(prior[:, :, i]) for i in range(5)) + " |")
    names = sorted({k.split("/")[1] for k in v if k.startswith("few/")})
    rows = {n: np.array([v[f"few/{n}/{s}"]["psnr"] for s in SEEDS]) for n in names}
    for name in sorted(names, key=lambda n: -rows[n][:, :, 2].mean()):
        print(f"| {name} | " + " | ".join(_cell(rows[name][:, :, i]) for i in range(3)) + " | | |")
    best = max(names, key=lambda n: rows[n][:, :, 2].mean())
    gain = paired_bootstrap(prior[:, :, 2], rows[best][:, :, 2])
    print(f"\nafter 2 steps against {best}: {gain.mean:+.2f} dB [{gain.low:+.2f}, {gain.high:+.2f}]")
    for key in sorted({k.split("/")[1] for k in v if k.startswith("many/")}):
        many = _measured(v, f"many/{key}")
        shown = ", ".join(f"{s} steps {_cell(many[:, :, i])}" for i, s in enumerate(MANY))
        print(f"{key} ({len(many)} seeds): {shown}")
    for name in ("prior", *NATIVE_CONTROLS):
        side = _measured(v, f"native/{name}")
        if len(side):
            print(f"native 96x96 {name} ({len(side)} seeds):", [_cell(side[:, :, i]) for i in range(3)])
    print("| start | " + " | ".join(map(str, DEEP)) + " |")
    for key in [k for k in v if k.startswith("deep/")]:
        means = np.mean(v[key]["psnr"], 0)
        print(f"| {key.removeprefix('deep/')} | " + " | ".join(f"{m:.1f}" for m in means) + " |")
    print({k: v[k] for k in v if k.startswith("train/")})


def _measured(values: Mapping[str, Any], prefix: str) -> np.ndarray:
    """Return the values of the seeds that were measured, ``(seeds, tasks, steps)``."""
    return np.array([values[f"{prefix}/{s}"]["psnr"] for s in SEEDS if f"{prefix}/{s}" in values])


def _cell(values: np.ndarray) -> str:
    interval = bootstrap(values)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("train", "measure", "deep", "native", "table"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells("faces")
    if arguments.part == "train":
        cells.cell(
            f"train/{arguments.seed}",
            lambda: {**trained(arguments.seed)[1], **machine()},
        )
    else:
        {"measure": measure, "deep": deep, "native": native, "table": table}[arguments.part](cells)


if __name__ == "__main__":
    main()
