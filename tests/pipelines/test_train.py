"""The training function: what it writes, that it can be interrupted anywhere, and that workers agree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from metainit import checkpoint
from metainit.errors import CheckpointError, DataError, DivergenceError, RecipeError
from pipelines.folder import CHECKPOINT, LAST_GOOD, SCRATCH
from pipelines.preparation import prepare
from pipelines.recipe import Recipe, load_recipe, recipe_names
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.world import share
from tests.pipelines import training_process

CT = "ct-phantoms-debug"
ROOT = Path(__file__).parents[2]
META_SGD = [
    "network={name: siren, width: 12, depth: 3}",
    "start=siren",
    "algorithm={rule: meta_sgd, step_sizes: parameter, inner_step_size: 0.01}",
]
FASTER = ["validation_tasks=0", "outer.steps=20"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Some random images, as a user's npz file."""
    file = tmp_path / "images.npz"
    np.savez(file, x=np.random.default_rng(0).random((20, 16, 16, 3), dtype=np.float32))
    return file


def in_processes(folder: Path, jobs: list[dict[str, Any]], size: int = 1) -> list[int]:
    """Run jobs on `size` new processes and return their exit statuses."""
    orders = [
        {"jobs": jobs, "rank": rank, "size": size, "meet": str(folder / f"meet-{size}")}
        for rank in range(size)
    ]
    command = [sys.executable, "-m", "tests.pipelines.training_process"]
    started = [subprocess.Popen([*command, json.dumps(order)], cwd=ROOT) for order in orders]
    return [process.wait(timeout=200) for process in started]


def close(first: Path, second: Path) -> float:
    """Return the largest difference of two files' tensors, relative to each tensor's largest entry."""
    one, two = (safetensors.torch.load_file(file) for file in (first, second))
    assert one.keys() == two.keys()
    return max(float((one[k] - two[k]).abs().max() / one[k].abs().max().clamp(min=1e-30)) for k in one)


def content_of_run(recipe: Recipe, folder: Path) -> bytes:
    return train(recipe, folder, sink=ListSink()).checkpoint.read_bytes()


def labelled(file: Path, **names: Any) -> None:
    """Write an npz file with label maps of six classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, (40, 16, 16), dtype=np.uint8)
    arrays: dict[str, Any] = {k: labels if isinstance(v, str) else np.asarray(v) for k, v in names.items()}
    np.savez(file, x=rng.integers(0, 255, (40, 16, 16, 3), dtype=np.uint8), **arrays)


SEVEN = [f"class {n}" for n in range(7)]
DATA: dict[str, Callable[[Path], Any]] = {
    "ct-slices-debug": lambda file: np.savez(
        file, x=np.random.default_rng(0).random((12, 16, 16), dtype=np.float32)
    ),
    "image-folder-debug": lambda file: np.savez(
        file, x=np.random.default_rng(0).random((20, 16, 16, 3), dtype=np.float32)
    ),
    "seg-folder-debug": lambda file: labelled(file, y="labels"),
    "seg-clothes-debug": lambda file: labelled(
        file, y="labels", class_names=SEVEN, fewshot_train_classes=[1, 2, 3, 4], fewshot_val_classes=[5, 6]
    ),
    "seg-cells-debug": lambda file: labelled(
        file, mask="labels", mask_names=SEVEN, split=[0] * 30 + [1] * 10
    ),
}
"""Recipes that need data -> what writes some into an npz file."""
MORE = {"ct-slices-debug": ["domain.array=x"], "seg-folder-debug": ["domain.label_array=y"]}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in recipe_names()
        if name.endswith("-debug") and not name.startswith(("gen", "ghn", "zoo"))
    ],
)
def test_debug_recipes_end_in_seconds(name: str, tmp_path: Path) -> None:
    settings = []
    if name in DATA:
        DATA[name](tmp_path / "data.npz")
        settings = [f"domain.data={tmp_path / 'data.npz'}", *MORE.get(name, [])]
    sink, seen = ListSink(), []
    recipe = load_recipe(name, settings)
    result = train(recipe, tmp_path / "run", sink=sink, progress=lambda *news: seen.append(news))
    stored = checkpoint.load(result.checkpoint)
    assert stored.card.kind == "prior" and stored.card.name == name
    assert stored.card.network is not None and stored.card.routine is not None
    assert stored.card.routine.steps == recipe.algorithm.inner_steps
    assert stored.card.provenance.recipe == recipe.recorded()
    assert len(stored.card.provenance.data.fingerprint) == 64
    learned = recipe.algorithm.step_sizes == "parameter"
    assert bool(stored.step_sizes) == learned
    assert set(stored.weights) == set(prepare(recipe).network.state_dict())
    assert [step for step, metrics in sink.metrics if "loss" in metrics] == list(range(1, 13))
    headline = f"validation_{prepare(recipe).domain.metric}"
    assert [step for step, metrics in sink.metrics if headline in metrics] == [6, 12]
    assert {"loss", headline} <= result.metrics.keys()
    assert [news[0] for news in seen] == list(range(1, 13)) and seen[-1][3] == 0
    assert len(list((tmp_path / "run" / SCRATCH).glob("*.safetensors"))) == 2


def test_the_loss_falls(tmp_path: Path) -> None:
    sink = ListSink()
    recipe = load_recipe(CT, [*META_SGD, "outer={steps: 60, meta_batch: 2, step_size: 1e-3, warm_up: 0}"])
    train(recipe, tmp_path, sink=sink)
    losses = [metrics["loss"] for _, metrics in sink.metrics]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_the_same_run_writes_the_same_bytes(tmp_path: Path) -> None:
    recipe = load_recipe(CT)
    assert content_of_run(recipe, tmp_path / "a") == content_of_run(recipe, tmp_path / "b")
    other = load_recipe(CT, ["seed=1"])
    assert content_of_run(recipe, tmp_path / "a") != content_of_run(other, tmp_path / "c")


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_shares_make_up_the_batch(size: int) -> None:
    tasks = list(range(5))
    shares = [tasks[share(5, rank, size)] for rank in range(size)]
    assert [task for mine in shares for task in mine] == tasks
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_killed_run_resumes_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    recipe = load_recipe(CT, [*META_SGD, *FASTER, "checkpoint_every=4"])
    job = {"recipe": recipe.dump(), "folder": str(tmp_path / "killed")}
    assert in_processes(tmp_path, [{**job, "kill_at": 10}]) == [-signal.SIGKILL]
    states = sorted(p.name for p in (tmp_path / "killed" / SCRATCH).glob("*.safetensors"))
    assert states == ["step-0000000004.safetensors", "step-0000000008.safetensors"]
    steps: list[int] = []
    resumed = train(
        recipe, tmp_path / "killed", sink=ListSink(), progress=lambda step, *_: steps.append(step)
    )
    assert steps == list(range(9, 21))
    assert resumed.checkpoint.read_bytes() == content_of_run(recipe, tmp_path / "whole")


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    recipe = load_recipe(CT, FASTER)
    whole = content_of_run(recipe, tmp_path)
    newest = max((tmp_path / SCRATCH).glob("*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-3])
    (tmp_path / CHECKPOINT).unlink()
    assert content_of_run(recipe, tmp_path) == whole


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    recipe = load_recipe(CT)
    whole = content_of_run(recipe, tmp_path)
    sink = ListSink()
    again = train(load_recipe(CT, ["evidence.tasks=3", "validate_every=9"]), tmp_path, sink=sink)
    assert sink.metrics == [] and again.checkpoint.read_bytes() == whole


def test_another_recipe_or_other_data_are_refused(tmp_path: Path, images: Path) -> None:
    train(load_recipe(CT), tmp_path / "ct", sink=ListSink())
    with pytest.raises(RecipeError, match=r"outer.steps was 12, is 13; choose another folder"):
        train(load_recipe(CT, ["outer.steps=13"]), tmp_path / "ct", sink=ListSink())
    recipe = load_recipe("image-folder-debug", [f"domain.data={images}"])
    train(recipe, tmp_path / "images", sink=ListSink())
    np.savez(images, x=np.random.default_rng(1).random((20, 16, 16, 3), dtype=np.float32))
    with pytest.raises(RecipeError, match="the data have changed"):
        train(recipe, tmp_path / "images", sink=ListSink())


def test_one_and_two_workers_agree(tmp_path: Path) -> None:
    settings = [*FASTER, "outer.meta_batch=5"]
    jobs = {
        "meta_sgd": load_recipe(CT, [*META_SGD, *settings, "dtype=float64"]),
        "reptile": load_recipe(CT, [*settings, "dtype=float64"]),
        "gradient": load_recipe(CT, [*META_SGD, *settings]),
        "idle": load_recipe(CT, ["outer={steps: 3, meta_batch: 1}", "dtype=float64"]),
    }
    for size in (1, 2):
        order = [
            {
                "recipe": recipe.dump(),
                "folder": str(tmp_path / str(size) / name),
                "gradient": name == "gradient",
            }
            for name, recipe in jobs.items()
        ]
        if size == 1:
            training_process.main({"jobs": order})
        else:
            assert in_processes(tmp_path, order, size) == [0] * size
    one, two = tmp_path / "1", tmp_path / "2"
    for name in ("meta_sgd", "reptile", "idle"):
        assert close(one / name / CHECKPOINT, two / name / CHECKPOINT) < 1e-9
    assert close(*(f / "gradient" / "gradient.safetensors" for f in (one, two))) < 1e-5


def test_divergence_stops_and_keeps_the_last_good_weights(tmp_path: Path) -> None:
    recipe = load_recipe(
        CT,
        [*META_SGD, "outer={steps: 50, meta_batch: 2, step_size: 1e10, clip: null}", "checkpoint_every=1"]
        + ["validation_tasks=0"],
    )
    with pytest.raises(DivergenceError) as caught:
        train(recipe, tmp_path, sink=ListSink())
    text = str(caught.value)
    assert "outer step" in text and "lower" in text and LAST_GOOD in text
    assert checkpoint.load(tmp_path / LAST_GOOD).card.kind == "prior"
    assert not (tmp_path / CHECKPOINT).exists()


def test_divergence_before_anything_was_saved_says_so(tmp_path: Path) -> None:
    recipe = load_recipe(CT, [*META_SGD, "algorithm.inner_step_size=1e30"])
    with pytest.raises(DivergenceError, match="outer step 0.*no state was saved"):
        train(recipe, tmp_path, sink=ListSink())


def test_bad_data_are_named_before_anything_starts(tmp_path: Path) -> None:
    values = np.zeros((20, 16, 16, 3), dtype=np.float32)
    values[3, 4, 5] = np.nan
    file = tmp_path / "bad.npz"
    np.savez(file, x=values)
    with pytest.raises(DataError, match=r"\[3\].*NaN"):
        prepare(load_recipe("image-folder-debug", [f"domain.data={file}"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image"):
        prepare(load_recipe("image-folder-debug", [f"domain.data={tmp_path / 'empty'}"]))


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"network.out_features is 3, the domain has 1"):
        prepare(load_recipe(CT, ["network.out_features=3"]))
    with pytest.raises(RecipeError, match="start: 'siren' cannot fill"):
        prepare(load_recipe(CT, ["start=siren"]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(RecipeError, match="no CUDA device"):
        prepare(load_recipe(CT, ["gpu=true"]))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    recipe = load_recipe(CT, FASTER)
    filler = small_disk / "filler"

    def fill(step: int, *_: float) -> None:
        if step == 7:
            with filler.open("wb", buffering=0) as stream, suppress(OSError):
                while stream.write(os.urandom(4096)):
                    pass

    with pytest.raises(CheckpointError, match="free some space"):
        train(recipe, small_disk / "run", sink=ListSink(), progress=fill)
    assert (small_disk / "run" / SCRATCH / "step-0000000005.safetensors").is_file()
    filler.unlink()
    assert content_of_run(recipe, small_disk / "run") == content_of_run(recipe, tmp_path / "whole")
