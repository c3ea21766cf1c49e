"""Trained weights of benchmarks are used again for the same plan, data and seed, and for no other."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import training
from benchmarks.training import Plan, train
from metainit import checkpoint
from metainit.card import Spec
from metainit.domains.ct import CTConfig, CTDomain
from metainit.errors import RecipeError
from metainit.meta.outer import AlgorithmConfig, OuterConfig

REPTILE = AlgorithmConfig(rule="reptile", step_sizes="fixed", inner_steps=1, execution="loop")
PLAN = Plan(
    "toy",
    Spec(name="siren", arguments={"width": 4, "depth": 2, "out_features": 1}),
    REPTILE,
    OuterConfig(steps=2, meta_batch=1),
)
SMALL, LARGE = (CTDomain(CTConfig(size=size, train_views=2)) for size in (8, 12))


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(training, "WEIGHTS", tmp_path)
    return tmp_path


def test_the_same_plan_resumes() -> None:
    path, facts = train(PLAN, SMALL, 0)
    before = path.read_bytes()
    assert train(PLAN, SMALL, 0) == (path, facts)
    assert path.read_bytes() == before
    recipe = checkpoint.load(path).card.provenance.recipe
    assert recipe["outer"]["steps"] == 2
    assert recipe["stages"] == [[0, SMALL.fingerprint()]]


@pytest.mark.parametrize(
    ("plan", "domain"),
    [
        (replace(PLAN, outer=OuterConfig(steps=3, meta_batch=1)), SMALL),
        (replace(PLAN, algorithm=REPTILE.model_copy(update={"inner_steps": 2})), SMALL),
        (replace(PLAN, start="default"), SMALL),
        (PLAN, LARGE),
        (PLAN, lambda step: SMALL if step < 1 else LARGE),
    ],
    ids=["outer", "algorithm", "start", "data", "stage"],
)
def test_another_plan_is_refused(plan: Plan, domain: Any) -> None:
    path, _ = train(PLAN, SMALL, 0)
    with pytest.raises(RecipeError, match=f"delete {path} and .* to train again"):
        train(plan, domain, 0)


def test_weights_of_another_seed_under_the_name_are_refused() -> None:
    path, _ = train(PLAN, SMALL, 0)
    for suffix in (".safetensors", ".json"):
        path.with_suffix(suffix).rename(path.with_name(f"toy-1{suffix}"))
    with pytest.raises(RecipeError, match="trained by plan"):
        train(PLAN, SMALL, 1)


def test_a_note_without_a_plan_is_refused_until_it_has_one() -> None:
    path, facts = train(PLAN, SMALL, 0)
    note = path.with_suffix(".json")
    note.write_text(json.dumps({k: v for k, v in facts.items() if k != "plan"}))
    with pytest.raises(RecipeError, match=f'"plan": "{facts["plan"]}"'):
        train(PLAN, SMALL, 0)
    note.write_text(json.dumps(facts))
    assert train(PLAN, SMALL, 0) == (path, facts)
