"""Pictures of what a generator gives: rows of starts beside each other, before any step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from metainit.domains.base import Domain, TaskBatch
from metainit.evidence.scales import scale_of

SIDE = 1.1
"""Inches of one picture."""


def draw_samples(rows: Mapping[str, Tensor], domain: Domain, tasks: TaskBatch, path: Path) -> None:
    """Write a picture: one column a task, its truth on top, and a row for each start before any step.

    Below each rendering stands the domain's metric, measured on the task.

    Args:
        rows: name -> what the start renders of each task, ``(tasks, ...)``.
        domain: turns renderings into pictures.
        tasks: what they are of.
        path: its suffix chooses the format.
    """
    from matplotlib.figure import Figure

    queries = [{k: v[0].cpu() for k, v in task.query.items()} for task in tasks]
    scale = scale_of(domain.metric)
    pictures = {"truth": [domain.target(query) for query in queries]}
    captions = {"truth": [""] * len(queries)}
    for name, rendered in rows.items():
        pairs = [(one.cpu(), query) for one, query in zip(rendered, queries, strict=True)]
        pictures[name] = [domain.picture(one, query) for one, query in pairs]
        values = [domain.metrics(one, query, [domain.metric])[domain.metric] for one, query in pairs]
        captions[name] = [scale.caption(domain.metric, value) for value in values]
    figure = Figure(figsize=(SIDE * (len(queries) + 1.2), SIDE * len(pictures)), layout="constrained")
    grid = figure.subplots(len(pictures), len(queries), squeeze=False)
    for line, (name, shown) in zip(grid, pictures.items(), strict=True):
        for axes, one, caption in zip(line, shown, captions[name], strict=True):
            # A grey picture has no third axis for matplotlib.
            axes.imshow(np.asarray(one.squeeze(-1)), cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(caption, fontsize=7)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    figure.suptitle("starts of held-out tasks, before any adaptation step", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
