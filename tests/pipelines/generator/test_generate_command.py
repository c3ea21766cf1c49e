"""`metainit generate`: starts as files, which follow from their seeds and from what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io
import torch
import typer
from typer.testing import CliRunner

import metainit
from hypernets.generator.checkpoints import read_generator
from hypernets.generator.conditions import conditions_of
from hypernets.generator.start import LARGEST_COUNT
from metainit import checkpoint
from metainit.adaptation import Task
from metainit.errors import MetainitError
from metainit.evidence.measuring import held_out
from metainit.networks import build
from pipelines import generate_command
from pipelines.registry import Registry
from tests.pipelines.generator.chains import Chain, trained

NAME = "gen-digits-debug"
app = typer.Typer()
app.command("generate")(generate_command.generate)


def generate(source: Path | str, out: Path, *options: Any, status: int = 0) -> str:
    words = [str(word) for word in (source, "-o", out, *options)]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    if isinstance(result.exception, MetainitError):
        return f"error: {result.exception}"
    assert result.exit_code == status, result.output
    return result.output


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def seeing(digits: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator that is told what each digit looks like."""
    return trained(digits.recipe("told.kinds=[observation]"), tmp_path_factory.mktemp("seeing"))


def test_starts_are_files_with_seeds_that_load_and_adapt(digits: Chain, tmp_path: Path) -> None:
    options = ("--condition", "3", "-n", 3, "--seed", 5)
    answer = json.loads(generate(digits.generator, tmp_path / "one", *options, "--json"))
    assert (answer["generator"], answer["what"], answer["condition"]) == (NAME, "sample", "3")
    paths = [Path(one["path"]) for one in answer["files"]]
    assert [path.name for path in paths] == [f"{NAME}-000{n}.safetensors" for n in range(3)]
    assert [one["seed"] for one in answer["files"]] == [5, 6, 7]
    weights = []
    prepared = digits.prepared()
    (task,) = held_out(prepared.domain, "test", 1)
    for one, path in zip(answer["files"], paths, strict=True):
        start = metainit.load(path)
        assert start.card.digest == one["digest"] and start.card.provenance.seeds == [one["seed"]]
        assert start.card.kind == "weights" and start.card.provenance.recipe["generator"] == NAME
        assert start.card.network is not None
        network = start.init_(build(start.card.network))
        before = torch.cat([p.detach().flatten() for p in network.parameters()])
        adapted = start.adapt(network, Task(prepared.domain, task))
        after = torch.cat([p.detach().flatten() for p in adapted.parameters()])
        assert torch.isfinite(after).all() and not torch.equal(before, after)
        weights.append(before)
    assert len({tuple(w.tolist()) for w in weights}) == 3
    text = generate(digits.generator, tmp_path / "two", *options)
    assert (
        f"{NAME}: 3 starts" in text
        and f"metainit.init_(network, '{tmp_path / 'two' / paths[0].name}')" in text
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    generate(digits.generator, tmp_path / "three", *options[:-1], 6)
    assert contents(tmp_path / "three") != contents(tmp_path / "one")


def test_a_class_goes_by_its_name_first_and_by_its_number(digits: Chain, tmp_path: Path) -> None:
    stored = checkpoint.load(digits.generator)
    said = json.loads(json.dumps(stored.card.provenance.recipe))
    # Classes whose names are numbers, but not their own.
    said["parts"]["config"]["conditions"]["class_names"] = ["9", "one", *"2345678", "0"]
    provenance = stored.card.provenance.model_copy(update={"recipe": said})
    file = tmp_path / "named.safetensors"
    checkpoint.save(file, stored.tensors, stored.card.model_copy(update={"provenance": provenance}))

    def weights(condition: str) -> dict[str, torch.Tensor]:
        out = tmp_path / condition
        generate(file, out, "--condition", condition)
        return dict(checkpoint.load(out / f"{NAME}-0000.safetensors").weights)

    start = metainit.load(file)
    for condition, number in (("9", 0), ("0", 9), ("one", 1), ("1", 1), ("4", 4)):
        (expected,) = start.generate(1, 0, condition=number)  # type: ignore[attr-defined]
        for name, value in weights(condition).items():
            assert torch.equal(value, expected.weights[name])


def test_a_registered_generator_goes_by_its_name(digits: Chain, home: Path, tmp_path: Path) -> None:
    Registry().register(digits.generator.parent, NAME)
    for number, name in enumerate((NAME, f"{NAME}/1", f"models:/{NAME}")):
        generate(name, tmp_path / str(number), "--condition", "3")
    assert contents(tmp_path / "0") == contents(tmp_path / "1") == contents(tmp_path / "2")


def test_nothing_is_overwritten_unasked_and_how_it_is_sampled_can_be_said(
    digits: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert generate_command.LARGEST_COUNT == LARGEST_COUNT
    generate(digits.generator, tmp_path, "-n", 3)
    before = contents(tmp_path)
    said = generate(digits.generator, tmp_path, "-n", 5, "--seed", 1)
    assert "-0000.safetensors is there already" in said and "--overwrite" in said
    assert contents(tmp_path) == before
    # In parts: the same starts as all at once.
    monkeypatch.setattr(generate_command, "AT_ONCE", 2)
    generate(digits.generator, tmp_path, "-n", 3, "--overwrite")
    assert contents(tmp_path) == before
    how = ("--steps", 3, "--guidance", 1.5, "--sampler", "ddim")
    generate(digits.generator, tmp_path, "--overwrite", "--condition", "3", *how)
    recipe = checkpoint.load(tmp_path / f"{NAME}-0000.safetensors").card.provenance.recipe
    assert (recipe["steps"], recipe["guidance"], recipe["sampler"]) == (3, 1.5, "ddim")
    assert "none for the prediction" in generate(digits.generator, tmp_path / "o", "--sampler", "euler")


@pytest.mark.parametrize("what", ["mean", "one_step"])
def test_other_things_can_be_asked_for(digits: Chain, tmp_path: Path, what: str) -> None:
    options = ("--condition", "3", "-n", 2, "--what", what, "--json")
    first, second = json.loads(generate(digits.generator, tmp_path, *options))["files"]
    one, two = (checkpoint.load(Path(f["path"])) for f in (first, second))
    assert one.card.provenance.recipe["what"] == what
    equal = all(torch.equal(value, two.weights[name]) for name, value in one.weights.items())
    assert equal == (what == "mean")


def test_an_observation_is_an_image_or_an_array(seeing: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8)
    skimage.io.imsave(tmp_path / "digit.png", pixels, check_contrast=False)
    np.save(tmp_path / "digit.npy", (pixels / 255).astype(np.float32)[None])
    colours = np.random.default_rng(1).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    skimage.io.imsave(tmp_path / "photo.png", colours, check_contrast=False)
    found = {}
    for name in ("digit.png", "digit.npy", "photo.png"):
        generate(seeing, tmp_path / f"out-{name}", "--observation", tmp_path / name)
        found[name] = dict(checkpoint.load(tmp_path / f"out-{name}" / f"{NAME}-0000.safetensors").weights)
    differ = False
    for name, value in found["digit.png"].items():
        torch.testing.assert_close(value, found["digit.npy"][name], rtol=1e-4, atol=1e-6)
        differ |= not torch.equal(value, found["photo.png"][name])
    assert differ


WRONG = [
    (("--condition", "12"), 0, "no class 12: the generator takes class (0 to 9)"),
    (("--condition", "tree"), 0, "knows no class 'tree'"),
    (("--what", "median"), 2, "expected sample, mean or one_step"),
    (("-n", "0"), 2, "Invalid value for '-n'"),
    (("--observation", "digit.png"), 0, "this generator takes no observation: leave --observation out"),
    (("--observation", "digit.npy"), 0, "this generator takes no observation"),
]


@pytest.mark.parametrize(("options", "status", "words"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_what_is_wrong_is_named_and_nothing_is_written(
    digits: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    status: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    skimage.io.imsave("digit.png", np.zeros((8, 8), dtype=np.uint8), check_contrast=False)
    np.save("digit.npy", np.zeros((1, 8, 8), dtype=np.float32))
    text = generate(digits.generator, tmp_path / "out", *options, status=status)
    assert words in " ".join(text.replace("│", " ").split()) and not (tmp_path / "out").exists()


def test_what_cannot_be_read_and_what_generates_nothing_is_named(
    digits: Chain, seeing: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.save(tmp_path / "wide.npy", np.zeros((1, 9, 9)))
    np.savez(tmp_path / "names.npz", x=np.zeros(3))
    objects = np.empty(1, dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    for name, words in (
        ("bad.npy", "cannot read"),
        ("objects.npy", "cannot read"),
        ("wide.npy", "no observation of the shape (1, 9, 9)"),
        ("none.npy", "there is no such file"),
    ):
        assert words in generate(seeing, tmp_path / "out", "--observation", tmp_path / name)
    assert "is a prior, which generates nothing" in generate(digits.prior, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_near_copies_of_members_are_refused_and_counted(digits: Chain, tmp_path: Path) -> None:
    stored = checkpoint.load(digits.generator)
    generator, _ = read_generator(stored)
    conditions = conditions_of(generator.config.conditions, 1, classes=torch.tensor([3])).repeated(8)
    drawn = generator.standardized(generator.sample(conditions, list(range(8))).deltas)
    near = generator.sketch.distances(drawn).sort().values
    file = tmp_path / "strict.safetensors"
    # Half of the samples are nearer to a member than this, then all of them.
    for threshold, refused in ((float(near[3:5].mean()), 4), (1e6, 0)):
        tensors = {**stored.tensors, "generator.sketch.threshold": torch.tensor(threshold)}
        checkpoint.save(file, tensors, stored.card)
        out = tmp_path / f"out-{refused}"
        text = generate(file, out, "--condition", "3", "-n", 8)
        if not refused:
            assert "copies of members after 16 more draws" in text and not out.exists()
            continue
        cards = [checkpoint.load(path).card for path in sorted(out.iterdir())]
        counts = [card.provenance.recipe["refused_copies"] for card in cards]
        assert sum(count > 0 for count in counts) == refused
        assert f"{sum(counts)} copies of zoo members were refused and drawn again" in text
