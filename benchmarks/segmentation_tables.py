"""The tables of the segmentation benchmark, from its cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.cells import Cells
from benchmarks.segmentation_starts import SEEDS, batch_of
from metainit.evidence.statistics import Interval, bootstrap, paired_bootstrap

Values = Mapping[str, Any]


def table(cells: Cells) -> None:
    """Print the tables for RESULTS.md; what was not measured is left out."""
    v = cells.values
    for name in ("clothes", "strokes"):
        _five_shots(v, name)
        _curve(v, name)
    _abroad(v)
    _norms(v)
    _training(v)


def _five_shots(v: Values, name: str) -> None:
    groups = batch_of(name, "test", 64).groups
    print(f"\n### {name}, five shots: {len(groups)} tasks of {len(set(groups))} classes\n")
    print("| start | at most 5 steps | its optimum |\n|---|---|---|")
    found = {}
    for kind in ("prior", "joint", "scratch", "joint-batch"):
        row = []
        for limit in ("5", "40"):
            values = _stack(v, f"{name}/{kind}/{limit}")
            if values is None:
                row.append("not measured")
                continue
            found[kind, limit] = values
            row.append(
                f"{_cell(bootstrap(values, groups=groups))} ({_setting(v[f'{name}/chosen/{kind}'][limit])})"
            )
        print(f"| {kind} | {' | '.join(row)} |")
    if f"{name}/masks" in v:
        masks = 100 * np.array([v[f"{name}/masks"]["iou"]])
        print(f"| copied masks | {_cell(bootstrap(masks, groups=groups))} | |")
    for kind in ("joint", "scratch", "joint-batch"):
        for limit in ("5", "40"):
            if ("prior", limit) in found and (kind, limit) in found:
                gain = paired_bootstrap(found["prior", limit], found[kind, limit], groups=groups)
                print(f"prior - {kind}, limit {limit}: {_gain(gain)}")


def _curve(v: Values, name: str) -> None:
    counts = sorted({int(k.split("/")[4]) for k in v if k.startswith(f"{name}/prior/5/shots/")})
    if not counts:
        return
    groups = batch_of(name, "test", 32).groups
    print(f"\n### {name}, by shots: {len(groups)} tasks of {len(set(groups))} classes\n")
    print(
        "| shots | prior, 5 steps | joint, 5 steps | difference "
        "| prior, optimum | joint, optimum | difference |"
    )
    print("|---|---|---|---|---|---|---|")
    for count in counts:
        row = []
        for limit in ("5", "40"):
            pair = [_stack(v, f"{name}/{kind}/{limit}/shots/{count}") for kind in ("prior", "joint")]
            if pair[0] is None or pair[1] is None:
                row += ["not measured"] * 3
                continue
            row += [_cell(bootstrap(p, groups=groups)) for p in pair if p is not None]
            row.append(_gain(paired_bootstrap(pair[0], pair[1], groups=groups)))
        print(f"| {count} | {' | '.join(row)} |")


def _abroad(v: Values) -> None:
    print("\n### synthesised tasks' prior on other images, five shots, at most 20 steps\n")
    print("| data | prior | scratch | difference | copied masks | seconds |\n|---|---|---|---|---|---|")
    for name in ("cells", "membranes", "objects"):
        ours, other = _stack(v, f"{name}/prior"), _stack(v, f"{name}/scratch")
        if ours is None or other is None or f"{name}/masks" not in v:
            print(f"| {name} | not measured | | | | |")
            continue
        groups = batch_of(name, "test", 64).groups
        masks = bootstrap(100 * np.array([v[f"{name}/masks"]["iou"]]), groups=groups)
        print(
            f"| {name} | {_cell(bootstrap(ours, groups=groups))} ({_setting(v['synth/chosen/prior'])}) | "
            f"{_cell(bootstrap(other, groups=groups))} ({_setting(v[f'{name}/chosen/scratch'])}) | "
            f"{_gain(paired_bootstrap(ours, other, groups=groups))} | {_cell(masks)} | "
            f"{v.get(f'{name}/seconds', 'not measured')} |"
        )


def _norms(v: Values) -> None:
    pair = [_stack(v, f"clothes/norm/{norm}") for norm in ("batch", "group")]
    if pair[0] is None or pair[1] is None:
        print("\nnorms: not measured")
        return
    groups = batch_of("clothes", "test", 64).groups
    shown = [_cell(bootstrap(p, groups=groups)) for p in pair if p is not None]
    gain = paired_bootstrap(pair[0], pair[1], groups=groups)
    print(f"\nclothes, learned routine: batch {shown[0]}, group {shown[1]}, batch - group {_gain(gain)}")


def _training(v: Values) -> None:
    for name in ("clothes", "strokes", "synth"):
        for kind in ("prior", "joint"):
            cost = [v.get(f"{name}/train/{kind}/{seed}", {}).get("cpu_seconds") for seed in SEEDS]
            print(f"training {name} {kind}: {cost} CPU seconds")


def _stack(v: Values, prefix: str) -> np.ndarray | None:
    """Return ``(seeds, tasks)`` in points of overlap, or None where a seed is missing."""
    keys = [f"{prefix}/{seed}" for seed in SEEDS]
    return 100 * np.array([v[k]["iou"] for k in keys]) if all(k in v for k in keys) else None


def _setting(best: Mapping[str, Any]) -> str:
    return f"{best['start']}, {best['optimizer']} {best['rate']:.1g}, {best['steps']} steps"


def _cell(interval: Interval) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _gain(interval: Interval) -> str:
    return f"{interval.mean:+.1f} [{interval.low:+.1f}, {interval.high:+.1f}]"
