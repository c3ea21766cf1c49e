"""The searched routine against the meta-training routine at its best of five step sizes, on unseen classes.

    METAINIT_DATA=... python -m benchmarks.segmentation_tuning measure | table     [--set clothes]

Both are chosen on the same validation tasks with the prior of seed 0, and compared on test tasks with all.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from benchmarks.cells import Cells, cpu_seconds
from benchmarks.segmentation_starts import SEEDS, batch_of, domain, network_of, prior_start
from metainit.card import AdaptationRoutine
from metainit.evidence.curves import Bench, Start
from metainit.evidence.statistics import bootstrap, paired_bootstrap
from pipelines.search import Objective, SearchConfig
from pipelines.study import Study, first_point, run_search

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""On the learned step sizes of meta-training."""
SEARCH = SearchConfig(trials=24, tasks=8, max_steps=40)
TEST = 64


def scaled(routine: AdaptationRoutine, factor: float) -> AdaptationRoutine:
    """Return the meta-training routine with all of its step sizes multiplied."""
    sizes = {k: [factor * v for v in values] for k, values in routine.per_tensor.items()}
    return routine.model_copy(update={"per_tensor": sizes, "step_size": factor * routine.step_size})


def measure(cells: Cells, name: str) -> None:
    """Choose both routines, then compare them on classes that neither choice saw."""
    start, _ = prior_start(name, 0)
    tuning = batch_of(name, "validation", SEARCH.tasks)
    bench = Bench(network_of(), domain(name))
    assert start.routine is not None
    own = start.routine
    factor = cells.cell(f"{name}/factor", lambda: _best_factor(bench, start, own, tuning))["factor"]
    searched = cells.cell(f"{name}/searched", lambda: _searched(name, start, tuning))
    found = AdaptationRoutine.model_validate(searched["routine"])
    for seed in SEEDS:
        prior, _ = prior_start(name, seed)
        assert prior.routine is not None
        trained = scaled(prior.routine, factor)
        cells.cell(f"{name}/trained/{seed}", lambda p=prior, r=trained: _values(bench, p, r, name))  # type: ignore[misc]
        cells.cell(f"{name}/tuned/{seed}", lambda p=prior: _values(bench, p, found, name))  # type: ignore[misc]


def _best_factor(bench: Bench, start: Start, own: AdaptationRoutine, tuning: Any) -> dict[str, Any]:
    scores = {}
    for factor in FACTORS:
        values = bench.curve(start, scaled(own, factor), tuning, [own.steps], ["iou"])["iou"]
        scores[factor] = round(float(values.mean()), 4)
    return {"factor": max(scores, key=lambda f: scores[f]), "scores": {str(k): v for k, v in scores.items()}}


def _searched(name: str, start: Start, tuning: Any) -> dict[str, Any]:
    begin = cpu_seconds()
    objective = Objective(network_of(), domain(name), start, tuning, SEARCH)
    study = Study(SEARCH.space(objective.domain, objective.base), SEARCH, first_point(objective.base))
    run_search(study, SEARCH, objective)
    best = study.best
    return {
        "routine": objective.routine(best.point, best.outcome.steps).model_dump(mode="json"),
        "validation": round(best.outcome.score, 4),
        "before": round(objective.baseline().score, 4),
        "cpu_seconds": round(cpu_seconds() - begin, 1),
    }


def _values(bench: Bench, start: Start, routine: AdaptationRoutine, name: str) -> dict[str, Any]:
    values = bench.curve(start, routine, batch_of(name, "test", TEST), [routine.steps])["iou"]
    return {"iou": np.round(values[:, 0], 4).tolist()}


def table(cells: Cells, name: str) -> None:
    """Print the comparison."""
    v = cells.values
    sides = [
        100 * np.array([v[f"{name}/{side}/{seed}"]["iou"] for seed in SEEDS]) for side in ("tuned", "trained")
    ]
    groups = batch_of(name, "test", TEST).groups
    shown = [bootstrap(side, groups=groups) for side in sides]
    gain = paired_bootstrap(sides[0], sides[1], paired_seeds=True, groups=groups)
    routine = v[f"{name}/searched"]["routine"]
    print(f"{name}: searched {shown[0]}, meta-training routine {shown[1]}, difference {gain}")
    print("  factor", v[f"{name}/factor"], "; searched", {k: routine[k] for k in ("steps", "step_size")},
          {k: routine[k] for k in ("augmentation", "weight_decay")})  # fmt: skip


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("measure", "table"))
    parser.add_argument("--set", choices=("clothes", "strokes"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    cells = Cells("segmentation-tuning")
    for name in (given.set,) if given.set else ("clothes", "strokes"):
        {"measure": measure, "table": table}[given.part](cells, name)


if __name__ == "__main__":
    main()
