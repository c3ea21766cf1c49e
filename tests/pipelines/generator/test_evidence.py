"""What follows training a generator: evidence beside its controls, pictures, a version, and the gate."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.io
import torch

from hypernets.generator.evidence import ROUTINE
from metainit import checkpoint
from metainit.domains.base import TaskBatch
from metainit.errors import RecipeError
from metainit.evidence.measuring import Evidence, held_out
from metainit.initialization import load
from metainit.networks import build
from pipelines.finish import CURVES_PICTURE, PICTURES, Finished, after_training
from pipelines.folder import CHECKPOINT, RECIPE
from pipelines.generator.controls import CONTROLS, STEP_SIZES, WEIGHT_DECAYS, controls_of
from pipelines.generator.evidence import (
    SAMPLES_PICTURE,
    measure_again,
    measure_generator,
)
from pipelines.generator.preparation import PreparedGenerator
from pipelines.recipe import load_recipe
from pipelines.registry import Registry
from pipelines.tracking import MlflowSink
from pipelines.train import train
from tests.pipelines.generator.chains import Chain

NAME = "gen-digits-debug"
FEW = ("zoo_mean", "nearest_member")


def silent(text: str) -> None:
    """Say nothing."""


def finished(chain: Chain, folder: Path, *settings: str) -> tuple[Finished, PreparedGenerator]:
    """Train in this process, and finish."""
    prepared = chain.prepared(*settings)
    with MlflowSink(prepared.recipe.name, prepared.recipe.dump()) as sink:
        result = train(prepared.recipe, folder, sink=sink, prepared=prepared)
        return after_training(prepared, result.checkpoint, sink, controls=FEW), prepared


def test_a_run_ends_in_a_complete_version_that_the_gate_judges(
    digits: Chain, home: Path, tmp_path: Path
) -> None:
    first, prepared = finished(digits, tmp_path / "one")
    registry = Registry()
    (version,) = registry.versions(NAME)
    assert (version.kind, version.method) == ("generator", "weight diffusion")
    out = registry.download(version, tmp_path / "out")
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    pictures = {f"{PICTURES}/{CURVES_PICTURE}", f"{PICTURES}/{SAMPLES_PICTURE}"}
    assert files == {CHECKPOINT, RECIPE, "evidence.json", "MLmodel", *pictures}
    for picture in pictures:
        assert skimage.io.imread(out / picture).std() > 10
    assert load_recipe(out / RECIPE) == prepared.recipe
    record = Evidence.from_json(out / "evidence.json").record
    assert record == first.evidence.record and record.headline is not None
    assert record.candidate_digest == checkpoint.load(out / CHECKPOINT).card.digest
    assert record.task_ids == list(held_out(prepared.domain, "test", 2).ids)
    assert load(f"models:/{NAME}").card.kind == "generator"
    # Hardly trained: no champion, but one by hand, which the next version is compared with.
    assert first.decision.alias == "challenger" and "not surely better than" in first.decision.reason
    registry.promote(version.reference)
    second, _ = finished(digits, tmp_path / "two", "training.steps=7")
    assert second.decision.against == f"{NAME}/1" and second.decision.comparable
    third, _ = finished(digits, tmp_path / "three", "evidence.tasks=3", "start=one_step")
    assert third.decision.against == f"{NAME}/1" and third.decision.gain is not None


def test_each_start_stands_there_tuned_and_with_the_priors_routine(digits: Chain) -> None:
    evidence = measure_generator(digits.prepared(), digits.generator, silent)
    roles = {c.source: c.role for c in evidence.record.curves}
    own = {"sample", "mean", "one_step"}
    assert roles == {
        **dict.fromkeys(own | {name + ROUTINE for name in own}, "source"),
        "sample" + ROUTINE: "candidate",
        **dict.fromkeys([*CONTROLS, *(name + ROUTINE for name in CONTROLS)], "control"),
    }
    # Before any step neither has moved.
    curves = {c.source: c.values for c in evidence.record.curves}
    for name in (*own, *CONTROLS):
        assert [row[0] for row in curves[name][0]] == [row[0] for row in curves[name + ROUTINE][0]]


def test_an_unknown_control_is_answered_with_the_nearest(digits: Chain) -> None:
    with pytest.raises(RecipeError, match="no control of generators is called 'rige'; did you mean 'ridge'"):
        measure_generator(digits.prepared(), digits.generator, silent, ["rige"])


def at_first(chain: Chain, file: Path, task: TaskBatch) -> float:
    """The metric of the mean of a task's class before any step, as a user would measure it."""
    prepared, start = chain.prepared(), load(str(file))
    assert start.card.network is not None
    condition = int(task.conditions["class"])
    network = start.init_(build(start.card.network), condition=condition, what="mean")  # type: ignore[call-arg]
    query = {k: v[0] for k, v in task.query.items()}
    with torch.no_grad():
        shown = prepared.domain.render(network, query, task.shared)
    return float(prepared.domain.metrics(shown, query)[prepared.domain.metric])


def test_a_champion_is_measured_from_its_own_base_and_with_its_own_start(
    digits: Chain, tmp_path: Path
) -> None:
    prepared = digits.prepared()
    evidence = measure_generator(prepared, digits.generator, silent, ["prior"])
    stored = checkpoint.load(digits.generator)
    # As after training on a zoo of another prior.
    noise = torch.Generator().manual_seed(0)
    moved = {
        k: v + 0.1 * torch.randn(v.shape, generator=noise) if k.startswith("base.") else v
        for k, v in stored.tensors.items()
    }
    said = stored.card.provenance.recipe["parts"] | {"start": "mean"}
    provenance = stored.card.provenance.model_copy(
        update={"recipe": {**stored.card.provenance.recipe, "parts": said}}
    )
    checkpoint.save(
        tmp_path / "c.safetensors", moved, stored.card.model_copy(update={"provenance": provenance})
    )
    again = measure_again(prepared, evidence, tmp_path / "c.safetensors").record
    (candidate,) = (c for c in again.curves if c.role == "candidate")
    assert candidate.source == "mean" + ROUTINE and again.task_ids == evidence.record.task_ids
    tasks = held_out(prepared.domain, "test", 2)
    for number, task in enumerate(tasks):
        own = at_first(digits, tmp_path / "c.safetensors", task)
        assert candidate.values[0][number][0] == pytest.approx(own, rel=1e-4)
        assert own != pytest.approx(at_first(digits, digits.generator, task), rel=1e-3)


def test_controls_know_what_the_generator_knows(digits: Chain) -> None:
    prepared = digits.prepared()
    tuning = held_out(prepared.domain, "validation", 4).to(prepared.device, torch.float32)
    names = ["prior", "zoo_mean", "nearest_member", "ridge"]
    made = controls_of(prepared, prepared.generator, names, silent)
    found = {name: control.make((1.0,) if control.grid else ()) for name, control in made.items()}
    members = prepared.members
    assert not found["prior"](tuning, 0).any()
    for row in found["zoo_mean"](tuning, 0):
        torch.testing.assert_close(row, members.deltas.mean(0))
    classes = tuning.conditions["class"].tolist()
    for row, number in zip(found["nearest_member"](tuning, 0), classes, strict=True):
        # Members of other classes are all equally far from a class that has none.
        same = members.deltas[members.conditions["class"] == number]
        of = same if len(same) else members.deltas
        assert bool((of == row).all(1).any())
    assert found["ridge"](tuning, 0).shape == (4, members.deltas.shape[1])


def test_a_regressor_is_trained_once_for_each_setting(
    digits: Chain,
) -> None:
    said: list[str] = []
    prepared = digits.prepared("training.mean_steps=3")
    record = measure_generator(prepared, digits.generator, said.append, ["ridge", "regressor"]).record
    assert {c.source for c in record.curves if c.role == "control"} >= {"ridge", "regressor"}
    trained = [text for text in said if text.startswith("training the control regressor")]
    assert len(trained) == len(set(trained)) >= len(STEP_SIZES) * len(WEIGHT_DECAYS)
