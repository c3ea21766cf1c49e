"""The benchmark of predicted starts, whole but small: choosing, measuring, probing, tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import cells as storage
from benchmarks.predicted import STARTS, Plan, choose, probes, run
from benchmarks.predicted_tables import accuracies, table
from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.finetuning import FineTuning
from metainit.domains.labelled_images import LabelledImagesConfig, read_labelled_images
from metainit.errors import DataError

HOW = FineTuning(steps=(0, 2, 4), batch=16, recalibration=32, extensions=1)
PLAN = Plan(
    trained="digits",
    data=LabelledImagesConfig(size=4),
    space=SpaceConfig(size=4, families={"mlp": 1.0}),
    counts={"unseen": (3, 1, 2), "larger": (2, 1, 1)},
    how=HOW,
    probe_batches=3,
    probe_steps=(0, 2),
)


class Trainer:
    """A predictor that is better by construction: it trains the network it is asked about."""

    def __init__(self, data: Any, seed: int) -> None:
        self.data, self.seed = data, seed

    def predict(self, network: nn.Module, example_inputs: Tensor, seed: int) -> dict[str, Tensor]:
        optimizer = torch.optim.Adam(network.parameters(), 0.02)
        for step in range(40):
            images, labels = self.data.batch(self.seed, step, 64)
            loss = functional.cross_entropy(network(images), labels)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return {name: value.detach().clone() for name, value in network.named_parameters()}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> storage.Cells:
    data = read_labelled_images(PLAN.data)
    cells = storage.Cells("nothing")
    cells.path = tmp_path_factory.mktemp("cells") / "predicted.json"
    trainers: list[tuple[str, int]] = []

    def trained(name: str, seed: int) -> Trainer:
        trainers.append((name, seed))
        return Trainer(data, seed)

    choose(cells, "toy", PLAN, data, trained)
    for seed in (0, 1):
        run(cells, "toy", PLAN, data, trained, seed)
    probes(cells, "toy", PLAN, data, trained, 0)
    assert set(trainers) == {("digits", 0), ("digits", 1)}
    return cells


def test_all_starts_are_measured_on_the_same_architectures(measured: storage.Cells) -> None:
    for kind, (reported, _, _) in PLAN.counts.items():
        values = accuracies(measured.values, "toy", kind)
        assert set(values) == set(STARTS)
        assert {v.shape for v in values.values()} == {(2, reported, 3)}
        chosen = {
            name
            for key, cell in measured.values.items()
            if key.startswith(f"toy/choice/{kind}")
            for name in cell["architectures"]
        }
        run_on = set(measured.values[f"toy/run/{kind}/default/0"]["architectures"])
        assert chosen and not chosen & run_on


def test_the_better_start_wins_in_the_tables(measured: storage.Cells) -> None:
    text = table(measured.values, "toy", HOW.steps)
    assert "### toy: 3 unseen architectures, 2 seeds" in text
    first = next(line for line in text.splitlines() if line.startswith("| predicted | 0 "))
    assert first.split("|")[8].strip() == "-"
    others = [line for line in text.splitlines() if line.startswith("| scale_only | 0 ")]
    assert all(line.split("|")[8].strip() == "100%" for line in others)
    assert "### toy: with the probe" in text and "| unseen | 4 | 2 | 2 |" in text


def test_cells_are_computed_once(measured: storage.Cells) -> None:
    before = dict(measured.values)

    def never(name: str, seed: int) -> Trainer:
        raise AssertionError("a finished cell was computed again")

    run(measured, "toy", PLAN, read_labelled_images(PLAN.data), never, 0)
    assert measured.values == before


def cell(values: Mapping[str, float], names: list[str]) -> dict[str, Any]:
    return {"accuracy": [[v] for v in values.values()], "architectures": names}


def test_harm_is_counted_where_it_is_beyond_noise() -> None:
    """Two networks: one where the kept prediction is far worse, one where it is better."""
    names = ["a", "b"]
    cells: dict[str, Any] = {
        f"t/run/unseen/{start}/{seed}": cell({"a": a + seed * 0.01, "b": b + seed * 0.01}, names)
        for start, (a, b) in {"predicted": (0.3, 0.9), "default": (0.8, 0.5)}.items()
        for seed in (0, 1)
    }
    verdict = {"gain": [0, 0, 0], "gradients": 10, "seconds": 1.0}
    cells["t/probe/unseen/0"] = [{**verdict, "kept": kept} for kept in ("predicted", "predicted")]
    row = table(cells, "t", (50,)).splitlines()[-1]
    assert row == "| unseen | 50 | 2 | 2 | -0.050, -0.500 | 1 | 10 | 1.0 |"
    cells["t/probe/unseen/0"][0]["kept"] = "default"
    assert "| unseen | 50 | 2 | 1 | +0.200, +0.000 | 0 |" in table(cells, "t", (50,))


def test_seeds_of_different_architectures_are_refused() -> None:
    cells = {
        "t/run/unseen/default/0": cell({"a": 0.1}, ["a"]),
        "t/run/unseen/default/1": cell({"b": 0.1}, ["b"]),
    }
    with pytest.raises(DataError, match="different architectures"):
        accuracies(cells, "t", "unseen")
    assert np.array_equal(accuracies(cells, "t", "larger"), {})
