"""Meta-training speed: tasks a second against learn2learn, higher, TorchOpt, a plain loop and JAX.

python -m benchmarks.speed [--quick] [--device cuda] [--rounds 5]     measures what is missing, prints a table

64x64 images, 2 inner steps. All contenders compute the same meta-gradient (checked in the run, in float64
and in float32) with the same number of threads, one after the other in an order that turns with each round,
so that a busy machine disturbs all of them alike. Ratios are taken within rounds; intervals are bootstraps
over rounds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from benchmarks.cells import Cells, machine
from benchmarks.peers import Case, Compute, Gradient, Unavailable, contenders
from benchmarks.peers.jax_peer import limit_threads
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.errors import MetainitError
from metainit.networks import Siren

NETWORKS = {"4x64": (4, 64), "5x256": (5, 256)}
RULES = ("maml", "fomaml", "reptile")
BATCHES = {"cpu": (3, 16), "cuda": (64,)}
GRADIENTS = {"maml": 7, "fomaml": 3, "reptile": 2}
"""Nominal work of two inner steps, in gradients: the matrix products of the plain algorithm, none saved."""

SIDE, CHECK_SIDE = 64, 16
REST_SECONDS, TURN_SECONDS, CELL_SECONDS = 0.3, 0.3, 25.0
MIN_ROUNDS = 3
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
REFERENCE = "learn2learn"
OURS = ("metainit", "metainit, compiled")


def case_of(rule: str, network: str, tasks: int, side: int, dtype: torch.dtype, device: str) -> Case:
    """Return the case: a start of the SIREN scheme, and images of noise (the speed does not see them)."""
    depth, width = NETWORKS[network]
    module = Siren(2, 3, width=width, depth=depth)
    module.reset_sine_parameters(torch.Generator().manual_seed(0))
    images = np.random.default_rng(0).random((tasks + 10, side, side, 3), dtype=np.float32)
    domain = ImageDomain.from_arrays(images, ImageConfig(height=side, width=side, fit="resize"))
    batch = domain.tasks(0, 0, tasks).map(lambda t: t.to(device, dtype))
    return Case(rule, module.to(device, dtype), domain, batch)


def flops(network: str, rule: str, side: int) -> float:
    """Return the nominal floating-point operations of one task (a gradient is three forward passes)."""
    depth, width = NETWORKS[network]
    forward = 2 * side**2 * (2 * width + (depth - 2) * width**2 + 3 * width)
    return GRADIENTS[rule] * 3.0 * forward


def peak(network: str, side: int, device: str) -> float:
    """Return the fastest measured matrix product of a hidden layer's sizes, in operations a second."""
    width = NETWORKS[network][1]
    a, b = torch.ones(side**2, width, device=device), torch.ones(width, width, device=device)
    best = float("inf")
    for _ in range(30):
        begun = time.perf_counter()
        for _ in range(5):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begun) / 5)
    return 2 * side**2 * width**2 / best


def difference(found: Gradient, truth: Gradient) -> float:
    """Return the largest difference, relative to the largest entry."""
    scale = max(float(v.abs().max()) for v in truth.values())
    return max(float((found[k].to(v) - v).abs().max()) for k, v in truth.items()) / scale


class Unequal(RuntimeError):
    """A contender computes something else."""


def agreement(computes: Mapping[str, Compute], dtype: torch.dtype) -> dict[str, float]:
    """Return how far each contender's gradient is from ours.

    Raises:
        Unequal: one is further away than rounding explains.
    """
    truth = computes["metainit"]()
    found = {name: difference(compute(), truth) for name, compute in computes.items()}
    wrong = {name: value for name, value in found.items() if not value < TOLERANCES[dtype]}
    if wrong:
        raise Unequal(f"other meta-gradients than metainit's in {dtype}: {wrong}")
    return found


def set_up(case: Case, stack: ExitStack) -> tuple[dict[str, Compute], dict[str, float], dict[str, str]]:
    """Return the contenders that can run the case, the seconds to set each up, and why others are missing."""
    ready: dict[str, Compute] = {}
    took: dict[str, float] = {}
    missing: dict[str, str] = {}
    for name, (make, rules) in contenders().items():
        if case.rule not in rules:
            missing[name] = "has no such rule"
            continue
        begun = time.perf_counter()
        try:
            ready[name] = stack.enter_context(make(case))
        except (ImportError, MetainitError, Unavailable) as error:
            missing[name] = str(error)
        else:
            took[name] = time.perf_counter() - begun
    return ready, took, missing


def timed(case: Case, compute: Compute, calls: int = 1) -> tuple[float, float]:
    """Return the seconds of one call, by the wall and of CPU time; of many, the first is left out."""
    if calls > 1:
        compute()
        case.settled()
    wall, used = time.perf_counter(), time.process_time()
    for _ in range(calls):
        compute()
    case.settled()
    return (time.perf_counter() - wall) / calls, (time.process_time() - used) / calls


def measure(network: str, rule: str, tasks: int, rounds: int, side: int, device: str) -> dict[str, Any]:
    """Measure one cell: all contenders, some rounds."""
    small = case_of(rule, network, 3, min(side, CHECK_SIDE), torch.float64, device)
    case = case_of(rule, network, tasks, side, torch.float32, device)
    with ExitStack() as stack:
        in_double = agreement(set_up(small, stack)[0], torch.float64)
        computes, took, missing = set_up(case, stack)
        in_single = agreement(computes, torch.float32)
        once = {name: timed(case, compute)[0] for name, compute in computes.items()}
        calls = {name: max(1, math.ceil(TURN_SECONDS / seconds)) for name, seconds in once.items()}
        a_round = sum(REST_SECONDS + calls[name] * seconds for name, seconds in once.items())
        rounds = max(MIN_ROUNDS, min(rounds, int(CELL_SECONDS / a_round)))
        seconds: dict[str, list[float]] = {name: [] for name in computes}
        cpu: dict[str, list[float]] = {name: [] for name in computes}
        loads, peaks = [], []
        for turn in range(rounds):
            loads.append(round(os.getloadavg()[0], 2))
            peaks.append(peak(network, side, device))
            names = list(computes)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                # The threads of the one before still spin for a while, and would slow this one down.
                time.sleep(REST_SECONDS)
                wall, used = timed(case, computes[name], calls[name])
                seconds[name].append(wall)
                cpu[name].append(used)
    return {
        "rounds": rounds,
        "tasks": tasks,
        "flops_per_task": flops(network, rule, side),
        "peak_flops": max(peaks),
        "load": loads,
        "machine": machine(),
        "missing": missing,
        "contenders": {
            name: {
                "set_up_seconds": took[name],
                "seconds": seconds[name],
                "cpu_seconds": cpu[name],
                "difference_float64": in_double.get(name),
                "difference_float32": in_single[name],
            }
            for name in computes
        },
    }


def ratio(cell: Mapping[str, Any], other: str, own: str) -> tuple[float, float, float]:
    """Return how many times as long another takes as ours: the median over rounds, and its interval."""
    theirs, mine = (np.asarray(cell["contenders"][name]["seconds"]) for name in (other, own))
    drawn = np.random.default_rng(0).integers(len(mine), size=(10_000, len(mine)))
    resampled = np.median((theirs / mine)[drawn], axis=1)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.median(theirs / mine)), float(low), float(high)


def best_peer(cell: Mapping[str, Any]) -> str:
    """Return the fastest contender but ours."""
    peers = [name for name in cell["contenders"] if name not in OURS]
    return min(peers, key=lambda name: statistics.median(cell["contenders"][name]["seconds"]))


def row(name: str, cell: Any) -> str:
    """Return one line of the table."""
    _, network, rule, batch = name.split("/")
    names = list(contenders())
    if isinstance(cell, str):
        return f"| {network} {rule} {batch} | {cell} |" + " |" * (len(names) + 6)
    speeds = []
    for contender in names:
        found = cell["contenders"].get(contender)
        times = [cell["tasks"] / s for s in found["seconds"]] if found else []
        speeds.append(f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})" if times else "-")
    shares = " / ".join(f"{flops_of(cell, own) / cell['peak_flops']:.0%}" for own in OURS)
    ratios = [
        "{:.2f} [{:.2f}, {:.2f}]".format(*ratio(cell, other, own)) if other in cell["contenders"] else "-"
        for other in (REFERENCE, best_peer(cell))
        for own in OURS
    ]
    took = {name: f"{found['set_up_seconds']:.1f} s" for name, found in cell["contenders"].items()}
    set_up = " / ".join(took.get(name, "-") for name in ("metainit, compiled", "JAX"))
    cells = [f"{network} {rule} {batch}", *speeds, shares, *ratios, best_peer(cell), set_up]
    return f"| {' | '.join(cells)} |"


def flops_of(cell: Mapping[str, Any], own: str) -> float:
    """Return our nominal floating-point operations a second."""
    return float(
        cell["tasks"] * cell["flops_per_task"] / statistics.median(cell["contenders"][own]["seconds"])
    )


def table(values: Mapping[str, Any]) -> str:
    """Return the results as a table: tasks a second, median (range); ratios with their intervals."""
    titles = ["network, rule, meta-batch", *contenders(), "share of peak: metainit / compiled",
              *(f"{other} / {own}" for other in (REFERENCE, "best peer") for own in OURS),
              "best peer", "compilation: metainit / JAX"]  # fmt: skip
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return "\n".join([*lines, *(row(name, cell) for name, cell in values.items())])


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=sorted(BATCHES), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run on 16x16 pixels that stores nothing"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    limit_threads(options.threads)
    # Kernels that an earlier run has left would make compilation look cheap.
    cold = tempfile.TemporaryDirectory()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cold.name
    if options.quick:
        found = {f"cpu/4x64/{r}/3": measure("4x64", r, 3, 3, CHECK_SIDE, "cpu") for r in RULES}
        print(table(found))
        return
    cells = Cells("speed")
    names: list[str] = []
    for device, batches in BATCHES.items():
        for network in NETWORKS:
            for rule in RULES:
                for tasks in batches:
                    name = f"{device}/{network}/{rule}/{tasks}"
                    names.append(name)
                    if device == "cuda" and not torch.cuda.is_available():
                        cells.cell(name, lambda: "not measured: no GPU in the machine that ran this")
                    elif device == options.device:
                        if isinstance(cells.values.get(name), str):
                            del cells.values[name]
                        chosen = (network, rule, tasks, options.rounds, SIDE, device)
                        cells.cell(name, lambda c=chosen: measure(*c))  # type: ignore[misc]
    print(table({name: cells.values[name] for name in names if name in cells.values}))


if __name__ == "__main__":
    main()
