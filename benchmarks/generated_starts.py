"""Priors, zoos and generators for the benchmarks of generated weights: made, kept, and taken up again.

METAINIT_DATA=... python -m benchmarks.generated_starts --set images --seed 0      (or classes; 0, 1, 2)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import WEIGHTS, cpu_seconds, data_set, machine
from pipelines.generator.preparation import PreparedGenerator
from pipelines.preparation import prepare
from pipelines.recipe import Recipe, read_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.zoo.build import build_zoo
from pipelines.zoo.preparation import prepare_zoo
from pipelines.zoo.recipe import ZooRecipe

SEEDS = (0, 1, 2)
IMAGES: dict[str, Any] = {
    "name": "image",
    "data": str(data_set("mnist10k")),
    "split_array": "split",
    "label_array": "y",
    "height": 14,
    "width": 14,
    "channels": 1,
    "fit": "average",
    "flip": False,
}
CLASSES: dict[str, Any] = {
    "name": "classification",
    "data": str(data_set("mnist10k")),
    "size": 14,
    "ways": 5,
    "shots": 5,
    "queries": 15,
    "held_out": "subsets",
}


@dataclass(frozen=True)
class Plan:
    """The recipes of a prior, of the zoo that begins from it, and of the generators that learn from it."""

    prior: dict[str, Any]
    zoo: dict[str, Any]
    generators: dict[str, dict[str, Any]]


PLANS = {
    "images": Plan(
        prior={
            "name": "digit-images",
            "network": {"name": "siren", "width": 24, "depth": 3, "omega": 15, "omega_first": 15},
            "domain": IMAGES,
            "algorithm": {
                "rule": "meta_sgd",
                "order": 2,
                "inner_steps": 3,
                "inner_step_size": 0.02,
                "step_sizes": "parameter",
                "execution": "vmap",
            },
            "outer": {"steps": 2000, "meta_batch": 16, "step_size": 2e-3, "averaging": 0.99},
            "continuation": {"optimizer": "adam", "step_size": 1e-3},
        },
        zoo={
            "name": "zoo-digit-images",
            "domain": {"data": IMAGES["data"]},
            # The prior's own steps: what they make of a signal is a smooth function of it.
            "fit": {"optimizer": "prior", "steps": 3},
            "members": 6400,
            "held_out": {"validation": 256, "test": 512},
        },
        generators={
            "class": {
                "told": {"kinds": ["class"]},
                "generator": {"width": 512, "depth": 3},
                "training": {
                    "mean_steps": 300,
                    "steps": 5000,
                    "distillation_steps": 1500,
                    "pairs": 16384,
                    "batch": 128,
                },
            },
            "observation": {
                # A quarter of the signal's numbers.
                "told": {"kinds": ["observation"], "thumbnail": 7},
                "generator": {"width": 512, "depth": 3, "mean_width": 512},
                "training": {
                    "mean_steps": 2500,
                    "mean_step_size": 3e-3,
                    "steps": 1500,
                    "distillation_steps": 500,
                    "task_weight": 1.0,
                },
                "task_after": [0],
                "start": "mean",
            },
        },
    ),
    "classes": Plan(
        prior={
            "name": "digit-tasks",
            "network": {"name": "classifier", "width": 12, "depth": 2},
            "domain": CLASSES,
            "start": "kaiming",
            "algorithm": {
                "rule": "meta_sgd",
                "order": 1,
                "inner_steps": 5,
                "inner_step_size": 0.05,
                "step_sizes": "tensor",
            },
            "outer": {"steps": 1500, "meta_batch": 4, "step_size": 2e-3, "averaging": 0.99},
            "continuation": {"optimizer": "adam", "step_size": 1e-3},
        },
        zoo={
            "name": "zoo-digit-tasks",
            "domain": {"data": CLASSES["data"]},
            "fit": {"optimizer": "prior", "steps": 5},
            "members": 4000,
            "held_out": {"validation": 64, "test": 64},
        },
        generators={
            "observation": {
                "told": {"kinds": ["observation"], "encoder": "examples"},
                "generator": {"width": 512, "depth": 3, "mean_width": 512},
                "training": {
                    "mean_steps": 1000,
                    "mean_step_size": 3e-3,
                    "steps": 600,
                    "distillation_steps": 200,
                    "batch": 32,
                    "folds": 1,
                    "task_weight": 1.0,
                },
                "task_after": [0],
                "start": "mean",
            }
        },
    ),
}


@dataclass(frozen=True)
class Made:
    """What a seed's chain ends with: each part's file or folder, and the CPU seconds of each."""

    prior: Path
    zoo: Path
    generators: dict[str, Path]
    recipes: dict[str, Recipe]
    facts: dict[str, Any]

    def prepared(self, name: str) -> PreparedGenerator:
        """Return a generator's recipe with its zoo and its domain."""
        found = prepare(self.recipes[name])
        assert isinstance(found, PreparedGenerator)
        return found


def made(name: str, seed: int, kinds: Sequence[str] | None = None) -> Made:
    """Return the chain of a plan and a seed with some generators, or all; what is there is not made again."""
    plan, root = PLANS[name], WEIGHTS / f"generated-{name}-{seed}"
    prior_recipe = read_recipe({**plan.prior, "seed": seed})
    facts: dict[str, Any] = {}
    prior = _timed(root, "prior", facts, lambda: _trained(prior_recipe, root / "prior"))
    zoo_recipe = read_recipe({"family": "zoo", **plan.zoo, "prior": str(prior), "seed": seed})
    assert isinstance(zoo_recipe, ZooRecipe)

    def build() -> None:
        build_zoo(prepare_zoo(zoo_recipe, prior), prior, root / "zoo", note=print)

    _timed(root, "zoo", facts, build)
    generators, recipes = {}, {}
    for kind in plan.generators if kinds is None else kinds:
        value = {
            "family": "generator",
            "name": f"{plan.zoo['name']}-{kind}",
            "zoo": str(root / "zoo"),
            "domain": {"data": plan.zoo["domain"]["data"]},
            "seed": seed,
            **plan.generators[kind],
        }
        recipes[kind] = recipe = read_recipe(value)
        generators[kind] = _timed(
            root, kind, facts, lambda recipe=recipe, kind=kind: _trained(recipe, root / kind)
        )
    return Made(prior, root / "zoo", generators, recipes, facts)


def _trained(recipe: Recipe, folder: Path) -> Path:
    def show(step: int, steps: int, loss: float, left: float) -> None:
        if step % max(1, steps // 10) == 0:
            print(f"{recipe.name}: step {step} of {steps}, loss {loss:.4f}, {left:.0f} s left", flush=True)

    result = train(recipe, folder, sink=ListSink(), progress=show)
    print(recipe.name, result.metrics, flush=True)
    return result.checkpoint


def _timed(root: Path, part: str, facts: dict[str, Any], make: Callable[[], Any]) -> Any:
    """Run a part, and keep the CPU seconds of the run that made it."""
    note = root / f"{part}.json"
    began = cpu_seconds()
    found = make()
    if not note.is_file():
        root.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"cpu_seconds": round(cpu_seconds() - began, 1), **machine()}))
    facts[part] = json.loads(note.read_text())
    return found


def main() -> None:
    """Make one chain."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", choices=tuple(PLANS), required=True)
    parser.add_argument("--seed", type=int, choices=SEEDS, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(made(given.set, given.seed).facts, indent=1))


if __name__ == "__main__":
    main()
