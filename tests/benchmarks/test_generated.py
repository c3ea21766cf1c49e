"""The benchmark of generated starts on a toy: settings beyond the grid, and later seeds with the first's."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipelines.generator.controls import RIDGES, Control
from pipelines.generator.preparation import prepare_generator
from pipelines.zoo.fits import one_thread
from tests.pipelines.generator.test_zoo_digest import recipe_of, trained, zoo_in


@pytest.fixture
def generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("METAINIT_DATA", str(tmp_path))
    found = importlib.import_module("benchmarks.generated")
    cells = importlib.import_module("benchmarks.cells")
    monkeypatch.setattr(cells, "RESULTS", tmp_path)
    for name, value in {"TUNING": 2, "REPORTED": 2, "TASK_STEPS": (0, 2), "TARGET": 9.0}.items():
        monkeypatch.setattr(found, name, value)
    monkeypatch.setattr(found, "STEPS", {"given": 2, "ordinary": 2})
    zoo = zoo_in(tmp_path / "one")
    recipe = recipe_of(zoo, told={"kinds": ["observation"]}, start="mean")
    file = trained(recipe, tmp_path / "run")
    prepared = prepare_generator(recipe)
    made = SimpleNamespace(prepared=lambda kind: prepared, generators={"observation": file}, facts={})
    monkeypatch.setattr(found, "made", lambda *_: made)
    return found


def test_settings_are_numbers_that_later_seeds_take(
    generated: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = generated.Cells("toy")
    # A number of a setting on a grid that is another one today is measured again.
    cells.values["observation/ridge/0"] = {"setting": 0, "settings": 9}
    with one_thread():
        generated.observation(cells, 0)
        generated.observation(cells, 1)
        monkeypatch.setattr(generated, "right", generated.psnr)
        generated.tasks(cells, 0)
        generated.tasks(cells, 1)
    found = cells.values
    for name in ("ridge", "regressor", "noised_member"):
        first, later = (found[f"observation/{name}/{seed}"] for seed in (0, 1))
        assert later["setting"] == first["setting"] and len(later["settings"]) == 1
        assert len(first["settings"]) > 2
        for steps in ("0", "2"):
            one, two = (found[f"tasks/{name}/{seed}"]["chosen"][steps] for seed in (0, 1))
            assert one[0] == two[0] and len(one[0]) == (2 if name == "regressor" else 1)
    assert found["observation/mean/0"]["setting"] == []
    best = found["observation/ridge/0"]["setting"][0]
    tried = [row[0] for row in found["observation/ridge/0"]["settings"]]
    assert min(tried) < best < max(tried) or len(tried) == len(RIDGES) + 4
    assert found["observation/wall/1"]["mean"] > 0


def test_a_control_without_settings_has_one(generated: ModuleType) -> None:
    alone: Any = Control(lambda setting: None, seeded=False)  # type: ignore[arg-type, return-value]
    assert generated._grid(alone, []) == () and generated._chosen(alone, {"setting": 0}) == ()
