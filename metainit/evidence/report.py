"""Evidence for people: a table, a plot of the curves, and a strip of pictures of one task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from metainit.checkpoint import write_atomically
from metainit.evidence.scales import scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metainit.evidence.record import Curve, EvidenceRecord

CANDIDATE = ("#c2410c", "o")
SOURCES = (("#7c3aed", "s"), ("#0369a1", "D"), ("#0f766e", "^"), ("#be185d", "v"), ("#4d7c0f", "P"))
"""Colour and marker of learned starts; controls take greys, so that they are told apart in print too."""
CONTROLS = (("0.15", "-"), ("0.30", "--"), ("0.45", "-."), ("0.25", ":"), ("0.55", "-"), ("0.60", "--"))
"""Grey and line of the controls that are drawn: more lines than that nobody can tell apart."""
UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Format -> what its metadata leave out: what differs from run to run."""


def text_table(record: EvidenceRecord) -> str:
    """Return a table with one line a start and one column a number of steps, best starts first."""
    scale = scale_of(record.metric)
    rank = {"candidate": 0, "source": 1, "control": 2}
    order = sorted(record.curves, key=lambda c: (rank[c.role], -c.mean[-1]))
    width = max(len(c.source) for c in order)
    head = f"{'start'.ljust(width)}  " + "  ".join(f"{s:>13} steps" for s in record.steps)
    lines = [head, "-" * len(head)]
    for curve in order:
        cells = [
            f"{scale.text(mean, unit=False)} [{scale.text(low, unit=False, fewer=1)}, "
            f"{scale.text(high, unit=False, fewer=1)}]".rjust(19)
            for mean, low, high in zip(curve.mean, curve.low, curve.high, strict=True)
        ]
        lines.append(f"{curve.source.ljust(width)}  " + "  ".join(cells))
    within = f" in {scale.unit}" if scale.unit else ""
    counts = ", ".join(sorted({f"{len(c.values)} for {c.role}s" for c in record.curves}))
    lines.append(
        f"{record.metric}{within}, mean [95 % interval] over {_tasks(record)} and seeds "
        f"({counts}); without a routine of its own a start has its best optimizer and "
        "step size for each number of steps"
    )
    lines += [f"left out: {reason}" for reason in record.left_out.values()]
    lines += [
        f"{name} was learned on other data ({data}): it may have been trained on some of these tasks"
        for name, data in record.other_data.items()
    ]
    if record.headline is not None:
        h = record.headline
        lines.append(
            f"after {h.steps} steps: {scale.text(h.value)} against {scale.text(h.control_value)} of the best "
            f"control ({h.control}): {scale.text(h.gain, signed=True)} "
            f"[{scale.text(h.low, signed=True, unit=False)}, {scale.text(h.high, signed=True, unit=False)}]"
        )
    return "\n".join(lines)


def _tasks(record: EvidenceRecord) -> str:
    tasks = f"{len(record.task_ids)} held-out tasks"
    if record.groups == len(record.task_ids):
        return tasks
    return f"{tasks} in {record.groups} group{'' if record.groups == 1 else 's'}"


def plot_curves(record: EvidenceRecord, path: Path) -> None:
    """Write a plot of the curves with their intervals: all learned starts, and the best of the controls."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    drawn, more = _shown_controls(record)
    for curve, (grey, style) in zip(drawn, CONTROLS, strict=False):
        axes.plot(record.steps, curve.mean, style, color=grey, label=curve.source)
        axes.fill_between(record.steps, curve.low, curve.high, color="0.6", alpha=0.12, linewidth=0)
    if more:
        axes.plot([], [], " ", label=f"{more} more in the table")
    sources = iter(cycle(SOURCES))
    for curve in sorted(record.curves, key=lambda c: c.role):
        if curve.role == "control":
            continue
        colour, marker = CANDIDATE if curve.role == "candidate" else next(sources)
        style = "-" if curve.role == "candidate" else "--"
        axes.plot(
            record.steps, curve.mean, style, marker=marker, color=colour, linewidth=2, label=curve.source
        )
        axes.fill_between(record.steps, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
    if max(record.steps) > 50:
        axes.set_xscale("symlog", linthresh=1)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("adaptation steps")
    scale = scale_of(record.metric)
    axes.set_ylabel(scale.named(record.metric))
    axes.set_ylim(bottom=max(0.0, min(min(c.mean) for c in record.curves) - scale.margin))
    axes.set_title(f"{_tasks(record)}, 95 % intervals", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    _write(figure, path)


def _shown_controls(record: EvidenceRecord) -> tuple[list[Curve], int]:
    """Return the controls that are drawn, best first, and how many are not: the headline's is among them."""
    controls = sorted((c for c in record.curves if c.role == "control"), key=lambda c: -sum(c.mean))
    named = record.headline.control if record.headline is not None else ""
    best = sorted(controls, key=lambda c: c.source != named)[: len(CONTROLS)]
    return [c for c in controls if c in best], len(controls) - len(best)


def plot_reconstructions(
    rows: Mapping[str, Sequence[Tensor]],
    captions: Mapping[str, Sequence[str]],
    target: Tensor,
    steps: Sequence[int],
    path: Path,
) -> None:
    """Write a strip of pictures: the target, and what each start gives after each number of steps.

    Args:
        rows: start -> pictures ``(height, width, channels)`` in [0, 1], one for each of `steps`.
        captions: start -> what to write below each picture.
        target: the truth.
        steps: numbers of adaptation steps.
        path: where to write; the suffix chooses the format.
    """
    from matplotlib.figure import Figure

    aspect = target.shape[1] / target.shape[0]
    width = 1.6 * max(1.0, aspect**0.5)
    size = (width * (len(steps) + 1) + 0.4, (width / aspect + 0.35) * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(steps) + 1, squeeze=False)
    for line, (name, images) in zip(grid, rows.items(), strict=True):
        titles = ["target", *(f"{s} step{'' if s == 1 else 's'}" for s in steps)]
        labels = ["", *captions[name]]
        for axes, image, title, label in zip(line, [target, *images], titles, labels, strict=True):
            pixels = image.detach().cpu().float().numpy()
            axes.imshow(pixels[..., 0] if pixels.shape[-1] == 1 else pixels, cmap="gray", vmin=0, vmax=1)
            axes.set_title(title, fontsize=8)
            axes.set_xlabel(label, fontsize=8)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, fontsize=9)
    _write(figure, path)


def _write(figure: Figure, path: Path) -> None:
    import io

    from matplotlib import rc_context

    buffer = io.BytesIO()
    # No date and no random names in the file: the same evidence gives the same bytes.
    kind = path.suffix.lstrip(".").lower() or "png"
    with rc_context({"svg.hashsalt": "metainit"}):
        figure.savefig(buffer, format=kind, dpi=130, metadata=UNDATED.get(kind, {}))
    write_atomically(path, buffer.getvalue())
