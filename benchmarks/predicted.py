"""Predicted starts for architectures that nobody has trained, against analytic ones and their scale alone.

    METAINIT_DATA=... python -m benchmarks.predicted choose | run --seed 0 | probe --seed 0 | table

`--task` picks mnist (the data that the hypernetwork saw), cifar10 (likewise), or fashion (a hypernetwork of
digits, used on clothes). Three kinds of architectures are reported, none of which was trained on: `unseen`
ones of the same space, `larger` ones than any of it, and `recombined` ones of combinations that it lacks.
Step sizes are chosen for each start, kind and number of steps on validation architectures and images.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cells import Cells, cpu_seconds, machine
from benchmarks.predicted_starts import SPACES, image_config, trained
from hypernets.architecture.space import build_architecture, distinct, identity
from hypernets.architecture.space_ranges import SpaceConfig, larger, recombined
from hypernets.ghn.finetuning import Choice, FineTuning, choose_step_sizes, filled, tuned_curves
from hypernets.ghn.starts import Start, analytic, predicted, scale_only
from metainit import probe
from metainit.card import AdaptationRoutine, Card, Method, Spec
from metainit.domains.labelled_images import LabelledImages, LabelledImagesConfig, read_labelled_images
from metainit.errors import SourceError
from metainit.initialization import Progress, Task

SEEDS = (0, 1, 2)
ANALYTIC = ("default", "kaiming", "orthogonal")
STARTS = ("predicted", "scale_only", *ANALYTIC)
PROBE_BATCH = 64


class Predictor(Protocol):
    """A trained hypernetwork."""

    def predict(self, network: nn.Module, example_inputs: Tensor, seed: int) -> dict[str, Tensor]:
        """Return a value for each of the network's parameters."""
        ...


Trained = Callable[[str, int], Predictor]
"""(name, seed) -> the hypernetwork of that name and training seed."""


@dataclass(frozen=True)
class Plan:
    """What is measured: a hypernetwork's name, the data it is used on, and how many architectures of a kind.

    `counts`: kind -> how many are reported, how many choose step sizes, and how many are probed.
    """

    trained: str
    data: LabelledImagesConfig
    space: SpaceConfig
    counts: dict[str, tuple[int, int, int]]
    how: FineTuning = FineTuning()
    probe_batches: int = 9
    probe_steps: tuple[int, ...] = (0, 10)


COUNTS = {"unseen": (50, 8, 15), "larger": (20, 4, 10), "recombined": (10, 4, 10)}
SHIFTS: dict[str, Callable[[SpaceConfig], SpaceConfig]] = {
    "unseen": lambda space: space,
    "larger": larger,
    "recombined": recombined,
}


def plan_of(task: str) -> Plan:
    """Return the plan of a task."""
    trained, data = {
        "mnist": ("mnist10k", "mnist10k"),
        "cifar10": ("cifar10", "cifar10"),
        "fashion": ("mnist10k", "fashion_mnist_small"),
    }[task]
    return Plan(trained, image_config(data), SPACES[data], COUNTS)


def architectures(plan: Plan, kind: str) -> tuple[list[Spec], list[Spec]]:
    """Return the reported architectures of a kind, and those that choose step sizes."""
    reported, choosing, _ = plan.counts[kind]
    space = SHIFTS[kind](plan.space)
    return distinct(space, 0, reported, "test"), distinct(space, 0, choosing, "validation")


def start_of(name: str, predictor: Callable[[], Predictor], data: LabelledImages) -> Start:
    """Return a start by name; the predictor is asked for only where it is needed."""
    if name in ANALYTIC:
        return analytic(name)
    trained, examples = predictor(), data.batch(0, 0, 2).images

    def predict(network: nn.Module, seed: int) -> dict[str, Tensor]:
        return trained.predict(network, examples, seed)

    return predicted(predict) if name == "predicted" else scale_only(predict)


def choose(cells: Cells, task: str, plan: Plan, data: LabelledImages, trained: Trained) -> None:
    """Choose the step sizes of every start for every kind of architecture, with the first hypernetwork."""

    def compute(name: str, kind: str) -> dict[str, Any]:
        start = start_of(name, lambda: trained(plan.trained, SEEDS[0]), data)
        _, choosing = architectures(plan, kind)
        choice = choose_step_sizes(start, choosing, data, plan.how, build_architecture, progress=print)
        return {
            "step_sizes": choice.step_sizes,
            "tried": {f"{rate:g}": list(values.values()) for rate, values in choice.tried.items()},
            "inside": choice.inside,
            "architectures": [identity(spec) for spec in choosing],
        }

    for kind in plan.counts:
        for name in STARTS:
            cells.cell(f"{task}/choice/{kind}/{name}", lambda n=name, k=kind: compute(n, k))


def run(cells: Cells, task: str, plan: Plan, data: LabelledImages, trained: Trained, seed: int) -> None:
    """Measure every start on every reported architecture, with one hypernetwork and one draw of each."""

    def compute(name: str, kind: str) -> dict[str, Any]:
        chosen = cells.values[f"{task}/choice/{kind}/{name}"]["step_sizes"]
        choice = Choice({int(steps): rate for steps, rate in chosen.items()}, {})
        start = start_of(name, lambda: trained(plan.trained, seed), data)
        reported, _ = architectures(plan, kind)
        began = cpu_seconds()
        values = tuned_curves(start, choice, reported, data, plan.how, build_architecture, seed)
        return {
            "accuracy": values.round(4).tolist(),
            "architectures": [identity(spec) for spec in reported],
            "cpu_seconds": round(cpu_seconds() - began, 1),
            "machine": machine(),
            "fingerprint": data.fingerprint(),
        }

    for kind in plan.counts:
        for name in STARTS:
            cells.cell(f"{task}/run/{kind}/{name}/{seed}", lambda n=name, k=kind: compute(n, k))


class AsInitialization:
    """A hypernetwork as `metainit.probe` takes it: an initialization."""

    evidence: dict[str, Any] | None = None

    def __init__(self, start: Start) -> None:
        self.start = start
        self.card = Card(kind="ghn", name=start.name, method=Method(name="graph hypernetwork"))

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
        condition: Any = None,
        observation: Tensor | None = None,
    ) -> nn.Module:
        """Fill the network in place."""
        return filled(self.start, network, seed or 0)

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Refuse: the benchmark fine-tunes by itself."""
        raise SourceError(f"{self.card.name!r} is fine-tuned by the benchmark")


def probes(cells: Cells, task: str, plan: Plan, data: LabelledImages, trained: Trained, seed: int) -> None:
    """Let the probe decide between the default and the prediction, on training images alone."""

    def compute(kind: str) -> list[dict[str, Any]]:
        start = AsInitialization(start_of("predicted", lambda: trained(plan.trained, seed), data))
        batches = [data.batch(seed, i, PROBE_BATCH) for i in range(plan.probe_batches)]
        found = []
        for spec in architectures(plan, kind)[0][: plan.counts[kind][2]]:
            network = build_architecture(spec, seed)
            report = probe(
                network, ["default", start], batches, functional.cross_entropy, steps=plan.probe_steps
            )
            gain = next(row for row in report.rows if row.source == "predicted")
            found.append(
                {
                    "architecture": identity(spec),
                    "kept": report.kept,
                    "gain": [gain.gain, gain.low, gain.high],
                    "gradients": report.gradients,
                    "seconds": round(report.seconds, 2),
                }
            )
        return found

    for kind in plan.counts:
        cells.cell(f"{task}/probe/{kind}/{seed}", lambda k=kind: compute(k))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part of the benchmark, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("choose", "run", "probe", "table"))
    parser.add_argument("--task", choices=("mnist", "cifar10", "fashion"), default="mnist")
    parser.add_argument("--seed", type=int, choices=SEEDS, default=0)
    parser.add_argument("--kind", choices=tuple(COUNTS), help="one kind of architectures; all unless given")
    options = parser.parse_args(arguments)
    cells = Cells("predicted")
    if options.part == "table":
        from benchmarks.predicted_tables import table

        print(table(cells.values, options.task, FineTuning().steps))
        return
    torch.set_num_threads(1)
    plan = plan_of(options.task)
    if options.kind is not None:
        plan = replace(plan, counts={options.kind: plan.counts[options.kind]})
    data = read_labelled_images(plan.data)
    if options.part == "choose":
        choose(cells, options.task, plan, data, trained)
    elif options.part == "run":
        run(cells, options.task, plan, data, trained, options.seed)
    else:
        probes(cells, options.task, plan, data, trained, options.seed)


if __name__ == "__main__":
    main()
