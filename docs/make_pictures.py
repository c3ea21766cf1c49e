"""Make the pictures of the README and the user guide: `python docs/make_pictures.py`.

Trains the recipe `image-photos` in this process, measures it beside its controls, and draws. Everything
that is shown is synthesised, or comes from photographs that ship with scikit-image and scikit-learn. A run
that was interrupted goes on where it stopped; one that has finished is only measured and drawn again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from metainit.card import Spec
from metainit.checkpoint import write_atomically
from metainit.domains.registry import build_domain
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.domains.structures import KINDS
from metainit.evidence.curves import Bench, Start, best_routines, weights_of
from metainit.evidence.measuring import Measured, held_out
from metainit.initialization import Prior, from_file, load
from metainit.networks import build
from pipelines.preparation import prepare
from pipelines.prior.evidence import measure_prior, shown_task
from pipelines.prior.preparation import PreparedPrior
from pipelines.recipe import load_recipe
from pipelines.tracking import ListSink
from pipelines.train import train

PICTURES = Path(__file__).parent / "pictures"
RECIPE = "image-photos"
MARK = "<!-- evidence.txt -->"
KNOWN_SHARE = 0.3
MASKED_STEPS = (0, 1, 2)
MASKED_TASK = 5
SYNTHESISED_SIDE = 80
SHOWN_STARTS = ("default", "kaiming", "orthogonal", "siren", "siren_scaled", "lsuv")


def main() -> None:
    """Train, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("build/pictures"), help="folder of the training run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument(
        "--only", choices=("evidence", "masked", "starts", "synthesis"), help="draw only these"
    )
    arguments = parser.parse_args()
    if arguments.only in (None, "synthesis"):
        draw_synthesis()
    if arguments.only == "synthesis":
        return
    prepared = prepare(load_recipe(RECIPE, arguments.settings))
    assert isinstance(prepared, PreparedPrior)
    checkpoint = train(
        prepared.recipe, arguments.run, sink=ListSink(), prepared=prepared, progress=_tell
    ).checkpoint
    prior = from_file(checkpoint)
    assert isinstance(prior, Prior)
    if arguments.only in (None, "masked"):
        draw_masked(prepared, prior)
    if arguments.only in (None, "starts"):
        draw_starts(prepared, prior)
    if arguments.only in (None, "evidence"):
        draw_evidence(prepared, checkpoint)


def draw_evidence(prepared: PreparedPrior, checkpoint: Path) -> None:
    """Measure the prior beside its controls; write the table, the curves and one typical task."""
    evidence = measure_prior(prepared, checkpoint, _note)
    write_atomically(PICTURES / "evidence.txt", (evidence.table() + "\n").encode())
    quote_table(PICTURES.parent / "evidence.md", evidence.table())
    evidence.plot(PICTURES / "evidence.png")
    task = shown_task(prepared, evidence)
    evidence.plot_reconstructions(PICTURES / "reconstructions.png", prepared.domain, task)


def quote_table(page: Path, table: str) -> None:
    """Put the measured table into the guide, in place of the one that stands there."""
    before, rest = page.read_text().split(MARK, 1)
    after = rest.split("```", 2)[2] if rest.lstrip().startswith("```") else rest
    write_atomically(page, f"{before}{MARK}\n\n```text\n{table}\n```{after}".encode())


def draw_masked(prepared: PreparedPrior, prior: Prior) -> None:
    """Draw fits to some of an image's pixels, from the prior and from SIREN's scheme with a tuned step."""
    spec = prior.card.network
    assert spec is not None
    partly = build_domain(_with(prepared.recipe.domain, points=None, observed=KNOWN_SHARE))
    network = build(spec)
    learned = Start(
        "prior", weights_of(prior.init_(network)), prior.card.routine, prior.checkpoint.step_sizes
    )
    ordinary = Start("siren", weights_of(load("siren").init_(network, seed=0)))
    tuned = best_routines(Bench(network, partly), [ordinary], held_out(partly, "validation", 8), MASKED_STEPS)
    task = held_out(partly, "test", MASKED_TASK + 1)[MASKED_TASK : MASKED_TASK + 1]
    truth = partly.target({k: v[0] for k, v in task.query.items()})
    seen = truth * task.support["known"][0].reshape(*truth.shape[:2], 1)
    figure = Figure(figsize=(1.6 * (len(MASKED_STEPS) + 2) + 0.4, 3.9), layout="constrained")
    grid = figure.subplots(2, len(MASKED_STEPS) + 2)
    for line, measured in zip(grid, (Measured(learned, {}), Measured(ordinary, tuned)), strict=True):
        images, captions = measured.renderings(network, partly, task, MASKED_STEPS)
        titles = [
            f"{KNOWN_SHARE:.0%} of the pixels",
            *(f"{s} step{'' if s == 1 else 's'}" for s in MASKED_STEPS),
            "the whole image",
        ]
        for axes, image, title, caption in zip(
            line, [seen, *images, truth], titles, ["", *captions, ""], strict=True
        ):
            _show(axes, image, title, caption)
        line[0].set_ylabel(measured.start.name, fontsize=9)
    figure.savefig(PICTURES / "masked.png", dpi=130, metadata={"Software": None})


def draw_starts(prepared: PreparedPrior, prior: Prior) -> None:
    """Draw what a network shows right after each start, before any step."""
    spec = prior.card.network
    assert spec is not None
    domain = prepared.domain
    shared = held_out(domain, "test", 1).shared
    images = {}
    for name in SHOWN_STARTS:
        network = load(name).init_(build(spec), seed=0, example_inputs=domain.example_inputs())
        with torch.no_grad():
            images[name] = domain.render(network, {}, shared)
    with torch.no_grad():
        images["the prior"] = domain.render(prior.init_(build(spec)), {}, shared)
    figure = Figure(figsize=(1.45 * len(images), 1.75), layout="constrained")
    for axes, (name, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        _show(axes, image, name)
    figure.savefig(PICTURES / "starts.png", dpi=130, metadata={"Software": None})


def draw_synthesis() -> None:
    """Draw two synthesised tasks of each kind of structure, three images of each, plain and marked."""
    figure = Figure(figsize=(9.6, 0.86 * len(KINDS)), layout="constrained")
    grid = figure.subplots(len(KINDS), 2)
    for line, kind in zip(grid, KINDS, strict=True):
        config = SegmentationConfig(
            source="synthesised", structures=(kind,), height=SYNTHESISED_SIDE, width=SYNTHESISED_SIDE,
            shots=1, queries=3,
        )  # fmt: skip
        domain = SegmentationDomain(config)
        for axes, task in zip(line, domain.tasks(0, 0, 2, "test"), strict=True):
            query = {k: v[0] for k, v in task.query.items()}
            plain = torch.cat(list(query["images"].permute(0, 2, 3, 1)), dim=1)
            columns = zip(*(p.split(SYNTHESISED_SIDE, 1) for p in (plain, domain.target(query))), strict=True)
            _show(axes, torch.cat([part for pair in columns for part in pair], dim=1), "")
        line[0].set_ylabel(kind, fontsize=8)
    figure.savefig(PICTURES / "synthesis.png", dpi=110, metadata={"Software": None})
    # Noise does not compress: 256 colours are a quarter of the bytes, and look the same.
    with Image.open(PICTURES / "synthesis.png") as picture:
        small = picture.convert("RGB").quantize(256)
    small.save(PICTURES / "synthesis.png", optimize=True)


def _with(spec: Spec, **changes: object) -> Spec:
    return Spec(name=spec.name, arguments={**spec.arguments, **changes})


def _show(axes: Axes, image: Tensor, title: str, caption: str = "") -> None:
    axes.imshow(image.numpy(), vmin=0, vmax=1)
    axes.set_title(title, fontsize=8)
    axes.set_xlabel(caption, fontsize=8)
    axes.set_xticks([])
    axes.set_yticks([])


def _tell(step: int, steps: int, loss: float, seconds_left: float) -> None:
    if step % 50 == 0:
        _note(f"outer step {step} of {steps}, loss {loss:.4g}, {seconds_left:.0f} s left")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
