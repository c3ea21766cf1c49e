"""What `benchmarks.predicted` found, as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from metainit.errors import DataError
from metainit.evidence.statistics import bootstrap, paired_bootstrap

Values = npt.NDArray[np.float64]
QUANTILES = (10, 50, 90)
CANDIDATE = "predicted"
NOISE = 2.0
"""Standard deviations of the difference of two draws that count as noise."""


def accuracies(cells: Mapping[str, Any], task: str, kind: str) -> dict[str, Values]:
    """Return each start's accuracy ``(seeds, architectures, steps)``.

    Raises:
        DataError: the seeds were measured on different architectures.
    """
    found: dict[str, list[Any]] = {}
    names: set[tuple[str, ...]] = set()
    for key in sorted(cells):
        if key.startswith(f"{task}/run/{kind}/"):
            found.setdefault(key.split("/")[3], []).append(cells[key]["accuracy"])
            names.add(tuple(cells[key]["architectures"]))
    if len(names) > 1:
        raise DataError(f"{task}/run/{kind}: cells are of different architectures; measure them again")
    return {name: np.array(values) for name, values in found.items()}


def table(cells: Mapping[str, Any], task: str, steps: Sequence[int]) -> str:
    """Return the tables of a task: one for each kind of architecture, and one of the probe."""
    kinds = list(dict.fromkeys(key.split("/")[2] for key in cells if key.startswith(f"{task}/run/")))
    parts = [_kind_table(cells, task, kind, steps) for kind in kinds]
    rows = [row for kind in kinds for row in _probe_rows(cells, task, kind, steps)]
    if rows:
        head = [
            "| kind | steps | networks | predicted kept | accuracy kept - default, least | "
            "worse beyond noise | gradients | seconds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        parts.append("\n".join([f"### {task}: with the probe", "", *head, *rows]))
    return "\n\n".join(parts)


def _kind_table(cells: Mapping[str, Any], task: str, kind: str, steps: Sequence[int]) -> str:
    values = accuracies(cells, task, kind)
    mine = values.get(CANDIDATE)
    seeds, networks = next(iter(values.values())).shape[:2]
    quantiles = " / ".join(map(str, QUANTILES))
    lines = [
        f"### {task}: {networks} {kind} architectures, {seeds} seeds",
        "",
        f"| start | steps | step size | accuracy [95 %] | least | {quantiles} % | predicted - this [95 %] | "
        "predicted better |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for at, step in enumerate(steps):
        for name in sorted(values, key=lambda n: -values[n][:, :, at].mean()):
            own = values[name][:, :, at]
            interval, of_network = bootstrap(own), own.mean(0)
            chosen = cells.get(f"{task}/choice/{kind}/{name}", {"step_sizes": {}, "inside": True})
            rate = chosen["step_sizes"].get(str(step), chosen["step_sizes"].get(step))
            size = "-" if rate is None else f"{rate:g}" + ("" if chosen["inside"] else " (edge)")
            gain = share = "-"
            if mine is not None and name != CANDIDATE:
                difference = paired_bootstrap(mine[:, :, at], own)
                gain = f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
                share = f"{(mine[:, :, at].mean(0) > of_network).mean():.0%}"
            spread = " / ".join(f"{q:.3f}" for q in np.percentile(of_network, QUANTILES))
            lines.append(
                f"| {name} | {step} | {size} | {interval.mean:.3f} "
                f"[{interval.low:.3f}, {interval.high:.3f}] | {own.min():.3f} | {spread} | {gain} | {share} |"
            )
    return "\n".join(lines)


def _probe_rows(cells: Mapping[str, Any], task: str, kind: str, steps: Sequence[int]) -> list[str]:
    """Return a row for each number of steps: what the kept starts reach, of the seeds that were probed."""
    verdicts = {
        int(key.rsplit("/", 1)[1]): cells[key]
        for key in sorted(cells)
        if key.startswith(f"{task}/probe/{kind}/")
    }
    values = accuracies(cells, task, kind)
    if not verdicts or not {CANDIDATE, "default"} <= set(values):
        return []
    everything = [verdict for networks in verdicts.values() for verdict in networks]
    kept = sum(verdict["kept"] == CANDIDATE for verdict in everything)
    gradients, seconds = (np.mean([v[cost] for v in everything]) for cost in ("gradients", "seconds"))
    rows = []
    for at, step in enumerate(steps):
        if step == 0:
            continue
        mine, default = values[CANDIDATE][:, :, at], values["default"][:, :, at]
        gains = [
            mine[seed, number] - default[seed, number] if verdict["kept"] == CANDIDATE else 0.0
            for seed, networks in verdicts.items()
            for number, verdict in enumerate(networks)
        ]
        limits = [
            -NOISE * np.hypot(_deviation(mine[:, number]), _deviation(default[:, number]))
            for networks in verdicts.values()
            for number in range(len(networks))
        ]
        worse = sum(gain < min(limit, 0.0) for gain, limit in zip(gains, limits, strict=True))
        rows.append(
            f"| {kind} | {step} | {len(everything)} | {kept} | {np.mean(gains):+.3f}, {min(gains):+.3f} | "
            f"{worse} | {gradients:.0f} | {seconds:.1f} |"
        )
    return rows


def _deviation(draws: Values) -> float:
    """Return the standard deviation of one draw's accuracy on a network."""
    return float(draws.std(ddof=1)) if len(draws) > 1 else 0.0
