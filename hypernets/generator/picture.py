"""Pictures of what a generator gives: rows of starts beside each other, before any step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from metainit.domains.base import Domain, TaskBatch

SIDE = 1.1
"""Inches of one picture."""


def draw_samples(rows: Mapping[str, Tensor], domain: Domain, tasks: TaskBatch, path: Path) -> None:
    """Write a picture: one column a task, its truth on top, and a row for each start.

    Args:
        rows: name -> what the start renders of each task, ``(tasks, ...)``.
        domain: turns renderings into pictures.
        tasks: what they are of.
        path: its suffix chooses the format.
    """
    from matplotlib.figure import Figure

    queries = [{k: v[0].cpu() for k, v in task.query.items()} for task in tasks]
    pictures = {"truth": [domain.target(query) for query in queries]}
    pictures |= {
        name: [domain.picture(one.cpu(), query) for one, query in zip(shown, queries, strict=True)]
        for name, shown in rows.items()
    }
    figure = Figure(figsize=(SIDE * (len(queries) + 1.2), SIDE * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), len(queries), squeeze=False)
    for line, (name, shown) in zip(grid, pictures.items(), strict=True):
        for axes, one in zip(line, shown, strict=True):
            # A grey picture has no third axis for matplotlib.
            axes.imshow(np.asarray(one.squeeze(-1)), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
