"""What Ray and MLflow cost beside the plain training function, and whether runs can be trusted.

python -m benchmarks.overhead [--rounds 3] [--steps 300]

A round trains the same recipe plainly and on Ray with MLflow, one after the other, each in a process of its
own with the same threads; ratios are taken within rounds. Two of them are given: of the median step by the
clock, which needs a machine with nothing else to do, and of the CPU time of a step, which counts all
processes of the run (Ray's own, the driver and the worker). The start-up is from before the first import to
the end of the first outer step, with an MLflow store that has to be made. The last cells check that a
killed run ends with the same bytes, and that one and two workers agree.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import Cells, machine

ROOT = Path(__file__).parents[1]
RECIPE = "image-photos"
SMALL = "ct-phantoms-debug"
MARGIN = 10
"""Outer steps at the beginning and at the end that CPU time leaves out."""
META_SGD = [
    "network={name: siren, width: 32, depth: 3}",
    "start=siren",
    "validation_tasks=0",
    "outer.steps=20",
]
META_SGD += ["algorithm={rule: meta_sgd, step_sizes: parameter, inner_step_size: 0.01}", "outer.meta_batch=5"]


def plain(folder: Path, steps: int) -> dict[str, Any]:
    """Train in this process and return when each outer step ended."""
    from pipelines.recipe import load_recipe
    from pipelines.tracking import ListSink
    from pipelines.train import train

    ends: list[float] = []
    used: list[tuple[int, float]] = []

    def progress(step: int, *_: float) -> None:
        ends.append(time.time())
        if step in (MARGIN, steps - MARGIN):
            used.append((step, time.process_time()))

    train(load_recipe(RECIPE, settings(steps)), folder, sink=ListSink(), progress=progress)
    return {"ends": ends, "cpu": slope(used)}


def on_ray(folder: Path, steps: int) -> dict[str, Any]:
    """Train on Ray with MLflow and return when each outer step ended."""
    from pipelines.folder import SCRATCH
    from pipelines.journal import Reader
    from pipelines.ray_train import JOURNAL, run_on_ray
    from pipelines.recipe import load_recipe

    ends: list[float] = []
    used: list[tuple[int, float]] = []

    def progress(step: int, *_: float) -> None:
        if step in (MARGIN, steps - MARGIN):  # looking through all processes takes time itself
            used.append((step, tree_seconds(os.getpid())))
        if step == steps:  # the journal is gone once the run has ended
            news = Reader(folder / SCRATCH / JOURNAL).news()
            ends.extend(line["at"] for line in news if "at" in line)

    outcome = run_on_ray(load_recipe(RECIPE, settings(steps)), folder, progress=progress)
    outcome.sink.close()
    return {"ends": ends, "cpu": slope(used)}


def settings(steps: int) -> list[str]:
    """Return what is changed in the recipe: the steps alone are measured, with their regular states."""
    return [f"outer.steps={steps}", "checkpoint_every=100", "validation_tasks=0"]


def slope(used: Sequence[tuple[int, float]]) -> float:
    """Return the CPU seconds of a step between two steps, past start-up and before the end."""
    (first, before), (last, after) = used
    return (after - before) / (last - first)


def tree_seconds(root: int) -> float:
    """Return user plus system time of a process and of all that run below it."""
    parents: dict[int, int] = {}
    seconds: dict[int, float] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        pid = int(entry.parent.name)
        parents[pid] = int(fields[1])
        seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    total = 0.0
    for pid, own in seconds.items():
        above = pid
        while above in parents and above != root:
            above = parents[above]
        total += own if above == root else 0.0
    return total


def timed(way: str, steps: int) -> dict[str, Any]:
    """Run one way in a new process; seconds of start-up and of the steps, and the load of the machine."""
    with tempfile.TemporaryDirectory() as temporary:
        environment = os.environ | {"METAINIT_HOME": f"{temporary}/home"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        began = time.time()
        command = [sys.executable, "-m", "benchmarks.overhead", "--one", way, "--steps", str(steps)]
        done = subprocess.run(
            [*command, "--folder", f"{temporary}/run"],
            cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        whole = time.time() - began
    answer = json.loads(done.stdout.splitlines()[-1])
    ends = answer["ends"]
    each = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    return {
        "start_up": ends[0] - began,
        "median_step": statistics.median(each),
        "fastest_tenth": statistics.quantiles(each, n=10)[0],
        "mean_step": statistics.fmean(each),
        "cpu_of_a_step": answer["cpu"],
        "seconds": whole,
        "load": machine()["load"],
    }


def processes(jobs: list[dict[str, Any]], size: int, folder: Path) -> list[int]:
    """Run training jobs on `size` processes, and return their exit statuses."""
    command = [sys.executable, "-m", "tests.pipelines.training_process"]
    orders = [
        {"jobs": jobs, "rank": r, "size": size, "meet": str(folder / f"meet-{size}")} for r in range(size)
    ]
    started = [subprocess.Popen([*command, json.dumps(order)], cwd=ROOT) for order in orders]
    return [process.wait() for process in started]


def killed() -> dict[str, Any]:
    """Kill a run with SIGKILL in the middle, resume it, and compare with one that was never killed."""
    from pipelines.folder import CHECKPOINT
    from pipelines.recipe import load_recipe

    recipe = load_recipe(SMALL, [*META_SGD, "checkpoint_every=4"]).dump()
    with tempfile.TemporaryDirectory() as temporary:
        once, whole = Path(temporary) / "once", Path(temporary) / "whole"
        job = {"recipe": recipe, "folder": str(once)}
        assert processes([job | {"kill_at": 10}], 1, once) == [-signal.SIGKILL]
        assert processes([job, {"recipe": recipe, "folder": str(whole)}], 1, once) == [0]
        same = (once / CHECKPOINT).read_bytes() == (whole / CHECKPOINT).read_bytes()
    return {"killed_at_step": 10, "steps": 20, "same_bytes": same}


def workers() -> dict[str, Any]:
    """Return the largest relative difference between one and two workers."""
    from pipelines.folder import CHECKPOINT
    from pipelines.recipe import load_recipe

    many = load_recipe(SMALL, [*META_SGD, "dtype=float64"]).dump()
    single = load_recipe(SMALL, META_SGD).dump()
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        for size in (1, 2):
            jobs = [
                {"recipe": many, "folder": str(top / str(size) / "many")},
                {"recipe": single, "folder": str(top / str(size) / "single"), "gradient": True},
            ]
            assert processes(jobs, size, top) == [0] * size
        return {
            "float64_after_20_steps": difference(*(top / s / "many" / CHECKPOINT for s in "12")),
            "float32_one_gradient": difference(*(top / s / "single/gradient.safetensors" for s in "12")),
        }


def difference(first: Path, second: Path) -> float:
    """Return the largest difference of two files, relative to the largest entry of each tensor."""
    from safetensors.torch import load_file

    one, two = load_file(first), load_file(second)
    return max(float((one[k] - two[k]).abs().max() / one[k].abs().max().clamp(min=1e-30)) for k in one)


def run(rounds: int, steps: int) -> Cells:
    """Compute the cells that are not there yet."""
    cells = Cells("overhead")
    cells.cell("machine", machine)
    for number in range(rounds):
        ways = ("plain", "ray") if number % 2 == 0 else ("ray", "plain")
        for way in ways:
            cells.cell(f"{way}, round {number}", lambda way=way: timed(way, steps))
    cells.cell("killed and resumed", killed)
    cells.cell("one and two workers", workers)
    return cells


def table(cells: Cells, rounds: int) -> str:
    """Return the results as markdown."""
    rows = [(cells.values[f"plain, round {n}"], cells.values[f"ray, round {n}"]) for n in range(rounds)]

    def middle(values: Sequence[float]) -> str:
        return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"

    killed_, workers_ = cells.values["killed and resumed"], cells.values["one and two workers"]
    lines = [
        f"| {RECIPE}, median of {rounds} rounds (lowest to highest) | |",
        "|---|---|",
        f"| median step, plain, ms | {middle([1000 * p['median_step'] for p, _ in rows])} |",
        f"| median step, Ray and MLflow, ms | {middle([1000 * r['median_step'] for _, r in rows])} |",
        f"| cost on the median step, % | "
        f"{middle([100 * (r['median_step'] / p['median_step'] - 1) for p, r in rows])} |",
        f"| cost on the fastest tenth, % | "
        f"{middle([100 * (r['fastest_tenth'] / p['fastest_tenth'] - 1) for p, r in rows])} |",
        f"| CPU time of a step, plain, ms | {middle([1000 * p['cpu_of_a_step'] for p, _ in rows])} |",
        f"| CPU time of a step, Ray and MLflow, all processes, ms | "
        f"{middle([1000 * r['cpu_of_a_step'] for _, r in rows])} |",
        f"| cost in CPU time, % | "
        f"{middle([100 * (r['cpu_of_a_step'] / p['cpu_of_a_step'] - 1) for p, r in rows])} |",
        f"| start-up, plain, s | {middle([p['start_up'] for p, _ in rows])} |",
        f"| start-up, Ray and MLflow, s | {middle([r['start_up'] for _, r in rows])} |",
        f"| load of the machine | {middle([r['load'] for pair in rows for r in pair])} |",
        f"| killed by SIGKILL and resumed: same bytes | {killed_['same_bytes']} |",
        f"| 1 and 2 workers, float64, 20 steps | {workers_['float64_after_20_steps']:.2g} |",
        f"| 1 and 2 workers, float32, one meta-gradient | {workers_['float32_one_gradient']:.2g} |",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--one", choices=("plain", "ray"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way = plain if given.one == "plain" else on_ray
        print(json.dumps(way(given.folder, given.steps)))
        return
    print(table(run(given.rounds, given.steps), given.rounds))


if __name__ == "__main__":
    main()
