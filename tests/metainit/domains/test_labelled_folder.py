"""Folders of images and masks, COCO files: layouts, pairing, file types, and what goes wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metainit.domains.coco import read_coco
from metainit.domains.labelled_folder import FolderRules, read_labelled_folder
from metainit.domains.masks import (
    LabelledImage,
    Unusable,
    as_mask,
    fitted,
    fitted_mask,
    masks_of,
    read_labels,
)
from metainit.errors import DataError

SIDE = (12, 16)
PIXELS = np.random.default_rng(0).integers(0, 255, (*SIDE, 3), dtype=np.uint8)
MASK = np.zeros(SIDE, dtype=np.uint8)
MASK[3:8, 4:9] = 255


def save(path: Path, values: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def read(folder: Path, rule: Any = "refuse") -> tuple[list[LabelledImage], dict[str, str]]:
    unusable = Unusable(rule)
    return list(read_labelled_folder(folder, FolderRules(), unusable)), unusable.skipped


def by_masks(root: Path) -> None:
    for name in ("a", "b", "c"):
        save(root / "images" / f"{name}.jpg", PIXELS)
    for own, names in {"cell": "abc", "nucleus": "ab"}.items():
        for name in names:
            save(root / "masks" / own / f"{name}.png", MASK)


def by_labels(root: Path) -> None:
    for name in ("a", "b"):
        save(root / "images" / f"{name}.png", PIXELS)
        save(
            root / "labels" / f"{name}.png",
            np.where(MASK > 0, 2, np.eye(*SIDE, dtype=np.uint8)).astype(np.uint8),
        )
    (root / "classes.txt").write_text("background\ncell\nnucleus\n")


def by_suffix(root: Path) -> None:
    for own in ("cell", "nucleus"):
        for name in ("a", "b"):
            save(root / own / f"{name}.png", PIXELS)
            save(root / own / f"{name}_mask.png", MASK)


def as_fss(root: Path) -> None:
    for own in ("cell", "nucleus"):
        for name in ("1", "2"):
            save(root / own / f"{name}.jpg", PIXELS)
            save(root / own / f"{name}.png", np.repeat(MASK[..., None], 3, axis=-1))


LAYOUTS: dict[str, tuple[Callable[[Path], None], dict[str, list[str]]]] = {
    "masks": (by_masks, {"a": ["cell", "nucleus"], "b": ["cell", "nucleus"], "c": ["cell"]}),
    "labels": (by_labels, {"a": ["cell", "nucleus"], "b": ["cell", "nucleus"]}),
    "suffix": (by_suffix, {f"{c}/{n}": [c] for c in ("cell", "nucleus") for n in ("a", "b")}),
    "fss-1000": (as_fss, {f"{c}/{n}": [c] for c in ("cell", "nucleus") for n in ("1", "2")}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_are_told_apart_and_paired(layout: str, tmp_path: Path) -> None:
    make, expected = LAYOUTS[layout]
    make(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    found, skipped = read(tmp_path)
    assert {i.name: sorted(i.masks) for i in found} == expected and not skipped
    for image in found:
        assert image.pixels.shape == (*SIDE, 3)
        nucleus = image.masks.get("nucleus", MASK // 255)
        np.testing.assert_array_equal(nucleus, MASK // 255)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_masks_without_a_class_folder_are_of_the_foreground(tmp_path: Path) -> None:
    save(tmp_path / "images" / "deep" / "a.png", PIXELS)
    save(tmp_path / "masks" / "cell" / "deep" / "a.png", MASK)
    save(tmp_path / "images" / "b.png", PIXELS)
    save(tmp_path / "masks" / "b_mask.png", MASK)
    found, _ = read(tmp_path)
    assert {i.name: list(i.masks) for i in found} == {"b": ["foreground"], "deep/a": ["cell"]}


def test_a_folder_without_subfolders_is_one_class(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.jpg", PIXELS)
    save(tmp_path / "cat" / "a.png", MASK)
    assert [list(i.masks) for i in read(tmp_path / "cat")[0]] == [["cat"]]


# --- file types


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16"])
def test_masks_of_every_file_type(mode: str, tmp_path: Path) -> None:
    values = MASK.astype(np.uint16) * 257 if mode == "I;16" else MASK
    path = save(tmp_path / "m.png", values, None if mode == "I;16" else mode)
    np.testing.assert_array_equal(as_mask(read_labels(path, 10**6), "m"), MASK // 255)


def test_a_palette_is_read_as_numbers_and_not_as_colours(tmp_path: Path) -> None:
    picture = Image.new("P", SIDE[::-1])
    picture.putdata((MASK // 255 * 3).ravel().tolist())
    picture.putpalette([0, 0, 0, 9, 9, 9, 7, 7, 7, 0, 0, 0] + [0] * 756)  # class 3 is black, too
    picture.save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "m.png", 10**6), MASK // 255 * 3)


def test_images_of_16_bits_and_with_a_palette(tmp_path: Path) -> None:
    save(tmp_path / "c" / "grey.png", PIXELS[..., 0].astype(np.uint16) * 257)
    save(tmp_path / "c" / "grey_mask.png", MASK)
    palette = Image.fromarray(PIXELS).quantize(16)
    palette.save(tmp_path / "c" / "palette.png")
    save(tmp_path / "c" / "palette_mask.png", MASK)
    grey, colour = read(tmp_path)[0]
    np.testing.assert_allclose(grey.pixels[..., 0], PIXELS[..., 0] / 255, atol=1e-6)
    np.testing.assert_allclose(colour.pixels, np.asarray(palette.convert("RGB")) / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1], [0, 1]), ([0, 7], [0, 1]), ([0, 65535], [0, 1]), ([0, 1, 255], [0, 1, 255]),
        ([0, 12, 130, 255], [0, 0, 1, 1]), ([5], [1]), ([0], [0]),
    ],
)  # fmt: skip
def test_values_of_masks(values: list[int], expected: list[int]) -> None:
    assert as_mask(np.array([values]), "m").tolist() == [expected]


@pytest.mark.parametrize("values", [[0, 1, 2], [-1, 1]])
def test_values_that_are_no_mask(values: list[int]) -> None:
    with pytest.raises(DataError, match="m: has the value"):
        as_mask(np.array([values]), "m")


def test_labels_outside_of_the_classes() -> None:
    labels = np.array([[0, 1, 7, 255]])
    assert masks_of(labels, None, 255, "m")["7"].tolist() == [[0, 0, 1, 255]]
    with pytest.raises(DataError, match=r"m: has labels \[7\], expected classes 0 to 1, or 255"):
        masks_of(labels, {1: "cell"}, 255, "m")


# --- what goes wrong


def lonely_image(root: Path) -> None:
    save(root / "images" / "d.jpg", PIXELS)


def lonely_mask(root: Path) -> None:
    save(root / "masks" / "cell" / "d.png", MASK)


def other_size(root: Path) -> None:
    save(root / "masks" / "cell" / "c.png", MASK[:-1])


def empty(root: Path) -> None:
    save(root / "masks" / "cell" / "c.png", 0 * MASK)


def colourful(root: Path) -> None:
    save(root / "masks" / "cell" / "c.png", PIXELS)


def broken_image(root: Path) -> None:
    (root / "images" / "c.jpg").write_bytes(b"no picture")


def broken_mask(root: Path) -> None:
    (root / "masks" / "cell" / "c.png").write_bytes(b"no picture")


def cut_mask(root: Path) -> None:
    path = root / "masks" / "cell" / "c.png"
    path.write_bytes(path.read_bytes()[:60])


def twins(root: Path) -> None:
    save(root / "images" / "c.png", PIXELS)


def two_masks(root: Path) -> None:
    save(root / "masks" / "cell" / "c_mask.png", MASK)


def two_masks_of_the_foreground(root: Path) -> None:
    save(root / "masks" / "foreground" / "c.png", MASK)
    save(root / "masks" / "c.png", MASK)


def a_map(root: Path) -> None:
    save(root / "masks" / "cell" / "c.png", np.eye(*SIDE, dtype=np.uint8) * 2 + MASK // 255)


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (lonely_image, "there is no mask .* for this image"),
    (lonely_mask, "there is no image .* for this mask"),
    (other_size, r"has \(11, 16\) pixels, its image .* has \(12, 16\)"),
    (empty, "the mask is empty"),
    (colourful, "channels that differ, expected a mask"),
    (broken_image, "cannot be read as an image"),
    (broken_mask, "cannot be read as a mask"),
    (cut_mask, "cannot be read as a mask"),
    (twins, "has the same name as"),
    (two_masks, r"c_mask\.png: its image has another mask, .*cell.c\.png; take one of them away"),
    (two_masks_of_the_foreground, r"masks.c\.png: its image has another mask, .*foreground.c\.png"),
    (a_map, "look like the numbers of several classes"),
]


@pytest.mark.parametrize(("harm", "says"), WRONG, ids=[harm.__name__ for harm, _ in WRONG])
def test_what_cannot_be_used_is_refused_or_left_out(
    harm: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    by_masks(tmp_path)
    harm(tmp_path)
    with pytest.raises(DataError, match=f"(?s){says}.*unusable=skip"):
        read(tmp_path)
    found, skipped = read(tmp_path, "skip")
    assert {"a", "b"} <= {i.name for i in found} <= {"a", "b", "c"} and len(skipped) == 1


def test_class_folders_name_what_has_no_partner(tmp_path: Path) -> None:
    as_fss(tmp_path)
    save(tmp_path / "cell" / "3.jpg", PIXELS)
    with pytest.raises(DataError, match=r"3.jpg: there is no mask beside this image; expected 3_mask.png"):
        read(tmp_path)
    save(tmp_path / "nucleus" / "4_mask.png", MASK)
    save(tmp_path / "nucleus" / "5.jpg", PIXELS)
    save(tmp_path / "nucleus" / "5.bmp", PIXELS)
    found, skipped = read(tmp_path, "skip")
    assert len(found) == 4 and len(skipped) == 3


def test_an_image_of_a_class_folder_has_one_mask(tmp_path: Path) -> None:
    by_suffix(tmp_path)
    save(tmp_path / "cell" / "a_mask.bmp", MASK)
    with pytest.raises(DataError, match=r"a_mask\.png: its image has another mask, .*a_mask\.bmp"):
        read(tmp_path)


def test_masks_and_maps_are_not_mixed(tmp_path: Path) -> None:
    by_masks(tmp_path)
    by_labels(tmp_path)
    with pytest.raises(DataError, match="there are both masks/ and labels/; take one of them away"):
        read(tmp_path, "skip")


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    by_labels(tmp_path)
    (tmp_path / "classes.txt").write_text("background\ncell\ncell\n")
    with pytest.raises(DataError, match=r"classes\.txt: classes 1 and 2 are both called 'cell'; rename one"):
        read(tmp_path, "skip")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_files_are_not_read(layout: str, tmp_path: Path) -> None:
    make, expected = LAYOUTS[layout]
    make(tmp_path)
    for folder in [f for f in tmp_path.rglob("*") if f.is_dir()]:
        (folder / "._a.png").write_bytes(b"attributes of a file, no picture")
    assert {i.name: sorted(i.masks) for i in read(tmp_path)[0]} == expected


def test_maps_and_images_have_to_pair(tmp_path: Path) -> None:
    by_labels(tmp_path)
    save(tmp_path / "labels" / "z.png", MASK)
    with pytest.raises(DataError, match="z.png: there is no .*z.* for this file"):
        read(tmp_path)
    save(tmp_path / "labels" / "a.png", MASK)
    found, skipped = read(tmp_path, "skip")
    assert [i.name for i in found] == ["a", "b"] and len(skipped) == 1  # 255 is ignored, not a class


def test_huge_images_are_refused_before_they_are_read(tmp_path: Path) -> None:
    by_masks(tmp_path)
    rules = FolderRules(max_pixels=100)
    with pytest.raises(DataError, match=r"has 12 x 16 pixels, expected at most 100 in all: make it smaller"):
        list(read_labelled_folder(tmp_path, rules, Unusable()))


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read(tmp_path / "nowhere")
    assert read(tmp_path) == ([], {})


# --- one size for all


@pytest.mark.parametrize("fit", ["resize", "crop", "pad"])
@pytest.mark.parametrize("size", [(12, 16), (8, 8), (30, 20), (6, 40)])
def test_images_and_masks_stay_together(fit: Any, size: tuple[int, int]) -> None:
    """An image that shows its own mask still does, whatever its size becomes."""
    mask = MASK // 255
    shown = fitted(np.repeat(mask[..., None], 3, -1).astype(np.float32), *size, fit)
    small = fitted_mask(mask, *size, fit)
    assert shown.shape == (*size, 3) and small.shape == size
    known = small != 255
    agree = (shown[..., 0] > 0.5) == (small == 1)
    assert agree[known].mean() > 0.93
    assert known.all() or fit == "pad"


def test_padding_is_unknown_and_keeps_the_shape_of_things() -> None:
    padded = fitted_mask(np.ones((10, 20), dtype=np.uint8), 20, 20, "pad")
    assert (padded == 1).sum() == 200 and (padded == 255).sum() == 200


# --- COCO


def code(*counts: int) -> dict[str, Any]:
    return {"counts": counts, "size": SIDE}


def coco(root: Path, **changes: Any) -> Path:
    save(root / "images" / "a.png", PIXELS)
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.png", "height": 12, "width": 16}],
        "categories": [{"id": 5, "name": "cell"}, {"id": 6, "name": "nucleus"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 5, "segmentation": [[4, 3, 9, 3, 9, 8, 4, 8]]},
            {"id": 2, "image_id": 1, "category_id": 5, "segmentation": code(0, 1, 191)},
            {"id": 3, "image_id": 1, "category_id": 6, "segmentation": code(100, 12, 80)},
            {"id": 4, "image_id": 1, "category_id": 5, "iscrowd": 1, "segmentation": code(190, 2)},
        ],
    }  # fmt: skip
    path = root / "instances.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_coco_instances_become_masks_of_their_category(tmp_path: Path) -> None:
    (image,) = read_coco(coco(tmp_path), None, FolderRules(), Unusable())
    expected = MASK // 255
    expected[0, 0] = 1
    expected[10:, 15] = 255  # the crowd
    np.testing.assert_array_equal(image.masks["cell"], expected)
    assert image.masks["nucleus"].sum() == 12 and image.name == "a.png"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"annotations": None}, "expected instance annotations of COCO: 'annotations'"),
        ({"categories": [{"id": 1}]}, "'categories' a list of objects with id, name"),
        ({"images": [{"id": 1, "file_name": "b.png"}]}, "b.png: is in none of"),
        ({"images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 9}]}, r"has \(12, 16\) pixels"),
        ({"categories": [{"id": 5, "name": "cell"}]}, "annotation 3: category 6 is not in categories"),
        (
            {"annotations": [{"id": 9, "image_id": 1, "category_id": 5, "segmentation": [[1, 2]]}]},
            "annotation 9: a polygon has 2 coordinates",
        ),
        (
            {"annotations": [{"id": 9, "image_id": 1, "category_id": 5, "segmentation": []}]},
            "annotation 9: the mask is empty",
        ),
    ],
)
def test_coco_files_that_cannot_be_used(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        list(read_coco(coco(tmp_path, **changes), None, FolderRules(), Unusable()))


def test_what_is_no_json_and_images_elsewhere(tmp_path: Path) -> None:
    path = coco(tmp_path)
    (tmp_path / "images").rename(tmp_path / "photos")
    (image,) = read_coco(path, Path("photos"), FolderRules(), Unusable())
    assert image.pixels.shape == (*SIDE, 3)
    path.write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        list(read_coco(path, None, FolderRules(), Unusable()))
