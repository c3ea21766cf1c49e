"""The results of the endpoint's benchmarks in Markdown: medians over rounds, ratios within rounds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Values = Mapping[str, Any]
EMPTY = "empty"


def table(values: Values) -> str:
    """Return all tables that there are cells for."""
    parts = [weights(values), crowd(values), replica(values), lookups(values), faults(values), fuzz(values)]
    return "\n\n".join(part for part in parts if part)


def weights(values: Values) -> str:
    """Throughput by size and server, with the endpoint's ratio to each."""
    lines = []
    for size in _sizes(values):
        rounds = _rounds(values, f"weights/{size}")
        for target in (
            name for name in rounds[0] if isinstance(rounds[0][name], dict) and "rate" in rounds[0][name]
        ):
            lines.append(
                f"| {size} | {target} | {_over(rounds, lambda r, t=target: r[t]['rate'], 0)} | "
                f"{_over(rounds, lambda r, t=target: r['endpoint']['rate'] / r[t]['rate'], 2)} | "
                f"{_over(rounds, lambda r, t=target: 100 * r[t]['share'], 0)} |"
            )
    return _table(
        "| weights | server | MB/s, median (min to max) | endpoint / server | reader's share, % |",
        lines,
    )


def crowd(values: Values) -> str:
    """Latency of the smallest size under many clients."""
    rounds = _rounds(values, "weights/crowd")
    lines = []
    for target in (name for name in (rounds[0] if rounds else {}) if name != "load"):
        columns = [
            _over(rounds, lambda r, t=target: r[t]["p50"], 0),
            _over(rounds, lambda r, t=target: r[t]["p99"], 0),
            _over(rounds, lambda r, t=target: r["endpoint"]["p99"] / r[t]["p99"], 2),
            _over(rounds, lambda r, t=target: 100 * r[t]["share"], 0),
        ]
        lines.append(f"| {target} | {' | '.join(columns)} |")
    return _table(
        "| 32 clients, 1 MB | p50, ms | p99, ms | endpoint's p99 / server's | reader's share, % |", lines
    )


def replica(values: Values) -> str:
    """Memory of the replica by size."""
    lines = []
    for size in _sizes(values):
        rounds = _rounds(values, f"weights/{size}")
        lines.append(f"| {size} | {_over(rounds, lambda r: r['replica']['peak'], 0)} |")
    return _table("| weights | peak of the replica's resident memory, MB |", lines)


def lookups(values: Values) -> str:
    """Rates of small answers beside the empty route."""
    rounds = _rounds(values, "lookups/round", separator=" ")
    lines = []
    for name in (name for name in (rounds[0] if rounds else {}) if name != "load"):
        columns = [
            _over(rounds, lambda r, n=name: r[n]["rate"], 0),
            _over(rounds, lambda r, n=name: r[n]["rate"] / r[EMPTY]["rate"], 2),
            _over(rounds, lambda r, n=name: 100 * r[n]["share"], 0),
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return _table("| answer | a second | ratio to the empty route | wrk's share of the cores, % |", lines)


def faults(values: Values) -> str:
    """What clients saw of each fault."""
    lines = []
    for name, cell in values.items():
        if not name.startswith("faults/") or "calls" not in cell:
            continue
        known = ("load", "seconds", "share", "calls", "failed", "failures", "wrong", "tries that failed")
        more = {k: v for k, v in cell.items() if k not in (*known, "resumed", "recovery", "slowest", "p50")}
        lost = len(more.pop("lost versions"))
        columns = [
            f"{cell['seconds']:.0f}",
            cell["calls"],
            cell["failed"],
            cell["wrong"],
            lost,
            sum(cell["tries that failed"].values()),
            cell["resumed"],
            f"{cell['recovery']:.1f}",
            f"{cell['slowest']:.1f}",
            f"{100 * cell['share']:.0f}",
            "; ".join(f"{k}: {_shown(v)}" for k, v in more.items()),
        ]
        lines.append(f"| {name.removeprefix('faults/')} | {' | '.join(map(str, columns))} |")
    return _table(
        "| fault | seconds | calls | failed | wrong bytes | lost versions | tries that failed | resumed | "
        "recovery, s | slowest call, s | clients' share, % | seen |",
        lines,
    )


def fuzz(values: Values) -> str:
    """What became of mutated inputs."""
    lines = []
    for name, cell in values.items():
        if not name.startswith("fuzz/"):
            continue
        columns = [
            cell["inputs"],
            cell["taken"],
            cell["refused"],
            cell["failures"],
            f"{cell['slowest_ms']:.0f}",
            f"{cell['grown_mb']:.0f}",
            ", ".join(f"{status}: {count}" for status, count in cell["answers"].items()),
        ]
        lines.append(f"| {name.removeprefix('fuzz/')} | {' | '.join(map(str, columns))} |")
    return _table(
        "| inputs | number | taken | refused | mishandled | slowest, CPU ms | growth, MB | answers |", lines
    )


def _sizes(values: Values) -> list[str]:
    found = {name.removeprefix("weights/").partition(", round")[0] for name in values if ", round" in name}
    return sorted(
        (s for s in found if s.endswith(" MB") and _rounds(values, f"weights/{s}")),
        key=lambda size: float(size.removesuffix(" MB")),
    )


def _rounds(values: Values, prefix: str, separator: str = ", round ") -> list[dict[str, Any]]:
    return [value for name, value in values.items() if name.startswith(prefix + separator)]


def _over(rounds: Sequence[dict[str, Any]], take: Callable[[dict[str, Any]], float], digits: int) -> str:
    numbers = [take(value) for value in rounds]
    low, middle, high = min(numbers), statistics.median(numbers), max(numbers)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(v)}" for k, v in value.items())
    return str(value)


def _table(head: str, lines: list[str]) -> str:
    rule = "|" + "---|" * (head.count("|") - 1)
    return "\n".join([head, rule, *lines]) if lines else ""
