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
from benchmarks.choosing import Search, choose, routine_of
from benchmarks.training import Plan, train
from metainit import load
from metainit.card import Spec
from metainit.domains.ct import CTConfig, CTDomain
from metainit.evidence.controls import base as controls
from metainit.evidence.controls.registry import make_controls
from metainit.evidence.curves import GRID_RATIO, Bench, Start, weights_of
from metainit.evidence.measuring import held_out
from metainit.evidence.metrics import psnr
from metainit.evidence.statistics import bootstrap, paired_bootstrap
from metainit.initialization import Prior
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks import build

NETWORK = Spec(name="siren", arguments={"width": 64, "depth": 5, "out_features": 1, "omega_first": 15.0})
SMALL, SIDE = 32, 64
SMALL_STEPS = {"phantoms": 800, "chest": 800}
LARGE_STEPS = {"phantoms": 80, "chest": 80}
SEEDS = (0, 1, 2)
VIEWS = (1, 2, 4, 8)
STEPS = (1, 2, 4, 6, 8, 10, 20, 50, 100, 200)
"""What each start's number of steps is chosen from: the same budget for all."""
ORDINARY = ("siren", "siren_scaled", "default", "kaiming", "orthogonal", "lsuv")
TUNING = 6
"""Validation tasks."""
SEARCH = Search(
    grids={"sgd": (0.1 / GRID_RATIO, 0.1), "adam": (1e-4, 1e-4 * GRID_RATIO, 1e-3)},
    steps=STEPS,
    limits=(STEPS[-1],),
    screening=2,
    finalists=3,
)
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


def measure(cells: Cells, name: str) -> None:
    """Measure everything for one data set, cell by cell."""
    network = build(NETWORK)
    for views in (*VIEWS, 16):
        cells.cell(f"{name}/mean/{views}", lambda v=views: _mean_image(name, v))
    for views in VIEWS:
        own = cells.cell(
            f"{name}/chosen/{views}",
            lambda v=views: _chosen(name, v, [prior_start(name, 0, network)], network),
        )
        for seed in SEEDS:
            cells.cell(
                f"{name}/prior/{views}/{seed}",
                lambda v=views, s=seed, c=own: _measured(name, v, prior_start(name, s, network), network, c),
            )
        twice = 2 * views
        other = cells.cell(
            f"{name}/tuned/{twice}",
            lambda v=twice: _chosen(name, v, [*_starts(0, network).values()], network),
        )
        for seed in SEEDS:
            cells.cell(
                f"{name}/ordinary/{twice}/{seed}",
                lambda v=twice, s=seed, c=other: _measured(
                    name, v, _starts(s, network)[c["start"]], network, c
                ),
            )


def _mean_image(name: str, views: int) -> list[float]:
    ct = domain(name, SIDE, views)
    mean = ct.mean_signal()
    return [round(psnr(mean, image), 3) for image in held_out(ct, "test", 64).query["image"]]


def _chosen(name: str, views: int, starts: Sequence[Start], network: nn.Module) -> dict[str, Any]:
    """Return start, optimizer, step size and number of steps that do best on validation."""
    ct = domain(name, SIDE, views)
    return choose(Bench(network, ct), starts, held_out(ct, "validation", TUNING), SEARCH)[STEPS[-1]]


def _measured(name: str, views: int, start: Start, network: nn.Module, chosen: Any) -> dict[str, Any]:
    ct = domain(name, SIDE, views)
    begin = cpu_seconds()
    routine = routine_of(start, chosen["optimizer"], chosen["rate"], STEPS[-1])
    values = Bench(network, ct).curve(start, routine, held_out(ct, "test", 64), [chosen["steps"]])
    return {
        "psnr": np.round(values["psnr"][:, 0], 3).tolist(),
        "ssim": round(float(values["ssim"].mean()), 4),
        "cpu_seconds": round(cpu_seconds() - begin, 1),
    }


def _starts(seed: int, network: nn.Module) -> Mapping[str, Start]:
    setting = controls.Setting(network, domain("phantoms", SIDE), seed=seed)
    return {s.name: s for s in make_controls(setting, ORDINARY, left_out={})}


def table(cells: Cells, name: str) -> None:
    """Print the table for RESULTS.md."""
    v = cells.values
    mean = np.array([v[f"{name}/mean/1"]])
    groups = held_out(domain(name, SIDE, 1), "test", 64).groups
    print(f"mean training image: {_cell(mean, groups)}; {len(set(groups))} groups of tasks\n")
    print("| views | prior | best ordinary, twice the views | prior - ordinary | prior - mean image |")
    print("|---|---|---|---|---|")
    for views in VIEWS:
        needed = [f"{name}/{kind}/{s}" for s in SEEDS for kind in (f"prior/{views}", f"ordinary/{2 * views}")]
        if any(key not in v for key in needed):
            print(f"| {views} | not measured | | | |")
            continue
        prior = _stack(v, f"{name}/prior/{views}")
        other = _stack(v, f"{name}/ordinary/{2 * views}")
        own = v[f"{name}/chosen/{views}"]
        gain, over = (paired_bootstrap(prior, o, groups=groups) for o in (other, mean))
        chosen = v[f"{name}/tuned/{2 * views}"]
        print(
            f"| {views} | {_cell(prior, groups)} ({_setting(own)}) | {_cell(other, groups)} "
            f"({chosen['start']}, {_setting(chosen)}) | {gain.mean:+.2f} [{gain.low:+.2f}, "
            f"{gain.high:+.2f}] | {over.mean:+.2f} [{over.low:+.2f}, {over.high:+.2f}] |"
        )
    print([v.get(f"{name}/train/{s}", {}).get("cpu_seconds") for s in SEEDS])


def _setting(chosen: Mapping[str, Any]) -> str:
    return f"{chosen['optimizer']} {chosen['rate']:.1g}, {chosen['steps']} steps"


def _stack(values: Mapping[str, Any], prefix: str) -> np.ndarray:
    return np.array([values[f"{prefix}/{seed}"]["psnr"] for seed in SEEDS])


def _cell(values: np.ndarray, groups: Sequence[str]) -> str:
    interval = bootstrap(values, groups=groups)
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
