"""Segmenting a folder: what is found, written, kept and refused, and that nothing of the user's changes."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io
import torch
from PIL import Image

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Spec
from metainit.errors import DataError, SourceError
from metainit.evidence.curves import weights_of
from metainit.evidence.overlap import iou
from metainit.fitting import REPORT_FILE, WEIGHTS_FILE, fit_all
from metainit.fitting.masks import entropy
from metainit.fitting.pairs import find_pairs, read_mask_of
from metainit.fitting.segmenter import Segmenter, depends_on_the_batch, support_tiles, working_size
from metainit.initialization import Initialization, load
from metainit.networks import build, function_of
from tests.metainit.evidence.toys import write_prior
from tests.metainit.test_commands import status_of

TILE = 16
NETWORK = Spec(name="unet", arguments={"in_channels": 1, "classes": 2, "width": 6, "depth": 2})
ROUTINE = AdaptationRoutine(optimizer="adam", steps=60, step_size=0.02)


def disc(height: int, width: int, seed: int) -> tuple[Any, Any]:
    """A bright disc on dark noise, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    row, column = rng.uniform(0.3, 0.7, 2) * (height, width)
    inside = (y - row) ** 2 + (x - column) ** 2 < (0.22 * min(height, width)) ** 2
    pixels = 0.25 + 0.5 * inside + 0.05 * rng.standard_normal((height, width))
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8), inside


def save(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def archive(root: Path, labelled: int = 3, sizes: tuple[tuple[int, int], ...] = ((20, 28), (16, 16))) -> Path:
    """Labelled discs a0, a1, ..., unlabelled ones b0, b1, ... of some sizes, and the truth of these."""
    for n in range(labelled):
        pixels, inside = disc(18, 22, n)
        save(root / f"a{n}.png", pixels)
        save(root / f"a{n}_mask.png", (255 * inside).astype(np.uint8))
    for n, (height, width) in enumerate(sizes):
        pixels, inside = disc(height, width, 50 + n)
        save(root / f"b{n}.png", pixels)
        save(root / "truth" / f"b{n}.png", (255 * inside).astype(np.uint8))
    return root


@cache
def prior(network: str = NETWORK.model_dump_json()) -> Initialization:
    """A start that knows images of the size of a tile; its weights are drawn, not learned."""
    spec = Spec.model_validate_json(network)
    arguments = {"height": TILE, "width": TILE, "channels": 1, "ways": spec.arguments["classes"] - 1}
    module = load("kaiming").init_(build(spec), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "discs.safetensors"
        domain = Spec(name="segmentation", arguments=arguments)
        return load(write_prior(path, weights_of(module), ROUTINE, spec, domain=domain))


def fit(folder: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return fit_all(folder, changes.pop("start", prior()), out, **changes)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_a_folder_is_segmented(tmp_path: Path) -> None:
    root, out = archive(tmp_path / "in"), tmp_path / "out"
    before = digests(root)
    heard: list[str] = []
    report = fit(root, out, progress=lambda number, name, metrics: heard.append(name))
    assert digests(root) == before
    assert heard == ["b0", "b1"] and report["files"] == 2 and report["failed"] == {}
    assert sorted(report["labelled"]) == ["a0", "a1", "a2"]
    for name in ("b0", "b1"):
        image, mask = (skimage.io.imread(p) for p in (root / f"{name}.png", out / "masks" / f"{name}.png"))
        assert mask.shape == image.shape and set(np.unique(mask)) <= {0, 255}
        truth = skimage.io.imread(root / "truth" / f"{name}.png")
        found, true = mask > 0, truth > 0
        overlap = (found & true).sum() / (found | true).sum()
        assert report["fitted"][name]["iou"] == pytest.approx(overlap, abs=1e-4) and overlap > 0.75
        assert skimage.io.imread(out / "overlays" / f"{name}.png").shape == (*image.shape, 3)
        shade = skimage.io.imread(out / "uncertainty" / f"{name}.png")
        assert shade.shape == image.shape
        assert shade.mean() / 255 == pytest.approx(report["fitted"][name]["uncertainty"], abs=0.01)
    assert report["iou"] == pytest.approx(np.mean([v["iou"] for v in report["fitted"].values()]), abs=1e-4)
    worst = max(report["fitted"], key=lambda n: report["fitted"][n]["uncertainty"])
    assert report["label_next"] == worst and "highest mean uncertainty" in report["rule"]
    assert json.loads((out / REPORT_FILE).read_text()) == report


def test_without_a_truth_nothing_is_judged_and_a_given_one_is_used(tmp_path: Path) -> None:
    root = archive(tmp_path / "in")
    (root / "truth").rename(tmp_path / "elsewhere")
    report = fit(root, tmp_path / "a")
    assert set(report["fitted"]["b0"]) == {"uncertainty"} and "iou" not in report
    assert fit(root, tmp_path / "a", truth=tmp_path / "elsewhere")["iou"] > 0.75


def test_the_adapted_weights_segment_another_folder(tmp_path: Path) -> None:
    root = archive(tmp_path / "in")
    first = fit(root, tmp_path / "out")
    other = tmp_path / "other"
    for name in ("b0.png", "b1.png"):
        save(other / name, skimage.io.imread(root / name))
    weights = load(tmp_path / "out" / WEIGHTS_FILE)
    report = fit_all(other, weights, tmp_path / "again")
    assert report["label_next"] == first["label_next"]
    for name in ("b0", "b1"):
        masks = [(tmp_path / o / "masks" / f"{name}.png").read_bytes() for o in ("out", "again")]
        assert masks[0] == masks[1]


class TestResume:
    def test_what_is_finished_is_kept(self, tmp_path: Path) -> None:
        root, out = archive(tmp_path / "in"), tmp_path / "out"
        first = fit(root, out)
        times = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file() and p.name != REPORT_FILE}
        assert fit(root, out) == first
        assert {p: p.stat().st_mtime_ns for p in times} == times

    def test_an_image_that_changed_or_came_is_segmented_and_the_others_stay(self, tmp_path: Path) -> None:
        root, out = archive(tmp_path / "in"), tmp_path / "out"
        fit(root, out)
        before = {n: (out / "masks" / f"{n}.png").stat().st_mtime_ns for n in ("b0", "b1")}
        weights = (out / WEIGHTS_FILE).stat().st_mtime_ns
        save(root / "b1.png", disc(16, 16, 99)[0])
        save(root / "c.png", disc(16, 30, 98)[0])
        report = fit(root, out)
        assert (
            set(report["fitted"]) == {"b0", "b1", "c"} and (out / WEIGHTS_FILE).stat().st_mtime_ns == weights
        )
        after = {n: (out / "masks" / f"{n}.png").stat().st_mtime_ns for n in before}
        assert after["b0"] == before["b0"] and after["b1"] != before["b1"]

    @pytest.mark.parametrize("what", ["mask", "steps", "weights", "native"])
    def test_what_changes_the_network_does_all_again(self, what: str, tmp_path: Path) -> None:
        root, out = archive(tmp_path / "in"), tmp_path / "out"
        fit(root, out)
        times = {p: p.stat().st_mtime_ns for p in (out / "masks").iterdir()}
        changes: dict[str, Any] = {}
        if what == "mask":
            save(root / "a0_mask.png", np.zeros((18, 22), dtype=np.uint8))
        elif what == "weights":
            (out / WEIGHTS_FILE).write_bytes(b"damaged")
        else:
            changes = {what: 3 if what == "steps" else True}
        fit(root, out, **changes)
        changed = {p for p, t in times.items() if p.stat().st_mtime_ns != t}
        # Weights that were damaged come back as they were, and what was made with them stays.
        assert changed == (set() if what == "weights" else set(times))
        checkpoint.load(out / WEIGHTS_FILE)

    def test_two_runs_write_the_same_bytes(self, tmp_path: Path) -> None:
        root = archive(tmp_path / "in")
        for out in ("a", "b"):
            fit(root, tmp_path / out)
        assert digests(tmp_path / "a") == digests(tmp_path / "b")


class TestPairs:
    @pytest.mark.parametrize("layout", ["beside", "folders", "class folder", "another type"])
    def test_layouts(self, layout: str, tmp_path: Path) -> None:
        images, masks = {
            "beside": ("{}.png", "{}_mask.png"),
            "folders": ("images/{}.png", "masks/{}.png"),
            "class folder": ("images/{}.png", "masks/cell/{}_mask.png"),
            "another type": ("{}.jpg", "{}.png"),
        }[layout]
        for name in ("s/a", "b", "c"):
            save(tmp_path / images.format(name), np.zeros((4, 4), dtype=np.uint8))
        for name in ("s/a", "b"):
            save(tmp_path / masks.format(name), np.ones((4, 4), dtype=np.uint8))
        pairs = find_pairs(tmp_path)
        assert set(pairs.labelled) == {"s/a", "b"} and set(pairs.unlabelled) == {"c"}
        assert pairs.labelled["b"] == (tmp_path / images.format("b"), tmp_path / masks.format("b"))

    def test_two_masks_of_one_image_are_refused(self, tmp_path: Path) -> None:
        for name in ("images/a00.png", "masks/a00.png", "masks/a00_mask.png"):
            save(tmp_path / name, np.ones((4, 4), dtype=np.uint8))
        with pytest.raises(DataError, match=r"a00_mask\.png: its image has another mask, .*masks.a00\.png"):
            find_pairs(tmp_path)

    def test_results_and_truth_below_the_folder_are_no_images(self, tmp_path: Path) -> None:
        root = archive(tmp_path / "in")
        fit(root, root / "out", steps=1)
        pairs = find_pairs(root, None, [root / "out"])
        assert set(pairs.unlabelled) == {"b0", "b1"} == set(pairs.truth)
        assert set(fit(root, root / "out", steps=1)["fitted"]) == {"b0", "b1"}


def spoil(root: Path, what: str) -> None:
    empty = np.zeros((18, 22), dtype=np.uint8)
    if what == "orphan":
        save(root / "lonely_mask.png", empty)
    elif what == "size":
        save(root / "a0_mask.png", empty[:5])
    elif what == "empty":
        for n in range(3):
            save(root / f"a{n}_mask.png", empty)
    elif what == "classes":
        save(root / "a0_mask.png", np.arange(18 * 22, dtype=np.uint8).reshape(18, 22) % 5)
    elif what == "none":
        for n in range(3):
            (root / f"a{n}_mask.png").unlink()
    elif what == "twice":
        save(root / "b0.jpg", empty)
        save(root / "b0.bmp", empty)
    elif what == "two masks":
        save(root / "a0_mask.bmp", empty)
    elif what == "two truths":
        save(root / "truth" / "b0_mask.png", empty)
    elif what == "broken":
        (root / "a1.png").write_bytes(b"\x89PNG none")
    elif what == "truth":
        save(root / "truth" / "z.png", empty)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("orphan", r"lonely_mask\.png: there is no image lonely\.\* for this mask"),
        ("size", r"a0_mask\.png: has \(5, 22\) pixels, its image has \(18, 22\)"),
        ("empty", "no mask marks anything"),
        ("classes", r"a0_mask\.png: .*several classes"),
        ("none", "no image has a mask; label a few: NAME_mask.png"),
        ("twice", "which is the image, and which the mask"),
        ("two masks", r"a0_mask\.png: its image has another mask, .*a0_mask\.bmp; take one of them away"),
        ("two truths", r"b0_mask\.png: its image has another mask, .*truth.b0\.png; take one"),
        ("broken", r"a1\.png: cannot be read as an image"),
        ("truth", r"z\.png: there is no image z\.\*"),
    ],
)
def test_what_cannot_be_used_is_named(what: str, says: str, tmp_path: Path) -> None:
    root = archive(tmp_path / "in")
    spoil(root, what)
    with pytest.raises(DataError, match=says):
        fit(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unlabelled_image_that_cannot_be_read_fails_alone(tmp_path: Path) -> None:
    root = archive(tmp_path / "in")
    (root / "b0.png").write_bytes(b"\x89PNG none")
    report = fit(root, tmp_path / "out")
    assert list(report["fitted"]) == ["b1"] and "b0.png: cannot be read" in report["failed"]["b0"]


def test_an_image_whose_truth_cannot_be_used_is_segmented_and_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = archive(tmp_path / "in"), tmp_path / "out"
    save(root / "truth" / "b0.png", np.zeros((3, 3), dtype=np.uint8))
    report = fit(root, out, steps=1)
    assert report["failed"] == {} and set(report["fitted"]["b0"]) == {"uncertainty"}
    assert list(report["unjudged"]) == ["b0"]
    assert "b0.png: has (3, 3) pixels, its image has (20, 28)" in report["unjudged"]["b0"]
    assert (out / "masks" / "b0.png").is_file() and report["iou"] == report["fitted"]["b1"]["iou"]
    assert fit(root, out, steps=1) == report
    network = json.dumps(NETWORK.model_dump(mode="json"))
    options = ["--domain", "segmentation", "--network", network, "--step-size", "0.02", "--steps", "1"]
    assert status_of(["fit", root, "--init", "kaiming", "-o", tmp_path / "again", *options]) == 1
    assert "not judged: b0:" in capsys.readouterr().err


def test_an_empty_mask_beside_others_says_that_nothing_is_there(tmp_path: Path) -> None:
    root = archive(tmp_path / "in")
    save(root / "a0_mask.png", np.zeros((18, 22), dtype=np.uint8))
    assert set(fit(root, tmp_path / "out", steps=1)["labelled"]) == {"a0", "a1", "a2"}


def test_a_network_of_one_class_is_refused(tmp_path: Path) -> None:
    network = Spec(name="unet", arguments={**NETWORK.arguments, "classes": 1})
    with pytest.raises(SourceError, match="'unet' has classes=1: segmentation needs 2 or more classes"):
        fit(
            archive(tmp_path / "in"), tmp_path / "out",
            start=load("kaiming"), network=network, routine=ROUTINE, domain="segmentation",
        )  # fmt: skip


@pytest.mark.parametrize("where", [".", "..", "missing/../.."])
def test_results_over_the_users_files_are_refused(where: str, tmp_path: Path) -> None:
    root = archive(tmp_path / "masks")
    before = digests(tmp_path)
    with pytest.raises(DataError, match="must not be written over the images"):
        fit(root, root / where)
    assert digests(tmp_path) == before


@pytest.mark.parametrize("where", ["hand", "hand/masks", "hand/masks/out"])
def test_results_over_the_truth_are_refused(where: str, tmp_path: Path) -> None:
    root = archive(tmp_path / "in")
    (tmp_path / "hand").mkdir()
    (root / "truth").rename(tmp_path / "hand" / "masks")
    before = digests(tmp_path)
    with pytest.raises(DataError, match="must not be written where the truth lies"):
        fit(root, tmp_path / where, truth=tmp_path / "hand" / "masks")
    with pytest.raises(DataError, match="must not be written where the truth lies"):
        fit(archive(tmp_path / "own"), tmp_path / "own" / "truth")
    assert {k: v for k, v in digests(tmp_path).items() if not k.startswith("own")} == before


def test_somebody_elses_masks_are_not_overwritten(tmp_path: Path) -> None:
    root, out = archive(tmp_path / "in"), tmp_path / "hand"
    save(out / "masks" / "b0.png", disc(20, 28, 7)[0])
    before = digests(out)
    with pytest.raises(DataError, match=r"masks/ is there already and is of no earlier run; choose another"):
        fit(root, out)
    assert digests(out) == before


@pytest.mark.parametrize("left", [REPORT_FILE, "adaptation.json", "records"])
def test_an_interrupted_run_is_known_by_what_it_left(left: str, tmp_path: Path) -> None:
    root, out = archive(tmp_path / "in"), tmp_path / "out"
    first = fit(root, out, steps=1)
    for name in {REPORT_FILE, "adaptation.json", "records"} - {left}:
        (out / name).rename(tmp_path / name)
    assert fit(root, out, steps=1) == first


def test_a_network_of_coordinates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'siren' has no in_channels and no classes.*unet or efficientlab"):
        fit(
            archive(tmp_path / "in"), tmp_path / "out",
            start=load("kaiming"), network=Spec(name="siren"), routine=ROUTINE, domain="segmentation",
        )  # fmt: skip


class TestClasses:
    def test_numbers_of_several_classes_and_what_is_not_known(self, tmp_path: Path) -> None:
        path = tmp_path / "m.png"
        save(path, np.array([[0, 1], [2, 9]], dtype=np.uint8))
        assert read_mask_of(path, (2, 2), 3, 9, 100).tolist() == [[0, 1], [2, 255]]
        with pytest.raises(DataError, match=r"m\.png: has labels \[9\], expected classes 0 to 2, or 255"):
            read_mask_of(path, (2, 2), 3, 255, 100)

    def test_label_maps_of_two_structures(self, tmp_path: Path) -> None:
        """Dark, middle and bright: three classes that brightness tells apart."""
        for n in range(4):
            pixels, inside = disc(16, 16, n)
            stripe = np.zeros_like(inside)
            stripe[:, :4] = True
            labels = np.where(stripe, 2, inside).astype(np.uint8)
            pixels = np.where(stripe, 255, pixels).astype(np.uint8)
            save(tmp_path / "in" / "images" / f"{n}.png", pixels)
            save(tmp_path / "in" / ("labels" if n < 3 else "truth") / f"{n}.png", labels)
        network = Spec(name="unet", arguments={**NETWORK.arguments, "classes": 3})
        report = fit(tmp_path / "in", tmp_path / "out", start=prior(network.model_dump_json()))
        assert set(np.unique(skimage.io.imread(tmp_path / "out" / "masks" / "3.png"))) == {0, 1, 2}
        assert report["iou"] > 0.6


class TestSegmenter:
    @pytest.mark.parametrize(
        ("size", "native", "expected"),
        [
            ((16, 16), False, (16, 16)),
            ((32, 64), False, (16, 32)),
            ((8, 12), False, (16, 24)),
            ((8, 12), True, (16, 24)),
            ((33, 50), True, (33, 50)),
        ],
    )
    def test_the_size_an_image_is_segmented_at(
        self, size: tuple[int, int], native: bool, expected: tuple[int, int]
    ) -> None:
        assert working_size(*size, (16, 16), native) == expected

    @pytest.mark.parametrize("native", [False, True])
    def test_brightness_is_told_at_any_size(self, native: bool) -> None:
        """Of a network that looks at one pixel alone, tiles and mirrors give exactly what the pixels say."""
        segment = Segmenter(lambda x: torch.cat([-x, x], 1), (16, 16), ("horizontal", "vertical"), native)
        pixels = np.random.default_rng(0).random((41, 53, 1)).astype(np.float32)
        found = segment(pixels)
        assert found.shape == (2, 41, 53)
        torch.testing.assert_close(found.sum(0), torch.ones(41, 53))
        if native:
            exact = torch.sigmoid(2 * torch.from_numpy(pixels[..., 0]))
            torch.testing.assert_close(found[1], exact)

    def test_support_is_cut_into_tiles_the_marked_ones_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pixels, inside = np.zeros((40, 40, 1), np.float32), np.zeros((40, 40), np.uint8)
        inside[30:, 30:] = 1
        images, labels = support_tiles([(pixels, inside)], (16, 16), native=True)
        assert images.shape == (9, 1, 16, 16) and labels.shape == (9, 16, 16)
        assert labels[0].sum() == 100 == labels.flatten(1).sum(1).max()
        monkeypatch.setattr("metainit.fitting.segmenter.MAX_SUPPORT", 4)
        images, labels = support_tiles([(pixels, inside)] * 2, (16, 16), native=True)
        assert len(images) == 4 and (labels.flatten(1).sum(1)[[0, 2]] == 100).all()

    def test_batch_statistics_are_those_of_the_support(self) -> None:
        """An image's own statistics would make a bright one and a dark one the same."""
        network = build(Spec(name="unet", arguments={**NETWORK.arguments, "norm": "batch"}), seed=3)
        predict = function_of(network)({k: v.detach() for k, v in network.named_parameters()})
        support = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        assert depends_on_the_batch(predict, support)
        segment = Segmenter(predict, (16, 16), support=support)
        pixels = np.full((16, 16, 1), 0.3, dtype=np.float32)
        image = torch.full((1, 1, 16, 16), 0.3)
        with torch.no_grad():
            expected = predict(torch.cat([support, image]))[-1].softmax(0)
        torch.testing.assert_close(segment(pixels), expected)

    def test_group_normalization_does_not_depend_on_the_batch(self) -> None:
        network = build(NETWORK)
        predict = function_of(network)({k: v.detach() for k, v in network.named_parameters()})
        assert not depends_on_the_batch(predict, torch.rand(4, 1, 16, 16))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_entropy_of_a_guess_is_one_and_of_the_sure_none(classes: int) -> None:
    guess = torch.full((classes, 2, 2), 1 / classes)
    sure = torch.zeros(classes, 2, 2).index_fill(0, torch.tensor(0), 1.0)
    torch.testing.assert_close(entropy(guess), torch.ones(2, 2))
    assert entropy(sure).abs().max() == 0
    p = torch.tensor([0.2, 0.8]).reshape(2, 1, 1)
    assert float(entropy(p)) == pytest.approx(-(0.2 * math.log2(0.2) + 0.8 * math.log2(0.8)), rel=1e-6)


def test_the_reports_overlap_is_the_domains(tmp_path: Path) -> None:
    root = archive(tmp_path / "in", sizes=((16, 16),))
    report = fit(root, tmp_path / "out")
    mask = torch.from_numpy(skimage.io.imread(tmp_path / "out" / "masks" / "b0.png") > 0)
    truth = torch.from_numpy(skimage.io.imread(root / "truth" / "b0.png") > 0).long()
    found = torch.stack([~mask, mask]).float()[None]
    assert report["fitted"]["b0"]["iou"] == pytest.approx(iou(found, truth[None]), abs=1e-4)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = archive(tmp_path / "in")
    (root / "truth").rename(tmp_path / "truth")
    network = json.dumps(NETWORK.model_dump(mode="json"))
    options = ["--domain", "segmentation", "--network", network, "--step-size", "0.02", "--steps", "3"]
    arguments = ["fit", root, "--init", "kaiming", "-o", tmp_path / "out", "--truth", tmp_path / "truth"]
    assert status_of([*arguments, *options, "--native"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("b0: iou ") and said[-2].startswith("worth labelling next: b")
    assert said[-1] == f"2 of 2 fitted, written to {tmp_path / 'out'}"
    assert status_of([*arguments, *options[2:]]) == 1
    assert "signals are their own" in capsys.readouterr().err
