"""What `benchmarks.generated` found, as markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from metainit.evidence.statistics import Values, bootstrap, paired_bootstrap

OURS = ("mean", "sample", "one_step")
KEPT = ("right", "variance", "variance_per_number", "picture_variance")


def tables(cells: Mapping[str, Any]) -> str:
    """Return all tables."""
    parts = [images(cells), observation(cells), tasks(cells), sampling(cells)]
    return "\n\n".join(part for part in parts if part)


def images(cells: Mapping[str, Any]) -> str:
    """Return what samples of a class are like: the mean over seeds, and each seed."""
    rows = []
    for name, found in _by_name(cells, "images").items():
        if name in ("facts", "judge"):
            continue
        seeds = list(found.values())
        numbers = [_spread([one[key] for one in seeds]) for key in KEPT]
        closer = _spread([one["copies"]["closer"] for one in seeds])
        chance = (
            max(one["copies"]["p_closer"] for one in seeds),
            min(one["copies"]["p_closer"] for one in seeds),
        )
        distance = np.mean([[one["copies"][k] for k in ("samples", "held_out")] for one in seeds], 0)
        refused = sum(one["refused"] for one in seeds)
        rows.append(
            f"| {name} | {' | '.join(numbers)} | {closer} ({chance[1]:.2g} to {chance[0]:.2g}) | "
            f"{distance[0]:.2f} / {distance[1]:.2f} | {refused} | {len(seeds)} |"
        )
    if not rows:
        return ""
    head = (
        "| | right class | variance of the zoo's | per number | of pictures | nearer than held-out fits (p) "
        "| distance / held-out | refused | seeds |\n|---|---|---|---|---|---|---|---|---|"
    )
    return "\n".join(["### images", "", head, *rows])


def observation(cells: Mapping[str, Any]) -> str:
    """Return steps to the target under Adam, and the quality after the prior's routine."""
    found = _by_name(cells, "observation")
    starts = [n for n in found if n not in ("facts", "wall")]
    if not starts:
        return ""
    lines = [
        "### observation",
        "",
        "| start | steps to 25 dB [95 %] | mean - this [95 %] | dB at 0 / 1 / 2 / 5 "
        "| after the routine [95 %] | mean - this |",
        "|---|---|---|---|---|---|",
    ]
    order = sorted(starts, key=lambda n: float(np.mean(_stacked(found[n], "crossings"))))
    first = {key: _stacked(found["mean"], key) for key in ("crossings", "routine")}
    for name in order:
        steps, routine = _stacked(found[name], "crossings"), _stacked(found[name], "routine")
        curve = np.mean([one["curve"][:6] for one in found[name].values()], 0)
        shown = " / ".join(f"{curve[i]:.1f}" for i in (0, 1, 2, 5))
        lines.append(
            f"| {name} | {_interval(steps)} | {_gain(first['crossings'], steps, name)} | {shown} | "
            f"{_interval(routine)} | {_gain(first['routine'], routine, name)} |"
        )
    for seed, wall in found.get("wall", {}).items():
        lines.append(f"\nwall, seed {seed}: {wall}")
    return "\n".join(lines)


def tasks(cells: Mapping[str, Any]) -> str:
    """Return accuracies on unseen tasks after some steps."""
    found = _by_name(cells, "tasks")
    starts = [n for n in found if n != "facts"]
    if not starts:
        return ""
    keys = ("accuracy@0", "accuracy@10", "accuracy@50", "routine")
    lines = [
        "### tasks",
        "",
        "| start | " + " | ".join(f"{key} | mean - this" for key in keys) + " |",
        "|" + "---|" * (1 + 2 * len(keys)),
    ]
    first = {key: _stacked(found["mean"], key) for key in keys}
    for name in sorted(starts, key=lambda n: -float(np.mean(_stacked(found[n], "accuracy@10")))):
        values = {key: _stacked(found[name], key) for key in keys}
        cells_ = [
            f"{_interval(100 * values[k])} | {_gain(100 * first[k], 100 * values[k], name)}" for k in keys
        ]
        lines.append(f"| {name} | {' | '.join(cells_)} |")
    return "\n".join(lines)


def sampling(cells: Mapping[str, Any]) -> str:
    """Return how much faster many networks are at once."""
    rows = [
        f"| {name.split('/')[1]} | {one['parameters']:,} | {one['together']} | {one['apart']} "
        f"| {one['ratio']} | {min(one['ratios'])} to {max(one['ratios'])} |"
        for name, one in cells.items()
        if name.startswith("sampling/")
    ]
    head = (
        "| denoiser | weights | 256 at once, s | one by one, s | ratio | rounds |\n|---|---|---|---|---|---|"
    )
    return "\n".join(["### sampling", "", head, *rows]) if rows else ""


def _by_name(cells: Mapping[str, Any], part: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for key, value in sorted(cells.items()):
        head, _, rest = key.partition("/")
        if head == part:
            name, _, seed = rest.rpartition("/")
            found.setdefault(name, {})[seed] = value
    return found


def _stacked(found: Mapping[str, Any], key: str) -> Values:
    return np.array([one[key] for one in found.values()], dtype=float)


def _interval(values: Values) -> str:
    found = bootstrap(values)
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _gain(first: Values, values: Values, name: str) -> str:
    if name == "mean" or first.shape != values.shape:
        return "-"
    found = paired_bootstrap(first, values, paired_seeds=True)
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _spread(values: Sequence[float], text: Callable[[float], str] = "{:.3f}".format) -> str:
    return f"{text(float(np.mean(values)))} ({text(min(values))} to {text(max(values))})"
