"""Priors for segmentation: against transfer learning, training from scratch, and copying the masks.

METAINIT_DATA=... python -m benchmarks.segmentation train --set clothes --seed 0    (strokes, synth; 1, 2)
METAINIT_DATA=... python -m benchmarks.segmentation measure | shots | abroad | norms | table
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.cells import Cells, cpu_seconds, machine
from benchmarks.choosing import OWN, Search, choose, routine_of
from benchmarks.segmentation_starts import (
    ORDINARY,
    QUERIES,
    SEEDS,
    SHOTS,
    batch_of,
    domain,
    joint_start,
    network_of,
    prior_start,
)
from metainit.evidence.controls.base import Setting
from metainit.evidence.controls.registry import make_controls
from metainit.evidence.curves import GRID_RATIO, Bench, Start
from metainit.evidence.overlap import iou
from metainit.networks.normalization import Norm

FEW = 5
"""Adaptation steps that count as few."""
STEPS = (1, 2, 5, 10, 20, 40)
SEARCH = Search(
    grids={"sgd": (0.01 * GRID_RATIO, 0.1), "adam": (1e-3, 1e-3 * GRID_RATIO, 1e-2)},
    steps=STEPS,
    limits=(FEW, STEPS[-1]),
    screening=4,
    finalists=3,
)
TUNING, TEST = 16, 64
CURVE = {"clothes": (1, 2, 5, 10, 20), "strokes": (1, 2, 5, 10, 15)}
"""Shots; a character was drawn by 20 people, so that 5 queries leave 15."""
CURVE_TUNING, CURVE_TEST = 8, 32
ABROAD = ("cells", "membranes", "objects")
ABROAD_SEARCH = Search(SEARCH.grids, (1, 2, 5, 10, 20), (20,), screening=4, finalists=3)
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
KINDS = ("prior", "joint")
BATCH_JOINT = "joint-batch"
"""Transfer learning of a network whose normalization uses the statistics of the images at hand."""
Chosen = Mapping[str, Any]


def start_of(kind: str, name: str, seed: int) -> Start:
    """Return the prior, transfer learning's start (with either norm), or an ordinary one by its name."""
    if kind == BATCH_JOINT:
        return joint_start(name, seed, "batch")[0]
    if kind == "prior":
        return prior_start(name, seed)[0]
    if kind == "joint":
        return joint_start(name, seed)[0]
    return make_controls(Setting(network_of(), domain(name), seed=seed), [kind])[0]


def measure(cells: Cells, name: str) -> None:
    """Five shots on classes that nothing was trained or tuned on: few steps, and each one's optimum."""
    cells.cell(f"{name}/masks", lambda: copied_masks(name))
    for kind in ("prior", "joint", "scratch", *((BATCH_JOINT,) if name == "clothes" else ())):
        own = chosen(cells, name, kind)
        norm = norm_of(kind)
        for limit, best in own.items():
            for seed in SEEDS:
                cells.cell(
                    f"{name}/{kind}/{limit}/{seed}",
                    lambda k=kind, b=best, s=seed, n=norm: values_of(
                        start_of(b["start"] if k == "scratch" else k, name, s), b, name, TEST, SHOTS, n
                    ),
                )


def norm_of(kind: str) -> Norm:
    """Return the normalization of a kind of start's network."""
    return "batch" if kind == BATCH_JOINT else "group"


def chosen(cells: Cells, name: str, kind: str) -> Mapping[str, Chosen]:
    """Return the setting of a kind of start for few steps and without a limit, searched with seed 0."""

    def search() -> dict[str, Chosen]:
        begin = cpu_seconds()
        kinds = ORDINARY if kind == "scratch" else (kind,)
        starts = [start_of(k, name, 0) for k in kinds]
        bench = Bench(network_of(norm_of(kind)), domain(name))
        found = choose(bench, starts, batch_of(name, "validation", TUNING), SEARCH)
        seconds = round(cpu_seconds() - begin, 1)
        return {str(limit): {**best, "cpu_seconds": seconds} for limit, best in found.items()}

    result: Mapping[str, Chosen] = cells.cell(f"{name}/chosen/{kind}", search)
    return result


def values_of(
    start: Start, best: Chosen, name: str, tasks: int, shots: int = SHOTS, norm: Norm = "group"
) -> dict[str, Any]:
    """Return the overlap on test tasks with a chosen setting."""
    begin = cpu_seconds()
    bench = Bench(network_of(norm), domain(name, shots))
    routine = routine_of(start, best["optimizer"], best["rate"], best["steps"])
    values = bench.curve(start, routine, batch_of(name, "test", tasks, shots), [best["steps"]])
    found: dict[str, Any] = {k: np.round(v[:, 0], 4).tolist() for k, v in values.items()}
    return {**found, "cpu_seconds": round(cpu_seconds() - begin, 1)}


def copied_masks(name: str) -> dict[str, Any]:
    """Return the overlap of the support's masks, averaged and cut at the best of some thresholds."""
    scores = {t: _copied(name, "validation", TEST, t).mean() for t in THRESHOLDS}
    best = max(scores, key=lambda t: scores[t])
    return {"threshold": best, "iou": np.round(_copied(name, "test", TEST, best), 4).tolist()}


def _copied(name: str, split: Any, count: int, threshold: float) -> np.ndarray:
    found = []
    for task in batch_of(name, split, count):
        marked = (task.support["labels"][0] == 1).float().mean(0) >= threshold
        copied = torch.stack([~marked, marked]).float().expand(QUERIES, -1, -1, -1)
        found.append(iou(copied, task.query["labels"][0]))
    return np.array(found)


def shots(cells: Cells, name: str, kinds: Sequence[str] = KINDS, counts: Sequence[int] | None = None) -> None:
    """The prior and transfer learning with more and fewer labelled images.

    Of the settings that were finalists with five images the best is chosen anew for each number of images.
    """
    for kind in kinds:
        first = chosen(cells, name, kind)
        settings = [tuple(s) for s in next(iter(first.values()))["finalists"]]
        for count in CURVE[name] if counts is None else counts:
            own = cells.cell(
                f"{name}/chosen/{kind}/shots/{count}",
                lambda k=kind, c=count, w=settings: {
                    str(limit): best
                    for limit, best in choose(
                        Bench(network_of(), domain(name, c)),
                        [start_of(k, name, 0)],
                        batch_of(name, "validation", CURVE_TUNING, c),
                        SEARCH,
                        w,
                    ).items()
                },
            )
            for limit, best in own.items():
                for seed in SEEDS:
                    cells.cell(
                        f"{name}/{kind}/{limit}/shots/{count}/{seed}",
                        lambda k=kind, b=best, s=seed, c=count: values_of(
                            start_of(k, name, s), b, name, CURVE_TEST, c
                        ),
                    )


def abroad(cells: Cells) -> None:
    """The prior of synthesised tasks on images of other kinds, five labelled ones and at most 20 steps.

    The prior's routine is chosen on synthesised validation tasks; training from scratch has start, optimizer,
    step size and number of steps chosen on labelled validation tasks of the very data set.
    """
    bench = Bench(network_of(), domain("synth"))
    ours = cells.cell(
        "synth/chosen/prior",
        lambda: choose(
            bench, [start_of("prior", "synth", 0)], batch_of("synth", "validation", TUNING), ABROAD_SEARCH
        )[20],
    )
    for name in ABROAD:
        scratch = cells.cell(
            f"{name}/chosen/scratch",
            lambda n=name: choose(
                Bench(network_of(), domain(n)),
                [start_of(k, n, 0) for k in ORDINARY],
                batch_of(n, "validation", TUNING),
                ABROAD_SEARCH,
            )[20],
        )
        for seed in SEEDS:
            cells.cell(
                f"{name}/prior/{seed}",
                lambda n=name, s=seed: values_of(start_of("prior", "synth", s), ours, n, TEST),
            )
            cells.cell(
                f"{name}/scratch/{seed}",
                lambda n=name, s=seed, c=scratch: values_of(start_of(c["start"], n, s), c, n, TEST),
            )
        cells.cell(f"{name}/masks", lambda n=name: copied_masks(n))
        cells.cell(f"{name}/seconds", lambda n=name: _seconds(n, ours))


def _seconds(name: str, best: Chosen) -> float:
    """Return the wall time of one adaptation with two threads."""
    torch.set_num_threads(2)
    start, bench = start_of("prior", "synth", 0), Bench(network_of(), domain(name))
    task = batch_of(name, "test", 1)
    begin = time.perf_counter()
    bench.curve(start, routine_of(start, best["optimizer"], best["rate"], 20), task, [best["steps"]])
    torch.set_num_threads(1)
    return round(time.perf_counter() - begin, 3)


def norms(cells: Cells) -> None:
    """Batch statistics, which see the other queries, beside group normalization, with the learned routine."""
    own = {"optimizer": OWN, "rate": 1.0, "steps": FEW}
    kinds: tuple[Norm, ...] = ("group", "batch")
    for norm in kinds:
        for seed in SEEDS:
            cells.cell(
                f"clothes/norm/{norm}/{seed}",
                lambda n=norm, s=seed: values_of(
                    prior_start("clothes", s, n)[0], own, "clothes", TEST, SHOTS, n
                ),
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part."""
    from benchmarks.segmentation_tables import table

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("train", "measure", "shots", "abroad", "norms", "table"))
    parser.add_argument("--set", choices=("clothes", "strokes", "synth"))
    parser.add_argument("--seed", type=int, choices=SEEDS, default=0)
    parser.add_argument("--kind", choices=KINDS, action="append", help="of start, for shots")
    parser.add_argument("--count", type=int, action="append", help="of labelled images, for shots")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cells = Cells("segmentation")
    sets = (given.set,) if given.set else ("clothes", "strokes")
    if given.part == "train":
        for name in sets:
            _train(cells, name, given.seed)
    elif given.part == "measure":
        for name in sets:
            measure(cells, name)
    elif given.part == "shots":
        for name in sets:
            shots(cells, name, given.kind or KINDS, given.count)
    else:
        {"abroad": abroad, "norms": norms, "table": table}[given.part](cells)


def _train(cells: Cells, name: str, seed: int) -> None:
    cells.cell(f"{name}/train/prior/{seed}", lambda: {**prior_start(name, seed)[1], **machine()})
    if name != "synth":
        cells.cell(f"{name}/train/joint/{seed}", lambda: {**joint_start(name, seed)[1], **machine()})


if __name__ == "__main__":
    main()
