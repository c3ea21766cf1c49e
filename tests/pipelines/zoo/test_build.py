"""Building a zoo: the same bytes however it is built, nothing lost and nothing twice, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hypernets.generator.generatability import evaluated
from hypernets.generator.shards import shard_file
from hypernets.generator.zoo import DIVERGED, MANIFEST, SAME_TASK
from metainit import checkpoint
from metainit.adaptation import trajectory
from metainit.card import DataSource, Provenance, Spec
from metainit.domains.registry import build_domain
from metainit.errors import DataError, MetainitError, RecipeError
from metainit.meta.state import TaskLosses
from pipelines.folder import RECIPE
from pipelines.recipe import load_recipe, read_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.zoo import fits
from pipelines.zoo.build import build_zoo, here, locked_folder
from pipelines.zoo.fits import fit_shard, fitted, tasks_of
from pipelines.zoo.preparation import PreparedZoo, prepare_zoo, require_size
from pipelines.zoo.prior import base_file
from tests.pipelines.zoo.fixtures import IMAGES, images_in, prepared_in, prior_in, recipe_of

ROOT = Path(__file__).parents[3]


def build(prepared: PreparedZoo, folder: Path, **options: Any) -> Any:
    return build_zoo(prepared, Path(prepared.recipe.prior), folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".json")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_every_training_task_is_fitted_once_and_held_out_ones_are_others(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, members=1000)
    zoo = build(prepared, tmp_path / "zoo").zoo
    size = prepared.domain.size("train")
    train, test = zoo.members("train"), zoo.members("test")
    assert len(train) == size == len(set(train.ids)) and len(zoo.members("validation")) == 2
    assert set(train.ids).isdisjoint(test.ids) and len(test) == 3
    assert train.deltas.shape == (size, prepared.layout.size)
    numbers = [int(name.split("[")[1].rstrip("]")) for name in train.ids]
    assert train.conditions["class"].tolist() == [n % 4 for n in numbers]
    assert train.conditions["observation"].shape == (size, 1, 6, 6)
    manifest = zoo.manifest
    assert manifest.prior == "images" and manifest.data.fingerprint == prepared.domain.fingerprint()
    assert str(tmp_path) not in (tmp_path / "zoo" / MANIFEST).read_text()
    assert manifest.generatability is not None and manifest.generatability.pairs == 12


def test_a_member_is_the_fit_that_adaptation_makes(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    zoo = build(prepared, tmp_path / "zoo").zoo
    members = zoo.members("train")
    (task,) = list(tasks_of(prepared, prepared.plans()[1])[3:4])
    losses = TaskLosses(prepared.domain, prepared.function, task, batched=False)
    *_, end = trajectory(losses, prepared.start, prepared.fit.routine, {}, 10)
    expected = prepared.layout.flatten(end) - zoo.base_vector
    assert members.ids[15] == task.ids[0]
    torch.testing.assert_close(members.deltas[15], expected.detach(), rtol=1e-3, atol=1e-5)
    assert float(members.losses[15]) == pytest.approx(float(losses.support(end).detach()), rel=1e-3)


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, workers=1)
    build(prepared, tmp_path / "one")
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        build(prepared_in(tmp_path, workers=7), tmp_path / "two", runner=backwards)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(contents(tmp_path / "one")) == 3 + 2 + 2  # three, one and one shards, base and manifest


def backwards(prepared: PreparedZoo, folder: Path, missing: Any) -> Any:
    return here(prepared, folder, list(reversed(missing)))


@pytest.mark.parametrize("execution", ["vmap", "loop"])
def test_tasks_at_once_and_one_after_another_agree(execution: str, tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, execution=execution)
    other = prepared_in(tmp_path, batch=12, execution="vmap")
    plan = prepared.plans()[0]
    one, two = fit_shard(prepared, plan), fit_shard(other, plan)
    assert one.members.ids == two.members.ids
    torch.testing.assert_close(one.members.deltas, two.members.deltas, rtol=1e-3, atol=1e-5)


def test_a_killed_build_goes_on_and_nothing_is_lost_or_twice(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    whole = tmp_path / "whole"
    base = Path(recipe.prior)
    prepared = prepare_zoo(recipe, base)
    build_zoo(prepared, base, whole)
    order = {"recipe": recipe.dump(), "folder": str(tmp_path / "killed"), "kill_at": 2}
    command = [sys.executable, "-m", "tests.pipelines.zoo.building_process", json.dumps(order)]
    assert subprocess.run(command, cwd=ROOT, timeout=100, check=False).returncode == -signal.SIGKILL
    there = {n: os.stat(tmp_path / "killed" / shard_file(n)).st_mtime_ns for n in (0, 1)}
    assert not (tmp_path / "killed" / MANIFEST).exists()
    done: list[int] = []
    built = build_zoo(
        prepared, base, tmp_path / "killed", progress=lambda fits, total, left: done.append(fits)
    )
    assert built.fitted == 6 + 2 + 3 and done == [30, 32, 35]
    assert {n: os.stat(tmp_path / "killed" / shard_file(n)).st_mtime_ns for n in (0, 1)} == there
    assert contents(tmp_path / "killed") == contents(whole)


def test_a_finished_zoo_is_not_built_again_but_what_is_damaged_is(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    build(prepared, tmp_path / "zoo")
    sound = contents(tmp_path / "zoo")
    assert build(prepared, tmp_path / "zoo").fitted == 0
    file = tmp_path / "zoo" / shard_file(1)
    file.write_bytes(file.read_bytes()[:-3] + b"abc")
    assert build(prepared, tmp_path / "zoo").fitted == 12
    file.unlink()
    assert build(prepared, tmp_path / "zoo").fitted == 12
    assert contents(tmp_path / "zoo") == sound


def test_one_folder_has_one_zoo(tmp_path: Path) -> None:
    build(prepared_in(tmp_path), tmp_path / "zoo")
    sound = contents(tmp_path / "zoo")
    recipe = (tmp_path / "zoo" / RECIPE).read_bytes()
    with pytest.raises(DataError, match="another recipe"):
        build(prepared_in(tmp_path, seed=3), tmp_path / "zoo")
    assert (tmp_path / "zoo" / RECIPE).read_bytes() == recipe
    other = prior_in(tmp_path, seed=1)
    prepared = prepare_zoo(recipe_of(tmp_path, prior=str(other)), other)
    with pytest.raises(DataError, match="another base"):
        build(prepared, tmp_path / "zoo")
    assert contents(tmp_path / "zoo") == sound and (tmp_path / "zoo" / RECIPE).read_bytes() == recipe


def test_only_fits_that_are_missing_are_made_where_a_zoo_changes(tmp_path: Path) -> None:
    folder = tmp_path / "zoo"
    build(prepared_in(tmp_path), folder)
    # Numbers of shards stand for other tasks where there are more or fewer of them before.
    changes: list[tuple[dict[str, Any], int]] = [
        ({"name": "other", "outlier": 3.0}, 0),
        ({"held_out": {"validation": 3, "test": 3}}, 3),
        ({"members": 24, "held_out": {"validation": 3, "test": 3}}, 3 + 3),
        ({"members": 30, "held_out": {}}, 6 + 5),
    ]
    for change, count in changes:
        prepared = prepared_in(tmp_path, **change)
        assert build(prepared, folder).fitted == count, change
        build(prepared, tmp_path / f"anew-{count}")
        assert contents(folder) == contents(tmp_path / f"anew-{count}")


def test_a_damaged_base_is_written_again(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    build(prepared, tmp_path / "zoo")
    sound = contents(tmp_path / "zoo")
    file = tmp_path / "zoo" / "base.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert build(prepared, tmp_path / "zoo").fitted == 0 and contents(tmp_path / "zoo") == sound


def test_a_zoo_of_an_earlier_version_is_finished_as_it_is(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    build(replace(prepared, earlier=True), tmp_path / "zoo")
    sound = contents(tmp_path / "zoo")
    assert build(prepared, tmp_path / "zoo").fitted == 0 and contents(tmp_path / "zoo") == sound


def test_a_zoo_that_could_not_be_read_is_not_begun(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a shard of 100000 fits has .* set shard to"):
        require_size(10**6, 100_000, "train", 10**6)
    with pytest.raises(DataError, match="fits of the train split have .* fewer tensors"):
        require_size(10**6, 100, "train", 10**6)
    require_size(10**6, 100, "train", 1000)


def test_fits_that_diverged_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, notes, order = prepared_in(tmp_path), list[str](), list[str]()

    def poisoned(prepared: PreparedZoo, plan: Any) -> Any:
        order.append(f"shard {plan.number}")
        tasks = tasks_of(prepared, plan)
        if plan.number == 0:
            tasks.support["values"][:3] = torch.inf
        return tasks

    def say(text: str) -> None:
        notes.append(text)
        order.append(text)

    monkeypatch.setattr(fits, "tasks_of", poisoned)
    build(prepared, tmp_path / "zoo", note=say)
    assert notes[0].startswith("warning: 9 of 12 fits of the first shard are left, 3 diverged; such as")
    assert order.index(notes[0]) < order.index("shard 1")


def test_two_builds_cannot_be_at_work_in_one_folder(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path)
    with locked_folder(tmp_path / "zoo"), pytest.raises(MetainitError, match="another build is at work"):
        build(prepared, tmp_path / "zoo")
    assert build(prepared, tmp_path / "zoo").fitted == 35


def test_fits_that_diverge_are_left_out_and_the_others_are_not(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, execution="vmap", batch=12)
    tasks = tasks_of(prepared, prepared.plans()[0])
    values = tasks.support["values"].clone()
    values[4] = torch.nan
    values[9] = 1e30  # its square is not finite
    bad = type(tasks)(
        {"values": values}, tasks.query, tasks.shared, tasks.ids, tasks.groups, tasks.conditions
    )
    found, sound = fitted(prepared, bad), fitted(prepared, tasks)
    assert set(found.failed) == {tasks.ids[4], tasks.ids[9]}
    assert all("the loss is" in reason for reason in found.failed.values())
    assert found.kept == (0, 1, 2, 3, 5, 6, 7, 8, 10, 11)
    torch.testing.assert_close(found.deltas, sound.deltas[list(found.kept)], rtol=1e-3, atol=1e-5)


def test_what_diverges_is_counted_in_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepared_in(tmp_path)

    def poisoned(prepared: PreparedZoo, plan: Any) -> Any:
        tasks = tasks_of(prepared, plan)
        if plan.number == 0:
            tasks.support["values"][7] = torch.inf
        return tasks

    monkeypatch.setattr(fits, "tasks_of", poisoned)
    zoo = build(prepared, tmp_path / "zoo").zoo
    count = zoo.manifest.count("train")
    assert (count.fits, count.members, count.excluded) == (30, 29, {DIVERGED: 1})
    assert len(zoo.members("train")) == 29


def test_a_fit_that_cannot_work_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    prepared = prepared_in(tmp_path, fit={"optimizer": "sgd", "step_size": 1e30, "steps": 5})
    with pytest.raises(DataError, match="0 of 12 fits of the first shard are left, 12 diverged: choose"):
        build(prepared, tmp_path / "diverged", note=notes.append)
    assert contents(tmp_path / "diverged").keys() == {"base.safetensors", shard_file(0)}
    prepared = prepared_in(tmp_path, fit={"optimizer": "sgd", "step_size": 1e-4, "steps": 1})
    build(prepared, tmp_path / "still", note=notes.append)
    early = notes.index(next(n for n in notes if n.startswith("warning: not fitted")))
    assert early < notes.index("looking at what lies between the fits")


def test_only_some_tensors_are_fitted(tmp_path: Path) -> None:
    name = "layers.0.weight"
    prepared = prepared_in(tmp_path, fit={"step_size": 5e-3, "steps": 4, "adapts": [name]})
    zoo = build(prepared, tmp_path / "zoo").zoo
    assert zoo.layout.names == (name,) and zoo.members().deltas.shape == (30, 16)
    tasks = tasks_of(prepared, prepared.plans()[0])
    found, _ = evaluated(
        prepared.domain, prepared.function, prepared.start, zoo.layout, zoo.members().deltas[:12], tasks
    )
    torch.testing.assert_close(found, zoo.members().losses[:12], rtol=1e-3, atol=1e-6)
    with pytest.raises(RecipeError, match=r"fit\.adapts.*did you mean 'layers\.0\.weight'"):
        prepared_in(tmp_path, fit={"step_size": 5e-3, "adapts": ["layers.0.wight"]})


def test_the_priors_own_routine_and_its_continuation_can_fit(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, fit={"optimizer": "prior", "steps": 6})
    assert prepared.fit.routine == prepared.base.card.routine and prepared.fit.steps == 6
    shard = fit_shard(prepared, prepared.plans()[0])
    assert bool((shard.members.losses < shard.start_losses).all())


def test_tasks_that_are_drawn_twice_count_once(tmp_path: Path) -> None:
    domain = {"fit": "random_crop", "data": str(recipe_of(tmp_path).domain["data"])}
    prepared = prepared_in(tmp_path, domain=domain, held_out={"validation": 0})
    tasks = [name for plan in prepared.plans() for name in tasks_of(prepared, plan).ids]
    zoo = build(prepared, tmp_path / "zoo").zoo
    count = zoo.manifest.count("train")
    assert count.fits == 30 and count.members == len(set(tasks)) == len(set(zoo.members().ids))
    assert count.duplicates.get(SAME_TASK, 0) == 30 - len(set(tasks))


def test_more_held_out_tasks_than_there_are_is_refused(tmp_path: Path) -> None:
    prepared = prepared_in(tmp_path, held_out={"validation": 0, "test": 100})
    with pytest.raises(DataError, match=r"held_out\.test is 100, but the domain has 5"):
        prepared.plans()


WRONG = [
    ({"fit": {"steps": 3}}, "the optimizer adam needs a step_size"),
    ({"fit": {"optimizer": "prior", "step_size": 1.0}}, "the prior's own"),
    ({"domain": {"name": "ct"}}, "domain.name is that of the prior"),
    ({"checkpoint_every": 3}, "checkpoint_every is no key of a zoo"),
    ({"membres": 3}, "did you mean 'members'"),
    ({"shard": 1}, "shard"),
    ({"family": "prior"}, "no key"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=[next(iter(row[0])) for row in WRONG])
def test_what_is_wrong_in_a_recipe_is_named(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_of(tmp_path, **changes)


def test_a_recipe_tells_no_place(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert set(recipe.places) == {"domain.data", "prior"}
    assert str(tmp_path) not in str(recipe.recorded()) and read_recipe(recipe.dump()) == recipe


def test_a_zoo_is_built_and_not_trained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="build it with `metainit zoo build zoo-digits-debug`"):
        train(load_recipe("zoo-digits-debug"), tmp_path, sink=ListSink())


def test_a_prior_that_is_none_is_refused(tmp_path: Path, home: Path) -> None:
    with pytest.raises(RecipeError, match="there is no file"):
        base_file(recipe_of(tmp_path, prior=str(tmp_path / "none.safetensors")), print)
    with pytest.raises(RecipeError, match="did you mean 'image-folder'"):
        base_file(recipe_of(tmp_path, prior="image-foldr"), print)
    stored = checkpoint.load(prior_in(tmp_path))
    bare = tmp_path / "bare.safetensors"
    checkpoint.save(bare, stored.tensors, stored.card.model_copy(update={"domain": None}))
    with pytest.raises(RecipeError, match="names no domain"):
        prepare_zoo(recipe_of(tmp_path), bare)


def test_what_a_domain_takes_by_itself_is_not_taken_for_the_priors_data(tmp_path: Path, home: Path) -> None:
    stored = checkpoint.load(prior_in(tmp_path))
    digits = Spec(name="image", arguments={**IMAGES, "bundled": "digits"})

    def prepared(domain: Spec, fingerprint: str, **said: object) -> PreparedZoo:
        source = Provenance(data=DataSource(fingerprint=fingerprint))
        card = stored.card.model_copy(update={"domain": domain, "provenance": source})
        checkpoint.save(tmp_path / "of.safetensors", stored.tensors, card)
        return prepare_zoo(recipe_of(tmp_path, domain=said), tmp_path / "of.safetensors")

    own = build_domain(digits).fingerprint()
    assert prepared(digits, own).domain.fingerprint() == own
    assert prepared(digits, "").domain.fingerprint() == own  # of unknown data
    with pytest.raises(DataError, match="not the data of the prior 'images'.*point domain.data at the data"):
        prepared(digits, "ab" * 32)
    with pytest.raises(DataError, match="does not say where its data lie.*point domain.data at the data"):
        prepared(Spec(name="image", arguments=IMAGES), "ab" * 32)
    elsewhere = prepared(Spec(name="image", arguments=IMAGES), "ab" * 32, data=str(images_in(tmp_path)))
    assert elsewhere.domain.fingerprint() != own  # who names data has chosen them
