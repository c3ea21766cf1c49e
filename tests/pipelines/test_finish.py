"""What follows training, against a real registry: evidence, pictures, a version, and the gate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import torch

from metainit import checkpoint
from metainit.errors import RegistryError
from metainit.evidence.measuring import Evidence, held_out
from metainit.initialization import load
from pipelines.finish import CURVES_PICTURE, PICTURES, Finished, after_training
from pipelines.folder import CHECKPOINT, RECIPE
from pipelines.preparation import prepare
from pipelines.prior.evidence import STRIP_PICTURE, shown_task
from pipelines.prior.preparation import PreparedPrior
from pipelines.recipe import Recipe, load_recipe
from pipelines.registry import Registry
from pipelines.tracking import MlflowSink
from pipelines.train import train
from tests.metainit.evidence.toys import blobs

CONTROLS = ("kaiming", "siren")
NAME = "image-folder-debug"
SETTINGS = [
    "domain={name: image, height: 8, width: 8, channels: 1, fit: resize, flip: false, test_share: 0.2}",
    "network={name: siren, width: 24, depth: 3, omega: 10, omega_first: 10}",
    "algorithm={rule: meta_sgd, order: 2, inner_steps: 2, step_sizes: parameter, inner_step_size: 0.02}",
    "evidence={tasks: 4, steps: [0, 1, 2], seeds: [0, 1]}",
    "validation_tasks=0",
]
TRAINED = [*SETTINGS, "outer={steps: 60, meta_batch: 3, step_size: 3e-3, warm_up: 0}"]
UNTRAINED = [*SETTINGS, "outer.steps=1", "algorithm.inner_step_size=1e-6", "outer.step_size=1e-6"]


def recipe_of(settings: list[str], folder: Path) -> Recipe:
    """The recipe for pictures of soft blobs, which a prior learns in a second."""
    data = folder / "blobs.npz"
    if not data.exists():
        np.savez(data, x=blobs(30))
    return load_recipe(NAME, [settings[0], f"domain.data={data}", *settings[1:]])


def run(
    settings: list[str], folder: Path, notes: list[str] | None = None
) -> tuple[Finished, PreparedPrior, str]:
    """Train in this process, and finish."""
    recipe = recipe_of(settings, folder.parent)
    prepared = prepare(recipe)
    with MlflowSink(recipe.name, recipe.dump()) as sink:
        result = train(recipe, folder, sink=sink, prepared=prepared)
        note = None if notes is None else notes.append
        finished = after_training(prepared, result.checkpoint, sink, note=note, controls=CONTROLS)
        return finished, prepared, sink.run_id


def test_a_run_ends_in_a_complete_version(home: Path, tmp_path: Path) -> None:
    notes: list[str] = []
    finished, prepared, run_id = run(TRAINED, tmp_path / "run", notes)
    registry = Registry()
    (version,) = registry.versions(NAME)
    assert finished.version == version and version.run_id == run_id
    out = registry.download(version, tmp_path / "out")
    files = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    pictures = {f"{PICTURES}/{CURVES_PICTURE}", f"{PICTURES}/{STRIP_PICTURE}"}
    assert files == {CHECKPOINT, RECIPE, "evidence.json", "MLmodel", *pictures}
    for picture in pictures:
        assert skimage.io.imread(out / picture).std() > 10
    assert (out / CHECKPOINT).read_bytes() == (tmp_path / "run" / CHECKPOINT).read_bytes()
    assert checkpoint.load(out / CHECKPOINT).card.provenance.recipe["name"] == NAME
    assert load_recipe(out / RECIPE) == prepared.recipe
    assert Evidence.from_json(out / "evidence.json").record == finished.evidence.record
    assert load(f"models:/{NAME}").evidence == json.loads((out / "evidence.json").read_text())
    assert notes[-1] == "registering" and any(note.startswith("measuring kaiming") for note in notes)
    the_picture_shows_the_median_task(finished, prepared)


def the_picture_shows_the_median_task(finished: Finished, prepared: PreparedPrior) -> None:
    record = finished.evidence.record
    assert record.headline is not None
    values = {c.source: c.values[0] for c in record.curves}
    ours, theirs = values[NAME], values[record.headline.control]
    at = record.steps.index(2)
    gains = [mine[at] - other[at] for mine, other in zip(ours, theirs, strict=True)]
    task = shown_task(prepared, finished.evidence)
    assert len(task) == 1
    shown = record.task_ids.index(task.ids[0])
    assert sum(g <= gains[shown] for g in gains) >= 2 and sum(g >= gains[shown] for g in gains) >= 2
    tasks = held_out(prepared.domain, "test", 4)
    assert torch.equal(tasks.query["values"][shown], task.query["values"][0])


def test_the_first_version_is_champion_where_it_beats_its_controls_and_the_same_run_again_is_not(
    home: Path, tmp_path: Path
) -> None:
    first, _, run_id = run(TRAINED, tmp_path / "one")
    headline = first.evidence.headline
    assert headline is not None and headline.low > 0
    assert first.decision.alias == "champion" and first.version.aliases == ("champion",)
    assert f"better than {headline.control} by" in first.decision.reason
    assert first.version.headline == headline.model_dump(mode="json")
    with MlflowSink("read", run_id=run_id) as sink, sink.connection.calls("read") as client:
        metrics = client.get_run(run_id).data.metrics
    assert metrics["headline_psnr"] == headline.value and metrics["headline_gain"] == headline.gain
    second, _, _ = run(TRAINED, tmp_path / "two")
    assert second.version.version == 2 and second.version.sha256 == first.version.sha256
    assert second.evidence.record == first.evidence.record
    assert second.decision.alias == "challenger" and second.decision.gain == 0
    assert Registry().aliases(NAME) == {"champion": 1, "challenger": 2}


def test_a_first_version_that_does_not_beat_its_controls_is_no_champion(home: Path, tmp_path: Path) -> None:
    finished, _, _ = run(UNTRAINED, tmp_path / "run")
    headline = finished.evidence.headline
    assert headline is not None and headline.low <= 0
    assert finished.decision.alias == "challenger"
    assert finished.decision.reason.startswith("not surely better than")
    assert Registry().aliases(NAME) == {"challenger": 1}


def test_a_champion_of_other_data_is_measured_again_on_the_new_held_out_tasks(
    home: Path, tmp_path: Path
) -> None:
    first, _, _ = run(UNTRAINED, tmp_path / "one")
    Registry().promote(first.version.reference)
    np.savez(tmp_path / "others.npz", x=blobs(30, seed=7))
    notes: list[str] = []
    second, _, _ = run([*TRAINED, f"domain.data={tmp_path / 'others.npz'}"], tmp_path / "two", notes)
    assert f"measuring {NAME}/1 again" in notes
    assert second.decision.alias == "champion" and second.decision.against == f"{NAME}/1"
    assert second.decision.reason.startswith("better than the champion by")
    wider = [s.replace("width: 24", "width: 32") for s in TRAINED]
    third, _, _ = run(wider, tmp_path / "three", notes)
    assert notes.count(f"measuring {NAME}/2 again") == 1
    assert third.decision.gain is not None and "than the champion" in third.decision.reason


def test_what_was_measured_stays_where_the_registry_cannot_be_reached(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(UNTRAINED, tmp_path)
    prepared = prepare(recipe)
    sink = MlflowSink(recipe.name)
    result = train(recipe, tmp_path / "run", sink=sink, prepared=prepared)
    database = home / "mlflow.db"
    database.rename(home / "away.db")
    database.mkdir()
    with pytest.raises(RegistryError):
        after_training(prepared, result.checkpoint, sink, controls=CONTROLS)
    kept = tmp_path / "run" / "artifacts"
    assert (kept / CHECKPOINT).read_bytes() == result.checkpoint.read_bytes()
    assert Evidence.from_json(kept / "evidence.json").headline is not None
