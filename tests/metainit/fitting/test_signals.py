"""Fitting of files and folders: what is written, what a mask hides, and what happens to bad files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io
import torch

from metainit import checkpoint
from metainit.adaptation import Task
from metainit.card import AdaptationRoutine, Spec
from metainit.domains.ct import CTConfig, CTDomain
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.errors import DataError, RecipeError, SourceError
from metainit.evidence.curves import weights_of
from metainit.evidence.metrics import psnr
from metainit.fitting import REPORT_FILE, WEIGHTS_FILE, fit_all, prepare_start, signals
from metainit.fitting.signals import _Job, fit_together
from metainit.initialization import Initialization, load
from metainit.networks import build
from metainit.networks.chunks import in_chunks
from metainit.signals import read_signal, signal_paths
from tests.metainit.evidence.toys import write_prior

COLOUR = Spec(name="siren", arguments={"width": 16, "depth": 3, "omega": 10, "omega_first": 10})
GREY = Spec(name="siren", arguments={**COLOUR.arguments, "out_features": 1})
ROUTINE = AdaptationRoutine(steps=4, step_size=0.02)


def start_for(network: Spec, folder: Path, routine: AdaptationRoutine | None = ROUTINE) -> Initialization:
    return load(
        write_prior(folder / "prior.safetensors", weights_of(build(network, seed=2)), routine, network)
    )


def picture(path: Path, height: int, width: int, channels: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Write a smooth random picture and return its pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(6 * (a * x + b * y) + c) for a, b, c in rng.uniform(-1, 1, (channels, 3))]
    pixels = np.round(255 * (0.5 + 0.4 * np.stack(waves, axis=-1))).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    skimage.io.imsave(path, pixels[..., 0] if channels == 1 else pixels, check_contrast=False)
    return pixels


def sinogram(path: Path, views: int = 6, size: int = 10) -> None:
    domain = CTDomain(CTConfig(size=size, views=views, held_out=1))
    support = domain.tasks(0, 0, 1, "test").support
    np.savez(path, sinogram=support["sinogram"][0].numpy(), angles=support["angles"][0].numpy())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a user has: sizes and channels of all sorts, a subfolder, a corrupt file, and other files."""
    root = tmp_path / "in"
    picture(root / "wide.png", 8, 14, 3)
    picture(root / "grey.png", 9, 9, 1, seed=1)
    picture(root / "sub" / "tall.png", 13, 7, 3, seed=2)
    (root / "broken.png").write_bytes(b"\x89PNG this is none")
    (root / "notes.txt").write_text("not a picture")
    return root


def test_a_folder_of_all_sorts(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    heard: list[tuple[int, str, Mapping[str, float]]] = []
    report = fit_all(folder, start_for(COLOUR, tmp_path), out, progress=lambda *news: heard.append(news))
    assert set(report["fitted"]) == {"wide.png", "grey.png", "sub/tall.png"}
    assert report["files"] == 4 and list(report["failed"]) == ["broken.png"]
    assert "cannot be read as an image" in report["failed"]["broken.png"]
    assert json.loads((out / REPORT_FILE).read_text()) == report
    assert [number for number, *_ in heard] == [1, 2, 3, 4]
    for name in report["fitted"]:
        fitted = skimage.io.imread(out / name / "fitted.png")
        truth = skimage.io.imread(folder / name)
        assert fitted.shape[:2] == truth.shape[:2] and fitted.shape[2:] == (3,)
        truth = np.broadcast_to(truth.reshape(*truth.shape[:2], -1), fitted.shape)
        reached = psnr(torch.from_numpy(fitted / 255.0), torch.from_numpy(truth / 255.0))
        assert report["fitted"][name]["psnr"] == pytest.approx(reached, abs=0.1)
    assert not (out / "broken.png").exists()


def test_a_fit_is_the_start_adapted_with_its_routine(folder: Path, tmp_path: Path) -> None:
    start = start_for(COLOUR, tmp_path)
    fit_all(folder / "wide.png", start, tmp_path / "out")
    pixels = torch.from_numpy(skimage.io.imread(folder / "wide.png").astype(np.float32) / np.float32(255))
    domain = ImageDomain(ImageConfig(height=8, width=14), images=[])
    network = start.init_(build(COLOUR))
    start.adapt(network, Task(domain, domain.measured(pixels[None])))
    written = checkpoint.load(tmp_path / "out" / "wide.png" / WEIGHTS_FILE)
    for name, value in weights_of(network).items():
        torch.testing.assert_close(written.weights[name], value, rtol=1e-5, atol=1e-7)


def test_the_weights_load_as_a_start_and_render_the_picture(folder: Path, tmp_path: Path) -> None:
    fit_all(folder / "wide.png", start_for(COLOUR, tmp_path), tmp_path / "out", steps=40)
    start = load(tmp_path / "out" / "wide.png" / WEIGHTS_FILE)
    assert start.card.kind == "weights" and start.card.network == COLOUR
    network = start.init_(build(COLOUR, seed=50))
    domain = ImageDomain(ImageConfig(height=8, width=14), images=[])
    shared = domain.measured(torch.zeros(1, 8, 14, 3)).shared
    with torch.no_grad():
        rendered = (domain.render(network, {}, shared) * 255).round()
    fitted = skimage.io.imread(tmp_path / "out" / "wide.png" / "fitted.png")
    assert (rendered.numpy() == fitted).all()


def test_buffers_of_the_network_travel_too(folder: Path, tmp_path: Path) -> None:
    network = Spec(
        name="fourier_mlp", arguments={"width": 8, "depth": 2, "frequencies": 4, "out_features": 3}
    )
    fit_all(folder / "wide.png", load("kaiming"), tmp_path / "out", routine=ROUTINE, network=network)
    start = load(tmp_path / "out" / "wide.png" / WEIGHTS_FILE)
    filled = start.init_(build(network, seed=1))
    assert torch.equal(filled.state_dict()["frequencies"], build(network).state_dict()["frequencies"])


def test_a_domain_without_files_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="domain 'classification', only in image, ct, segmentation: adapt"):
        fit_all(folder, start_for(COLOUR, tmp_path), tmp_path / "out", domain="classification")
    assert not (tmp_path / "out").exists()


def test_a_sinogram(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    sinogram(tmp_path / "in" / "scan.npz")
    start = start_for(GREY, tmp_path)
    losses = [
        fit_all(tmp_path / "in", start, tmp_path / f"out-{steps}", steps=steps)["fitted"]["scan.npz"]["loss"]
        for steps in (0, 30)
    ]
    assert losses[1] < 0.5 * losses[0]
    assert skimage.io.imread(tmp_path / "out-30" / "scan.npz" / "fitted.png").shape == (10, 10)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"sinogram": np.zeros((3, 8))}, "has no array 'angles'"),
        ({"sinogram": np.zeros(8), "angles": np.zeros(1)}, r"shape \(8,\), expected \(views, detectors\)"),
        ({"sinogram": np.full((1, 8), np.nan), "angles": np.zeros(1)}, "NaN or infinity"),
        ({"sinogram": np.zeros((2, 8)), "angles": np.zeros(3)}, "as many angles as views"),
        ({"sinogram": np.zeros((2, 1)), "angles": np.zeros(2)}, "bad.npz"),
        ({"sinogram": np.array([["a"]]), "angles": np.zeros(1)}, "bad.npz"),
        ({"sinogram": np.array([[{}]], dtype=object), "angles": np.zeros(1)}, "cannot be read as an npz"),
    ],
)
def test_a_bad_sinogram_is_named(arrays: dict[str, Any], says: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "bad.npz", **arrays)
    report = fit_all(tmp_path / "in", start_for(GREY, tmp_path), tmp_path / "out")
    assert report["fitted"] == {}
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(report["failed"]["bad.npz"])


def test_a_sinogram_among_pictures_of_a_colour_prior_fails_alone(folder: Path, tmp_path: Path) -> None:
    sinogram(folder / "scan.npz")
    report = fit_all(folder, start_for(COLOUR, tmp_path), tmp_path / "out")
    assert set(report["failed"]) == {"broken.png", "scan.npz"}
    assert "a network with 1 output, this one has 3" in report["failed"]["scan.npz"]


def test_a_tiny_picture_fails_alone(folder: Path, tmp_path: Path) -> None:
    picture(folder / "tiny.png", 2, 2, 3)
    report = fit_all(folder, start_for(COLOUR, tmp_path), tmp_path / "out")
    assert set(report["failed"]) == {"broken.png", "tiny.png"} and len(report["fitted"]) == 3
    assert "height" in report["failed"]["tiny.png"]


def test_unknown_pixels_do_not_influence_the_fit(tmp_path: Path) -> None:
    start = start_for(COLOUR, tmp_path)
    known = np.ones((8, 12), dtype=np.uint8) * 255
    known[2:6, 3:9] = 0
    weights: list[bytes] = []
    reports: list[dict[str, Any]] = []
    for number, hidden in enumerate((0, 255)):
        root = tmp_path / f"in-{number}"
        pixels = picture(root / "photo.png", 8, 12, 3)
        pixels[known == 0] = hidden
        skimage.io.imsave(root / "photo.png", pixels, check_contrast=False)
        skimage.io.imsave(root / "photo.mask.png", known, check_contrast=False)
        reports.append(fit_all(root, start, tmp_path / f"out-{number}"))
        weights.append((tmp_path / f"out-{number}" / "photo.png" / WEIGHTS_FILE).read_bytes())
    assert weights[0] == weights[1]
    assert reports[0]["files"] == 1 and list(reports[0]["fitted"]) == ["photo.png"]  # a mask is no picture
    assert reports[0]["fitted"]["photo.png"]["loss"] == reports[1]["fitted"]["photo.png"]["loss"]
    (tmp_path / "in-1" / "photo.mask.png").unlink()
    fit_all(tmp_path / "in-1", start, tmp_path / "out-2")
    assert (tmp_path / "out-2" / "photo.png" / WEIGHTS_FILE).read_bytes() != weights[1]


def test_a_mask_that_hides_everything_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "in" / "photo.png", 8, 8, 3)
    skimage.io.imsave(tmp_path / "in" / "photo.mask.png", np.zeros((8, 8), np.uint8), check_contrast=False)
    report = fit_all(tmp_path / "in", start_for(COLOUR, tmp_path), tmp_path / "out")
    assert "photo.mask.png: no pixel is known" in report["failed"]["photo.png"]


def times(out: Path) -> dict[str, int]:
    return {str(p.relative_to(out)): p.stat().st_mtime_ns for p in out.rglob(WEIGHTS_FILE)}


def test_finished_files_are_skipped(folder: Path, tmp_path: Path) -> None:
    start, out = start_for(COLOUR, tmp_path), tmp_path / "out"
    first = fit_all(folder, start, out)
    before = times(out)
    (out / "grey.png" / REPORT_FILE).unlink()  # as where the run was killed in the midst of this file
    picture(folder / "broken.png", 8, 8, 3, seed=9)
    second = fit_all(folder, start, out)
    after = times(out)
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {f"grey.png/{WEIGHTS_FILE}", f"broken.png/{WEIGHTS_FILE}"}
    assert second["failed"] == {}
    assert {k: second["fitted"][k] for k in first["fitted"]} == first["fitted"]


OTHER = {
    "steps": {"steps": 5},
    "step size": {"routine": AdaptationRoutine(steps=4, step_size=0.01)},
    "optimizer": {"routine": AdaptationRoutine(optimizer="adam", steps=4, step_size=0.02)},
    "seed": {"seed": 1},
    "network": {"network": COLOUR.model_copy(update={"arguments": {**COLOUR.arguments, "width": 8}})},
}


@pytest.mark.parametrize("what", OTHER)
def test_a_changed_setting_fits_again(what: str, folder: Path, tmp_path: Path) -> None:
    out, siren = tmp_path / "out", load("siren")
    settings: dict[str, Any] = {"routine": ROUTINE, "network": COLOUR}
    fit_all(folder, siren, out, **settings)
    before = times(out)
    fit_all(folder, siren, out, **settings)
    assert times(out) == before
    fit_all(folder, siren, out, **{**settings, **OTHER[what]})
    assert all(before[name] != time for name, time in times(out).items())


def test_a_changed_picture_is_fitted_again(folder: Path, tmp_path: Path) -> None:
    start, out = start_for(COLOUR, tmp_path), tmp_path / "out"
    fit_all(folder, start, out)
    before = times(out)
    picture(folder / "wide.png", 8, 14, 3, seed=77)
    skimage.io.imsave(folder / "grey.mask.png", np.eye(9, dtype=np.uint8) * 255, check_contrast=False)
    fit_all(folder, start, out)
    after = times(out)
    changed = {name for name in after if before[name] != after[name]}
    assert changed == {f"wide.png/{WEIGHTS_FILE}", f"grey.png/{WEIGHTS_FILE}"}


def test_what_was_written_is_not_read_as_input(folder: Path, tmp_path: Path) -> None:
    start, out = start_for(COLOUR, tmp_path), folder / "fits"
    first = fit_all(folder, start, out)
    second = fit_all(folder, start, out)
    assert second == first


def test_another_start_of_the_same_name_fits_again(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fit_all(folder, start_for(COLOUR, tmp_path), out)
    before = times(out)
    weights = weights_of(build(COLOUR, seed=3))
    other = load(write_prior(tmp_path / "2" / "prior.safetensors", weights, ROUTINE, COLOUR))
    fit_all(folder, other, out)
    assert all(before[name] != time for name, time in times(out).items())


@pytest.mark.parametrize(("steps", "says"), [(60, "adaptation step"), (1, "after 1 steps the loss is")])
def test_a_fit_that_diverges_is_named_and_the_others_go_on(
    steps: int, says: str, folder: Path, tmp_path: Path
) -> None:
    wild = AdaptationRoutine(steps=steps, step_size=1e38)
    report = fit_all(folder, start_for(COLOUR, tmp_path), tmp_path / "out", routine=wild)
    assert report["fitted"] == {} and len(report["failed"]) == 4
    assert f"wide.png: {says}" in report["failed"]["wide.png"]
    assert "lower the step size (now 1e+38)" in report["failed"]["wide.png"]
    json.dumps(report, allow_nan=False)


def test_files_of_one_size_are_fitted_at_once_as_they_are_alone(tmp_path: Path) -> None:
    for number in range(3):
        picture(tmp_path / "in" / f"{number}.png", 6, 7, 3, seed=number)
    start = start_for(COLOUR, tmp_path)
    fit_all(tmp_path / "in", start, tmp_path / "out")
    prepared = prepare_start(start)
    paths = signal_paths(tmp_path / "in")
    for one in fit_together(prepared, [read_signal(p, 3) for p in paths], batched=True):
        alone = checkpoint.load(tmp_path / "out" / one.path.name / WEIGHTS_FILE)
        for name, value in alone.weights.items():
            torch.testing.assert_close(one.weights[name], value, rtol=1e-4, atol=1e-6)


def test_one_of_several_at_once_may_diverge(tmp_path: Path) -> None:
    """Of two fits side by side the sinogram of huge values leaves the finite numbers, the other does not."""
    (tmp_path / "in").mkdir()
    sinogram(tmp_path / "in" / "good.npz")
    with np.load(tmp_path / "in" / "good.npz") as good:
        np.savez(tmp_path / "in" / "huge.npz", sinogram=good["sinogram"] + 1e30, angles=good["angles"])
    prepared = prepare_start(start_for(GREY, tmp_path))
    job = _Job(prepared, tmp_path / "in", tmp_path / "out")
    answers = dict(job._chunk(signal_paths(tmp_path / "in"), batched=True))
    assert isinstance(answers["good.npz"], dict) and isinstance(answers["huge.npz"], str)
    assert answers["huge.npz"].startswith("huge.npz: adaptation step 0: the loss is")


def test_two_runs_write_the_same_weights(folder: Path, tmp_path: Path) -> None:
    start = start_for(COLOUR, tmp_path)
    for name in ("a", "b"):
        fit_all(folder, start, tmp_path / name)
    for path in (tmp_path / "a").rglob(WEIGHTS_FILE):
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("empty", ["missing", "empty", "texts"])
def test_nothing_to_fit_is_said(empty: str, tmp_path: Path) -> None:
    root = tmp_path / "in"
    if empty != "missing":
        root.mkdir()
    if empty == "texts":
        (root / "notes.txt").write_text("none")
    says = "no such file or folder" if empty == "missing" else r"nothing to fit; expected images \(.png"
    with pytest.raises(DataError, match=says):
        fit_all(root, start_for(COLOUR, tmp_path), tmp_path / "out")


def test_a_start_without_a_routine_or_a_network_says_what_is_missing(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no adaptation routine: say which with --step-size"):
        fit_all(folder, start_for(COLOUR, tmp_path, None), tmp_path / "out")
    with pytest.raises(SourceError, match="fits any network: say which one with --network"):
        fit_all(folder, load("siren"), tmp_path / "out", routine=ROUTINE)


def test_a_picture_of_many_pixels_is_fitted_in_chunks_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "in" / "a.png", 9, 13, 3)
    start = start_for(COLOUR, tmp_path)
    fit_all(tmp_path / "in", start, tmp_path / "whole")
    monkeypatch.setattr(signals, "in_chunks", lambda function: in_chunks(function, rows=20))
    fit_all(tmp_path / "in", start, tmp_path / "chunks")
    whole, chunks = (checkpoint.load(tmp_path / n / "a.png" / WEIGHTS_FILE) for n in ("whole", "chunks"))
    for name, value in whole.tensors.items():
        torch.testing.assert_close(chunks.tensors[name], value, rtol=1e-4, atol=1e-5)
