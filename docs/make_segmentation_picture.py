"""Make the picture of the page about segmentation: `python docs/make_segmentation_picture.py --start PRIOR`.

PRIOR is what `metainit train seg-synth` made: a checkpoint file, or its name in the registry. Where its card
has no optimizer that takes over after the learned steps, the recipe's does.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch
from skimage import data, filters
from torch import Tensor

from metainit import init_, load
from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine
from metainit.domains.base import TaskBatch
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.evidence.curves import Bench, Start, best_routines, weights_of
from metainit.initialization import Prior
from metainit.meta.state import TaskLosses
from metainit.networks import build, function_of
from pipelines.recipe import load_recipe

STEPS = (0, 1, 5, 20)
SIDE, SHOTS = 64, 5
SHOWN = (3, 11)
"""Numbers of the two synthesised test tasks that are shown."""
PICTURE = Path(__file__).parent / "pictures" / "segmentation.png"
ORDINARY = ("default", "kaiming", "orthogonal", "lsuv")
TUNING = 2


def coins() -> tuple[Tensor, Tensor]:
    """Return tiles of the photograph of coins, a coin in each, and masks by a threshold on the local mean."""
    photograph = data.coins().astype(np.float32) / 255
    marked = filters.gaussian(photograph, 2) > filters.threshold_local(filters.gaussian(photograph, 2), 151)
    corners = [(row, column) for row in (10, 80, 150, 225) for column in (20, 80, 200, 260)]
    cut = [(slice(r, r + SIDE), slice(c, c + SIDE)) for r, c in corners]
    images = torch.stack([torch.tensor(photograph[s]).expand(3, -1, -1) for s in cut])
    return images, torch.stack([torch.tensor(marked[s]).long() for s in cut])


def tasks(domain: SegmentationDomain) -> dict[str, TaskBatch]:
    """Return what is shown: two synthesised tasks of the test split, and the coins."""
    shown = {}
    for number in SHOWN:
        task = domain.tasks(0, number, 1, "test")
        shown[f"synthesised: {task.ids[0].split('-')[0]}"] = task
    images, labels = coins()
    support = {"images": images[None, :SHOTS], "labels": labels[None, :SHOTS]}
    query = {"images": images[None, SHOTS : SHOTS + 5], "labels": labels[None, SHOTS : SHOTS + 5]}
    shown["photograph: coins"] = TaskBatch(support, query, {}, ("coins",))
    return shown


def main() -> None:
    """Adapt both starts to every task and draw what they mark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--start", required=True, help="the prior: a checkpoint file or a name in the registry"
    )
    given = parser.parse_args()
    prior = load(given.start)
    assert isinstance(prior, Prior) and prior.card.network is not None and prior.card.routine is not None
    network = build(prior.card.network)
    domain = SegmentationDomain(
        SegmentationConfig(source="synthesised", height=SIDE, width=SIDE, shots=SHOTS)
    )
    tuning = domain.tasks(0, 0, TUNING, "validation")
    bench = Bench(network, domain)
    continuation = prior.card.routine.continuation or load_recipe("seg-synth").continuation
    ours = prior.card.routine.model_copy(update={"continuation": continuation})
    rows = [("prior", weights_of(prior.init_(build(prior.card.network))), ours, prior.checkpoint.step_sizes)]
    scored = []
    for name in ORDINARY:
        filled = init_(build(prior.card.network), name, seed=0, example_inputs=domain.example_inputs())
        start = Start(name, weights_of(filled))
        routine = best_routines(bench, [start], tuning, [STEPS[-1]])[STEPS[-1]]
        reached = bench.curve(start, routine, tuning, [STEPS[-1]])["iou"].mean()
        scored.append((float(reached), name, start.weights, routine))
    _, name, weights, routine = max(scored, key=lambda s: s[0])
    rows.append((name, weights, routine, {}))
    draw(tasks(domain), rows, domain, network)


def draw(
    shown: dict[str, TaskBatch],
    rows: list[tuple[str, dict[str, Tensor], AdaptationRoutine, dict[str, Tensor]]],
    domain: SegmentationDomain,
    network: torch.nn.Module,
) -> None:
    """Write the picture: two rows a task, one for each start."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = ["support (one of 5)", "query", "truth", *(f"{s} steps" for s in STEPS)]
    figure, axes = pyplot.subplots(
        len(shown) * len(rows),
        len(titles),
        figsize=(10.5, 1.62 * len(shown) * len(rows)),
        layout="constrained",
    )
    function = function_of(network)
    for number, (what, task) in enumerate(shown.items()):
        query = {k: v[0] for k, v in task.query.items()}
        one = {k: v[:1] for k, v in query.items()}
        first = {k: v[0, :1] for k, v in task.support.items()}
        for place, (name, weights, routine, sizes) in enumerate(rows):
            line = axes[number * len(rows) + place]
            line[0].set_ylabel(f"{what}\n{name}", fontsize=7)
            cells = [
                (domain.target(first), ""),
                (one["images"][0].permute(1, 2, 0), ""),
                (domain.target(one), ""),
            ]
            losses = TaskLosses(domain, function, task, batched=False)
            for step, adapted in enumerate(trajectory(losses, weights, routine, sizes, STEPS[-1])):
                if step in STEPS:
                    with torch.no_grad():
                        rendered = domain.render(function(adapted), query, {})
                    overlap = domain.metrics(rendered, query, ["iou"])["iou"]
                    cells.append((domain.picture(rendered[:1], one), f"IoU {overlap:.2f}"))
            for axis, (picture, caption) in zip(line, cells, strict=True):
                axis.imshow(picture.numpy())
                axis.set_xticks([])
                axis.set_yticks([])
                axis.set_xlabel(caption, fontsize=7)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8)
    figure.savefig(PICTURE, dpi=80)


if __name__ == "__main__":
    main()
