"""Priors for CT from very few views: against tuned ordinary starts with twice as many, and the mean image.

METAINIT_DATA=... python -m benchmarks.ct train --set phantoms --seed 0     (or --set chest)
METAINIT_DATA=... python -m benchmarks.ct measure --set phantoms | table --set phantoms
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.cells import Cells, cpu_seconds, data_set, machine
from benchmarks.training import Plan, train
from metainit import load
from metainit.card import AdaptationRoutine, Spec
from metainit.domains.ct import CTConfig, CTDomain
from metainit.evidence.controls import analytic_starts
from metainit.evidence.curves import ADAM_GRID, GRID_RATIO, Bench, Start, weights_of
from metainit.evidence.measuring import held_out
from metainit.evidence.metrics import psnr
from metainit.evidence.statistics import bootstrap, paired_bootstrap
from metainit.initialization import Prior
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks import build

NETWORK = Spec(name="siren", arguments={"width": 64, "depth": 5, "out_features": 1, "omega_first": 15.0})
SMALL, SIDE = 32, 64
SMALL_STEPS = {"phantoms": 2000, "chest": 800}
LARGE_STEPS = {"phantoms": 160, "chest": 80}
SEEDS = (0, 1, 2)
VIEWS = (1, 2, 4, 8)
ORDINARY_VIEWS = (2, 4, 8, 16)
ORDINARY_STEPS = (5, 10, 20, 50, 100, 200)
PRIOR_STEPS = (0, 1, 2, 3, 4, 5, 6, 8)
SCALES = (0.3, 1.0)
"""Factors on the prior's learned step sizes, chosen on validation like the ordinary starts' step sizes."""
ORDINARY = ("siren", "siren_scaled", "default", "lsuv")
CHEST = {
    "array": "hu128",
    "split_array": "split",
    "group_array": "patient",
    "window": (-1000, 400),
}


def plan(name: str) -> Plan:
    """Return what is trained for a data set."""
    return Plan(
        name=f"ct-{name}",
        network=NETWORK,
        algorithm=AlgorithmConfig(
            rule="meta_sgd", order=2, inner_steps=4, inner_step_size=0.1, execution="loop"
        ),
        outer=OuterConfig(
            steps=SMALL_STEPS[name] + LARGE_STEPS[name], meta_batch=4, step_size=5e-4, averaging=0.99
        ),
    )


@cache
def domain(name: str, side: int, views: int = 4) -> CTDomain:
    """Return phantoms or chest slices at a size, with a number of views in validation and test."""
    extra = {"data": str(data_set("ct_chest")), **CHEST} if name == "chest" else {}
    return CTDomain(CTConfig(size=side, views=views, train_views=(1, 2, 4), **extra))


def trained(name: str, seed: int) -> tuple[Any, dict[str, Any]]:
    """Return the prior of one seed: small slices first, which are cheaper, then the full size."""
    return train(plan(name), lambda step: domain(name, SMALL if step < SMALL_STEPS[name] else SIDE), seed)


def prior_start(name: str, seed: int, network: nn.Module) -> Start:
    """Return the trained prior of one seed."""
    start = load(trained(name, seed)[0])
    assert isinstance(start, Prior)
    filled = start.init_(copy.deepcopy(network))
    return Start("prior", weights_of(filled), start.card.routine, start.checkpoint.step_sizes)


def scaled(start: Start, factor: float) -> Start:
    """Return the start with all its learned step sizes times a factor."""
    sizes = {k: factor * v for k, v in start.step_sizes.items()}
    return Start(start.name, start.weights, start.routine, sizes)


def measure(cells: Cells, name: str) -> None:
    """Measure everything for one data set, cell by cell."""
    network = build(NETWORK)
    for views in (*VIEWS, 16):
        cells.cell(f"{name}/mean/{views}", lambda v=views: _mean_image(name, v))
    for seed in SEEDS:
        for views in VIEWS:
            cells.cell(f"{name}/prior/{views}/{seed}", lambda v=views, s=seed: _prior(name, v, s, network))
    for views in ORDINARY_VIEWS:
        chosen = cells.cell(f"{name}/tuned/{views}", lambda v=views: _tune(name, v, network))
        for seed in SEEDS:
            cells.cell(
                f"{name}/ordinary/{views}/{seed}",
                lambda v=views, s=seed, c=chosen: _ordinary(name, v, s, network, c),
            )


def _mean_image(name: str, views: int) -> list[float]:
    ct = domain(name, SIDE, views)
    mean = ct.mean_signal()
    return [round(psnr(mean, image), 3) for image in held_out(ct, "test", 64).query["image"]]


def _prior(name: str, views: int, seed: int, network: nn.Module) -> dict[str, Any]:
    """Number of steps and factor on the step sizes are chosen on validation, for each number of views."""
    ct = domain(name, SIDE, views)
    tuning, test = held_out(ct, "validation", 16), held_out(ct, "test", 64)
    bench, start = Bench(network, ct), prior_start(name, seed, network)
    assert start.routine is not None
    scores: dict[tuple[float, int], float] = {}
    for factor in SCALES:
        means = bench.curve(scaled(start, factor), start.routine, tuning, PRIOR_STEPS)["psnr"].mean(0)
        scores |= {(factor, step): float(m) for step, m in zip(PRIOR_STEPS, means, strict=True)}
    factor, steps = max(scores, key=lambda k: scores[k])
    values = bench.curve(scaled(start, factor), start.routine, test, [steps])
    return {
        "steps": steps,
        "factor": factor,
        "psnr": np.round(values["psnr"][:, 0], 3).tolist(),
        "ssim": round(float(values["ssim"].mean()), 4),
    }


def _starts(seed: int, network: nn.Module) -> Mapping[str, Start]:
    coordinates = domain("phantoms", SIDE).tasks(0, 0, 1, "validation").shared["coordinates"]
    return {s.name: s for s in analytic_starts(network, seed, coordinates, ORDINARY)}


def _tune(name: str, views: int, network: nn.Module) -> dict[str, Any]:
    """Return start, Adam step size and number of steps that do best on validation."""
    ct = domain(name, SIDE, views)
    bench, tuning = Bench(network, ct), held_out(ct, "validation", 4)
    scores: dict[tuple[str, float, int], float] = {}
    for start in _starts(0, network).values():
        rates, tried = list(ADAM_GRID[::2]), set()
        while rates:
            for rate in rates:
                tried.add(rate)
                routine = AdaptationRoutine(optimizer="adam", steps=ORDINARY_STEPS[-1], step_size=rate)
                means = bench.curve(start, routine, tuning, ORDINARY_STEPS)["psnr"].mean(0)
                for step, mean in zip(ORDINARY_STEPS, means, strict=True):
                    scores[start.name, rate, step] = float(mean)
            mine = {k: v for k, v in scores.items() if k[0] == start.name}
            best = max(mine, key=lambda k: mine[k])[1]
            low, high = best == min(tried), best == max(tried)
            rates = [best / GRID_RATIO**2] if low else [best * GRID_RATIO**2] if high else []
    best_key = max(scores, key=lambda k: scores[k])
    return {"start": best_key[0], "rate": best_key[1], "steps": best_key[2], "validation": scores[best_key]}


def _ordinary(
    name: str, views: int, seed: int, network: nn.Module, chosen: Mapping[str, Any]
) -> dict[str, Any]:
    ct = domain(name, SIDE, views)
    begin = cpu_seconds()
    routine = AdaptationRoutine(optimizer="adam", steps=chosen["steps"], step_size=chosen["rate"])
    start = _starts(seed, network)[chosen["start"]]
    values = Bench(network, ct).curve(start, routine, held_out(ct, "test", 64), [chosen["steps"]])
    return {
        "psnr": np.round(values["psnr"][:, 0], 3).tolist(),
        "ssim": round(float(values["ssim"].mean()), 4),
        "cpu_seconds": round(cpu_seconds() - begin, 1),
    }


def table(cells: Cells, name: str) -> None:
    """Print the table for RESULTS.md."""
    v = cells.values
    mean = np.array([v[f"{name}/mean/1"]])
    print(f"mean training image: {_cell(mean)}\n")
    print("| views | prior | best ordinary, twice the views | prior - ordinary | prior - mean image |")
    print("|---|---|---|---|---|")
    for views in VIEWS:
        prior = _stack(v, f"{name}/prior/{views}")
        other = _stack(v, f"{name}/ordinary/{2 * views}")
        own = [v[f"{name}/prior/{views}/{s}"] for s in SEEDS]
        settings = [(cell["steps"], cell["factor"]) for cell in own]
        gain, over = paired_bootstrap(prior, other), paired_bootstrap(prior, mean)
        chosen = v[f"{name}/tuned/{2 * views}"]
        print(
            f"| {views} | {_cell(prior)} (steps, factor {settings}) | {_cell(other)} ({chosen['start']}, "
            f"Adam {chosen['rate']:.1g}, {chosen['steps']} steps) | {gain.mean:+.2f} [{gain.low:+.2f}, "
            f"{gain.high:+.2f}] | {over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}] |"
        )
    print([v.get(f"{name}/train/{s}", {}).get("cpu_seconds") for s in SEEDS])


def _stack(values: Mapping[str, Any], prefix: str) -> np.ndarray:
    return np.array([values[f"{prefix}/{seed}"]["psnr"] for seed in SEEDS])


def _cell(values: np.ndarray) -> str:
    interval = bootstrap(values)
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("train", "measure", "table"))
    parser.add_argument("--set", choices=("phantoms", "chest"), default="phantoms")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    name = given.set
    cells = Cells(f"ct-{name}")
    if given.part == "train":
        cells.cell(f"{name}/train/{given.seed}", lambda: {**trained(name, given.seed)[1], **machine()})
    elif given.part == "measure":
        measure(cells, name)
    else:
        table(cells, name)


if __name__ == "__main__":
    main()
