"""The whole chain on a GPU: a zoo is built, a generator learns from it, is measured, and draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.io
import torch

from metainit.initialization import load
from pipelines.generator.evidence import illustrate, measure_generator
from pipelines.generator.preparation import prepare_generator
from tests.pipelines.generator.test_zoo_digest import recipe_of, trained, zoo_in

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("kinds", [["class"], ["observation"]])
def test_the_chain_on_a_gpu(tmp_path: Path, kinds: list[str]) -> None:
    zoo = zoo_in(tmp_path / "one", gpu=True)
    evidence = {"tasks": 2, "tuning": 2, "steps": [0, 1], "seeds": [0]}
    recipe = recipe_of(zoo, gpu=True, told={"kinds": kinds}, evidence=evidence)
    file = trained(recipe, tmp_path / "run")
    prepared = prepare_generator(recipe)
    assert prepared.device.type == "cuda" and next(prepared.generator.parameters()).is_cuda
    measured = measure_generator(prepared, file, lambda text: None)
    assert {"ridge", "regressor", "noised_member"} <= {c.source for c in measured.record.curves}
    illustrate(prepared, file, measured, tmp_path)
    assert skimage.io.imread(tmp_path / "samples.png").std() > 10
    (drawn,) = load(str(file)).generate(1, 0)  # type: ignore[attr-defined]
    assert all(torch.isfinite(value).all() for value in drawn.weights.values())
