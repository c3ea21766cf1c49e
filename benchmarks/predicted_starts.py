"""Hypernetworks for the benchmarks of predicted weights: trained, kept, and taken up again.

METAINIT_DATA=... python -m benchmarks.predicted_starts --data mnist10k --seed 0     (or cifar10; 0, 1, 2)
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.cells import WEIGHTS, cpu_seconds, data_set, machine
from hypernets.architecture.space_ranges import SpaceConfig, TransformerRanges
from hypernets.architecture.trace import trace
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.model import Ghn
from hypernets.ghn.prediction import predict
from hypernets.ghn.training import GhnTraining, TrainingConfig
from metainit.domains.labelled_images import LabelledImagesConfig, read_labelled_images
from metainit.domains.seeding import seed_of

SEEDS = (0, 1, 2)
SAVE_EVERY = 200
GHN = GhnConfig()
DATA = {
    "mnist10k": {"size": 14, "channels": 1},
    "fashion_mnist_small": {"size": 14, "channels": 1},
    "cifar10": {"size": 16, "channels": 3},
}
GREY = SpaceConfig()
COLOUR = SpaceConfig(channels=3, size=16, vit=TransformerRanges(patches=(2, 4, 8)), max_macs=1_300_000)
SPACES = {"mnist10k": GREY, "fashion_mnist_small": GREY, "cifar10": COLOUR}
TRAINING = {
    "mnist10k": TrainingConfig(steps=3000, pool=2000, images=32, step_size=1.5e-3, label_smoothing=0.0),
    "cifar10": TrainingConfig(steps=3000, pool=2000, images=32, step_size=1.5e-3, label_smoothing=0.0),
}


def image_config(name: str) -> LabelledImagesConfig:
    """Return where a data set lies, and the size of its images."""
    return LabelledImagesConfig.model_validate({**DATA[name], "data": str(data_set(name))})


@dataclass(frozen=True)
class Trained:
    """A trained hypernetwork, and what its training cost."""

    ghn: Ghn
    facts: dict[str, Any]

    def predict(self, network: nn.Module, example_inputs: Tensor, seed: int) -> dict[str, Tensor]:
        """Return weights for a network by name."""
        return predict(self.ghn, trace(network, example_inputs), seed=seed)


def trained(name: str, seed: int) -> Trained:
    """Return the hypernetwork of a data set and a seed, trained first where it is not kept."""
    path = WEIGHTS / f"ghn-{name}-{seed}.safetensors"
    note = path.with_suffix(".json")
    expected = {"training": TRAINING[name].model_dump(), "ghn": GHN.model_dump(), "seed": seed}
    if not (path.is_file() and note.is_file()):
        _train(name, seed, path, note, expected)
    facts: dict[str, Any] = json.loads(note.read_text())
    if {k: facts.get(k) for k in expected} != expected:
        raise SystemExit(f"{note}: trained otherwise than now asked for: delete {path} to train again")
    ghn = Ghn(GHN)
    ghn.load_state_dict(load_file(path))
    return Trained(ghn.eval().requires_grad_(False), facts)


def _train(name: str, seed: int, path: Path, note: Path, expected: dict[str, Any]) -> None:
    torch.manual_seed(seed_of("hypernetwork", seed))
    data = read_labelled_images(image_config(name))
    learner = GhnTraining(TRAINING[name], Ghn(GHN), SPACES[name], data, seed)
    state, spent = path.with_suffix(".state"), 0.0
    path.parent.mkdir(exist_ok=True)
    if state.is_file():
        saved = load_file(state)
        spent = float(saved.pop("cpu_seconds"))
        learner.restore(saved)
    begin = cpu_seconds()
    while learner.step < TRAINING[name].steps:
        loss = learner.apply(learner.gradient())
        if learner.step % SAVE_EVERY == 0:
            used = spent + cpu_seconds() - begin
            said = learner.validate(16) if learner.step % (5 * SAVE_EVERY) == 0 else {}
            print(
                f"{name} {seed}: step {learner.step}, loss {loss:.3f}, {used:.0f} CPU s, {said}", flush=True
            )
            used = spent + cpu_seconds() - begin
            save_file({**learner.state(), "cpu_seconds": torch.tensor(used, dtype=torch.float64)}, state)
    facts = {**expected, "cpu_seconds": round(spent + cpu_seconds() - begin, 1), **machine()}
    save_file(learner.result(), path)
    note.write_text(json.dumps(facts))
    state.unlink(missing_ok=True)


def main() -> None:
    """Train one hypernetwork."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=tuple(TRAINING), required=True)
    parser.add_argument("--seed", type=int, choices=SEEDS, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(trained(given.data, given.seed).facts)


if __name__ == "__main__":
    main()
