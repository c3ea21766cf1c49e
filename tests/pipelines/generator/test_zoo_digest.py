"""A run is one of a zoo's manifest: another one under the same name never gets into it."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metainit import checkpoint
from metainit.errors import ConditionError, RecipeError
from metainit.evidence.measuring import held_out
from pipelines.folder import CHECKPOINT, SCRATCH, default_folder
from pipelines.generator.evidence import measure_again, measure_generator
from pipelines.generator.preparation import prepare_generator
from pipelines.generator.recipe import GeneratorRecipe
from pipelines.recipe import read_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.zoo.build import build_zoo
from pipelines.zoo.fits import one_thread
from pipelines.zoo.tracking import digest_of
from tests.pipelines.zoo.fixtures import prepared_in

SIZES = {"width": 8, "depth": 1, "embedding": 4, "mean_width": 4, "mean_depth": 1, "sketch": 8}
STEPS = {"mean_steps": 2, "steps": 2, "distillation_steps": 1, "batch": 4, "pairs": 4, "teacher_steps": 1}


def zoo_in(folder: Path, **changes: Any) -> Path:
    prepared = prepared_in(folder, **changes)
    build_zoo(prepared, Path(prepared.recipe.prior), folder / "zoo")
    return folder / "zoo"


def recipe_of(zoo: Path, **changes: Any) -> GeneratorRecipe:
    domain = {"data": str(zoo.parent / "images.npz")}
    value = {"family": "generator", "name": "small", "zoo": str(zoo), "generator": SIZES, "training": STEPS}
    recipe = read_recipe({**value, "domain": domain, "evidence": {"tasks": 2, "tuning": 2}, **changes})
    assert isinstance(recipe, GeneratorRecipe)
    return recipe


def trained(recipe: GeneratorRecipe, folder: Path) -> Path:
    with one_thread():
        return train(recipe, folder, sink=ListSink()).checkpoint


def test_a_rebuilt_zoo_is_another_one(tmp_path: Path) -> None:
    zoo, run = zoo_in(tmp_path / "one"), tmp_path / "run"
    recipe = recipe_of(zoo)
    stored = checkpoint.load(trained(recipe, run))
    assert stored.card.provenance.recipe["zoo_digest"] == digest_of(zoo)
    pinned = recipe.pinned()
    # The same zoo elsewhere is the same.
    moved = shutil.copytree(tmp_path / "one", tmp_path / "moved") / "zoo"
    assert default_folder(recipe_of(moved).pinned()).name != default_folder(recipe).name
    assert recipe_of(moved).pinned().recorded() == pinned.recorded()
    trained(recipe_of(moved), run)
    # Another one in its place, of fewer fits.
    shutil.rmtree(zoo)
    zoo_in(tmp_path / "one", members=24)
    assert default_folder(recipe.pinned()).name != default_folder(pinned).name
    with pytest.raises(RecipeError, match="holds a run of another recipe: zoo_digest was"):
        trained(recipe, run)
    with pytest.raises(RecipeError, match="zoo_digest: the zoo .* has been built anew"):
        prepare_generator(pinned)
    # A run that has recorded none is taken as it is.
    said = {k: v for k, v in stored.card.provenance.recipe.items() if k != "zoo_digest"}
    provenance = stored.card.provenance.model_copy(update={"recipe": said})
    checkpoint.save(
        run / CHECKPOINT, stored.tensors, stored.card.model_copy(update={"provenance": provenance})
    )
    shutil.rmtree(run / SCRATCH)
    assert trained(recipe, run) == run / CHECKPOINT


def test_a_champion_that_is_told_what_tasks_do_not_have_is_refused(
    tmp_path: Path,
) -> None:
    champion = trained(recipe_of(zoo_in(tmp_path / "one")), tmp_path / "run")
    data = {"data": str(tmp_path / "two" / "images.npz")}
    zoo = zoo_in(tmp_path / "two", domain=data)
    prepared = prepare_generator(recipe_of(zoo, told={"kinds": ["observation"]}, domain=data))
    ids = held_out(prepared.domain, "test", 2).ids
    evidence: Any = SimpleNamespace(record=SimpleNamespace(task_ids=ids, steps=[0, 1], seeds=[0]))
    with pytest.raises(ConditionError, match="is told class, but the tasks of this domain have none"):
        measure_again(prepared, evidence, champion)


def test_copies_are_counted_in_the_evidence_or_there_is_none_and_why(tmp_path: Path) -> None:
    zoo = zoo_in(tmp_path / "one")
    recipe = recipe_of(zoo, start="mean", evidence={"tasks": 2, "tuning": 2, "steps": [0], "seeds": [0]})
    prepared, file = prepare_generator(recipe), trained(recipe, tmp_path / "run")
    said: list[str] = []
    record = measure_generator(prepared, file, said.append, ["prior"]).record
    facts = {c.source: c.routine for c in record.curves}
    assert facts["sample"]["refused_copies"] == 0 and "refused_copies" not in facts["mean"]
    stored = checkpoint.load(file)
    strict = {**stored.tensors, "generator.sketch.threshold": torch.tensor(1e6)}
    checkpoint.save(tmp_path / "strict.safetensors", strict, stored.card)
    record = measure_generator(prepared, tmp_path / "strict.safetensors", said.append, ["prior"]).record
    assert not any(c.source.startswith("sample") for c in record.curves)
    assert any("no evidence of 'sample', because 2 of 2 samples are copies" in text for text in said)
