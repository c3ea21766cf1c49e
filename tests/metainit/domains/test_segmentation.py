"""The segmentation domain: splits, npz files, tasks, labels, and errors that help."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from metainit.domains.base import Split
from metainit.domains.masks import LabelledImage
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CLASSES = tuple(f"class-{c}" for c in range(10))
SMALL: dict[str, Any] = {"height": 8, "width": 8, "shots": 2, "queries": 2}


def image(number: int, classes: Sequence[int], part: int | None = None) -> LabelledImage:
    """Image n is n / 1000 everywhere; the mask of class c is row c."""
    masks = {}
    for c in classes:
        masks[f"class-{c}"] = np.zeros((16, 16), dtype=np.uint8)
        masks[f"class-{c}"][c] = 1
    return LabelledImage(str(number), np.full((16, 16, 3), number / 1000, dtype=np.float32), masks, part)


def domain(images: Sequence[LabelledImage] | None = None, **changes: Any) -> SegmentationDomain:
    found = [image(10 * c + i, [c]) for c in range(10) for i in range(6)] if images is None else images
    return SegmentationDomain(SegmentationConfig(**{**SMALL, "height": 16, "width": 16, **changes}), found)


def numbers(images: Tensor) -> list[int]:
    return [round(float(i.mean()) * 1000) for i in images.flatten(0, -4)]


class TestSplits:
    def test_classes_are_disjoint_and_all_there(self) -> None:
        made = domain()
        found = [set(made.classes(split)) for split in SPLITS]
        assert set.union(*found) == set(CLASSES) and sum(map(len, found)) == 10
        assert [len(f) for f in found] == [6, 2, 2]
        assert [made.classes(s) for s in SPLITS] == [domain().classes(s) for s in SPLITS]

    def test_given_lists_are_taken_and_tuning_classes_come_out_of_training(self) -> None:
        made = domain(train_classes=CLASSES[:5], test_classes=CLASSES[8:])
        assert set(made.classes("train")) | set(made.classes("validation")) == set(CLASSES[:5])
        assert made.classes("test") == CLASSES[8:] and len(made.classes("validation")) == 1
        assert domain(test_classes=CLASSES[8:]).classes("test") == CLASSES[8:]
        assert domain(train_classes=CLASSES[:7]).classes("test") == CLASSES[7:]
        own = domain(train_classes=CLASSES[:5], validation_classes=CLASSES[5:6])
        assert own.classes("validation") == CLASSES[5:6] and own.classes("train") == CLASSES[:5]

    def test_a_domain_for_reporting_alone(self) -> None:
        made = domain(train_classes=(), test_classes=CLASSES)
        assert (made.size("train"), made.size("validation"), made.size("test")) == (0, 0, 64)
        with pytest.raises(DataError, match="the split 'train' has 0 tasks"):
            made.tasks(0, 0, 1)
        assert made.example_inputs().shape == (2, 3, 16, 16)

    def test_a_split_array_that_keeps_classes_apart_is_taken(self) -> None:
        images = [image(10 * c + i, [c], int(c > 6)) for c in range(10) for i in range(6)]
        assert domain(images).classes("test") == CLASSES[7:]
        torn = [image(10 * c + i, [c], i % 2) for c in range(10) for i in range(6)]
        with pytest.raises(DataError, match="both sides of the split array; set split to images"):
            domain(torn)

    def test_with_lists_and_a_split_array_images_are_disjoint_too(self) -> None:
        images = [image(10 * c + i, [c, (c + 5) % 10], i % 2) for c in range(10) for i in range(8)]
        made = domain(images, test_classes=CLASSES[8:])
        seen = {s: set(numbers(made.tasks(0, 0, 40, s).query["images"])) for s in SPLITS}
        assert {n % 2 for n in seen["train"] | seen["validation"]} == {0}
        assert {n % 2 for n in seen["test"]} == {1}

    @pytest.mark.parametrize("marked", [True, False])
    def test_images_can_be_kept_apart_instead(self, marked: bool) -> None:
        images = [image(n, [0, 1], int(n > 30) if marked else None) for n in range(40)]
        made = domain(images, split="images")
        assert [made.classes(s) for s in SPLITS] == [CLASSES[:2]] * 3
        seen = [set(numbers(made.tasks(0, 0, 64, s).query["images"])) for s in SPLITS]
        seen = [
            a | set(numbers(made.tasks(0, 0, 64, s).support["images"]))
            for a, s in zip(seen, SPLITS, strict=True)
        ]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
        assert not marked or seen[2] == set(range(31, 40))

    def test_groups_are_not_torn_apart(self) -> None:
        images = [
            LabelledImage(str(n), image(n, [0]).pixels, image(n, [0]).masks, None, f"patient {n // 8}")
            for n in range(80)
        ]
        made = domain(images, split="images")
        seen = [{n // 8 for n in numbers(made.tasks(0, 0, 64, s).query["images"])} for s in SPLITS]
        assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])

    def test_a_class_with_too_few_images(self) -> None:
        images = [image(10 * c + i, [c]) for c in range(10) for i in range(6 if c else 3)]
        with pytest.raises(DataError, match="class 'class-0' has 3 usable images .* expected at least 4"):
            domain(images)
        made = domain(images, unusable="skip")
        assert not any(CLASSES[0] in made.classes(s) for s in SPLITS) and len(made.skipped) == 1

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"train_classes": ("class-11",)}, "no class 'class-11' in the data; did you mean 'class-1'"),
            ({"train_classes": CLASSES, "test_classes": CLASSES[:2]}, "are in two lists"),
            ({"test_classes": CLASSES[:9]}, "too few groups"),
            ({"ways": 3, "shots": 3, "queries": 1}, "has 2 classes, a task needs ways=3"),
        ],
    )
    def test_lists_that_make_no_sense(self, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(DataError, match=says):
            domain(**changes)


class TestTasks:
    def test_tasks_of_one_held_out_class_are_one_group(self) -> None:
        made = domain()
        batch = made.tasks(0, 0, 6, "test")
        assert batch.groups == made.classes("test") * 3
        assert batch[1:3].groups == batch.map(lambda t: t)[1:3].groups == batch.groups[1:3]
        mixed = domain([image(n, [0, 1]) for n in range(40)], split="images").tasks(0, 0, 6, "test")
        drawn = SegmentationDomain(SegmentationConfig(source="synthesised", height=16, width=16))
        for alone in (mixed, drawn.tasks(0, 0, 6, "test")):
            assert alone.groups == alone.ids and len(set(alone.groups)) == 6

    def test_images_of_a_task_show_one_class_and_are_all_different(self) -> None:
        batch = domain(shots=3, queries=3).tasks(0, 0, 20)
        for support, query, labels in zip(
            batch.support["images"], batch.query["images"], batch.support["labels"], strict=True
        ):
            own = numbers(torch.cat([support, query]))
            assert len({n // 10 for n in own}) == 1 and len(set(own)) == 6
            row = own[0] // 10
            assert bool((labels[:, row] == 1).all()) and int(labels.sum()) == 3 * 16

    def test_training_meets_every_class_and_held_out_classes_take_turns(self) -> None:
        made = domain()
        names = [i.rsplit("-", 2)[0] for i in made.tasks(0, 0, 100).ids]
        assert set(names) == set(made.classes("train"))
        held_out = [i.rsplit("-", 2)[0] for i in made.tasks(0, 0, 4, "test").ids]
        assert held_out == [*made.classes("test")] * 2

    def test_held_out_tasks_do_not_depend_on_the_seed(self) -> None:
        made = domain()
        assert torch.equal(
            made.tasks(0, 0, 9, "test").query["images"], made.tasks(5, 0, 9, "test").query["images"]
        )

    def test_more_shots_keep_the_queries_and_add_to_the_support(self) -> None:
        few, many = (domain(shots=shots).tasks(0, 0, 8, "test") for shots in (1, 4))
        assert torch.equal(few.query["images"], many.query["images"])
        assert torch.equal(few.support["images"], many.support["images"][:, :1])

    def test_synthesised_queries_do_not_depend_on_the_shots(self) -> None:
        settings: dict[str, Any] = {"source": "synthesised", "height": 16, "width": 16, "ways": 2}
        few, many = (
            SegmentationDomain(SegmentationConfig(shots=shots, **settings)).tasks(0, 0, 4, "test")
            for shots in (2, 5)
        )
        assert torch.equal(few.query["images"], many.query["images"])
        assert torch.equal(few.query["labels"], many.query["labels"])
        assert few.ids == many.ids
        for labels in few.support["labels"]:
            assert {1, 2} <= set(labels.flatten().tolist())

    def test_tasks_of_several_classes_label_each_of_them(self) -> None:
        images = [image(10 * c + i, [c, (c + 1) % 10, (c + 2) % 10]) for c in range(10) for i in range(8)]
        made = domain(
            images, ways=2, shots=4, train_classes=CLASSES[:6], test_classes=CLASSES[6:], validation_share=0.4
        )
        batch = made.tasks(0, 0, 12)
        for name, shown, labels in zip(
            batch.ids, batch.support["images"], batch.support["labels"], strict=True
        ):
            assert {0, 1, 2} == set(labels.flatten().tolist())
            own = [int(part.split("-")[1]) for part in name.split("+")]
            for number, label in zip(numbers(shown), labels, strict=True):
                expected = torch.zeros(16, 16, dtype=torch.long)
                for value, c in enumerate(own, 1):
                    if (c - number // 10) % 10 < 3:
                        expected[c] = value
                assert torch.equal(label, expected)
        assert made.network_arguments == {"in_channels": 3, "classes": 3}

    def test_unknown_pixels_stay_unknown(self) -> None:
        images = [image(n, [0]) for n in range(40)]
        for one in images:
            one.masks["class-0"][5] = 255
        batch = domain(images, split="images").tasks(0, 0, 2)
        assert bool((batch.support["labels"][:, :, 5] == 255).all())

    def test_augmentation_is_of_the_support_and_of_training(self) -> None:
        plain, changed = domain(), domain(augment=1.0)
        a, b = plain.tasks(0, 0, 8), changed.tasks(0, 0, 8)
        assert torch.equal(a.query["images"], b.query["images"])
        assert not torch.equal(a.support["images"], b.support["images"])
        assert torch.equal(
            plain.tasks(0, 0, 8, "test").support["images"], changed.tasks(0, 0, 8, "test").support["images"]
        )

    def test_a_recoloured_task_is_recoloured_as_a_whole(self) -> None:
        alike = [LabelledImage(str(n), image(500, [0]).pixels, image(n, [0]).masks) for n in range(40)]
        batch = domain(alike, split="images", recolour=1.0).tasks(0, 0, 6)
        for support, query in zip(batch.support["images"], batch.query["images"], strict=True):
            colours = torch.cat([support, query]).flatten(2).mean(-1)
            torch.testing.assert_close(colours, colours[:1].expand_as(colours))
        assert float(torch.pdist(batch.query["images"].flatten(3).mean((1, 3))).min()) > 0

    def test_images_keep_eight_bits(self) -> None:
        pixels = np.arange(256, dtype=np.float32).reshape(16, 16, 1) / np.float32(255)
        images = [LabelledImage(str(n), pixels, image(n, [0]).masks) for n in range(40)]
        found = domain(images, split="images", channels=1).tasks(0, 0, 1).query["images"][0, 0, 0]
        assert torch.equal((found * 255).round(), torch.arange(256.0).reshape(16, 16))

    def test_channels_follow_the_rules_of_images(self) -> None:
        assert domain(channels=1).tasks(0, 0, 1).query["images"].shape[2] == 1
        five = [LabelledImage("a", np.zeros((16, 16, 5), dtype=np.float32), image(0, [0]).masks)]
        with pytest.raises(DataError, match="a: has 5 channels, expected 3"):
            domain(five)
        with pytest.raises(DataError, match="there are no images with masks: all 1 were skipped"):
            domain(five, unusable="skip")

    def test_masks_that_vanish_at_the_size_are_left_out(self) -> None:
        """Rows 0, 2, ... fall between the pixels of an image of half the size."""
        made = domain([image(n, [0, 1]) for n in range(40)], height=8, width=8, split="images")
        assert made.classes("train") == ("class-1",)


class TestMeasured:
    def test_a_users_own_images(self) -> None:
        images, labels = torch.rand(1, 3, 3, 20, 24), torch.randint(2, (1, 3, 20, 24))
        task = domain().measured(images, labels, torch.rand(1, 7, 3, 20, 24))
        assert task.query["images"].shape[1] == 7 and "labels" not in task.query
        assert torch.equal(domain().measured(images, labels).query["labels"], labels)

    def test_shapes_and_labels_are_checked(self) -> None:
        with pytest.raises(DataError, match="expected images"):
            domain().measured(torch.rand(1, 3, 1, 20, 24), torch.zeros(1, 3, 20, 24))
        with pytest.raises(DataError, match="labels hold 2, expected 0 to 1, or 255"):
            domain().measured(torch.rand(1, 3, 3, 20, 24), torch.full((1, 3, 20, 24), 2))


class TestPictures:
    def test_the_truth_is_laid_over_the_query(self) -> None:
        query = {k: v[0] for k, v in domain().tasks(0, 0, 1, "test").query.items()}
        shown = domain().target(query)
        assert shown.shape == (16, 32, 3)
        background = query["labels"][0] == 0
        torch.testing.assert_close(shown[:, :16][background], query["images"][0].movedim(0, -1)[background])
        assert float((shown[:, :16] - query["images"][0].movedim(0, -1))[~background].abs().mean()) > 0.1

    def test_a_perfect_network_has_perfect_metrics(self) -> None:
        query = {k: v[0] for k, v in domain().tasks(0, 0, 1, "test").query.items()}
        truth = torch.nn.functional.one_hot(query["labels"], 2).movedim(-1, 1).float()
        rendered = domain().render(lambda x: 50 * truth, query, {})
        assert domain().metrics(rendered, query) == {"iou": 1, "dice": 1, "boundary_f": 1}
        assert torch.equal(domain().picture(rendered, query), domain().target(query))


def save_npz(path: Path, **arrays: Any) -> Path:
    rng = np.random.default_rng(0)
    default: dict[str, Any] = {
        "x": rng.integers(0, 255, (40, 12, 10, 3), dtype=np.uint8),
        "y": rng.integers(0, 4, (40, 12, 10), dtype=np.uint8),
        "kind": np.arange(40) % 5,
        "part": np.arange(40) % 5 // 4,
        "names": np.array(["none", "a", "b", "c"]),
    }
    np.savez(path, **{k: v for k, v in {**default, **arrays}.items() if v is not None})
    return path


class TestNpz:
    def make(
        self, tmp_path: Path, arrays: dict[str, Any] | None = None, **changes: Any
    ) -> SegmentationDomain:
        path = save_npz(tmp_path / "data.npz", **(arrays or {}))
        settings = {**SMALL, "data": path, "label_array": "y", "split": "images", **changes}
        return SegmentationDomain(SegmentationConfig(**settings))

    def test_label_maps_are_classes(self, tmp_path: Path) -> None:
        assert self.make(tmp_path).classes("train") == ("1", "2", "3")
        made = self.make(tmp_path, label_names_array="names", train_classes=("a", "b"))
        assert made.classes("train") == ("a", "b")

    def test_binary_masks_have_the_class_of_their_image(self, tmp_path: Path) -> None:
        for value in (1, 255):
            binary = (np.random.default_rng(1).random((40, 12, 10)) < 0.5).astype(np.uint8) * value
            made = self.make(tmp_path, {"y": binary}, class_array="kind", split="classes", split_array="part")
            assert made.classes("test") == ("4",) and len(made.classes("train")) == 3

    def test_several_labels_with_a_class_of_the_image_make_pairs(self, tmp_path: Path) -> None:
        made = self.make(
            tmp_path, class_array="kind", label_names_array="names", shots=1, queries=1, unusable="skip"
        )
        assert made.classes("train")[:3] == ("0/a", "0/b", "0/c")

    def test_arrays_list_classes(self, tmp_path: Path) -> None:
        made = self.make(
            tmp_path, {"first": np.array([1, 2]), "last": np.array([3])}, split="classes",
            label_names_array="names", train_classes_array="first", test_classes_array="last",
            validation_share=0.4,
        )  # fmt: skip
        assert set(made.classes("train")) | set(made.classes("validation")) == {"a", "b"}
        assert made.classes("test") == ("c",)

    def test_ignored_labels(self, tmp_path: Path) -> None:
        labels = np.ones((40, 12, 10), dtype=np.uint8)
        labels[:, :4], labels[:, 8:] = 0, 9
        made = self.make(tmp_path, {"y": labels}, ignore=9, height=12, width=10)
        found = made.tasks(0, 0, 1).query["labels"]
        assert set(found.flatten().tolist()) == {0, 1, 255}

    def test_images_whose_mask_is_empty_are_passed_over(self, tmp_path: Path) -> None:
        labels = (np.random.default_rng(1).random((40, 12, 10)) < 0.5).astype(np.uint8)
        labels[::2] = 0
        made = self.make(tmp_path, {"y": labels}, shots=1)
        assert len(made.classes("train")) == 1 and not made.skipped

    @pytest.mark.parametrize(
        ("arrays", "changes", "says"),
        [
            ({"x": None}, {}, "has no array 'x'"),
            ({}, {"label_array": "z"}, "has no array 'z'"),
            ({}, {"label_array": None}, "say which array holds the labels"),
            (
                {"x": np.zeros((40, 12), np.uint8)},
                {},
                r"shape \(40, 12\), expected \(images, height, width\)",
            ),
            ({"y": np.zeros((40, 12, 9), np.uint8)}, {}, "one label for each pixel"),
            ({"y": np.zeros((40, 12, 10))}, {}, "has type float64, expected whole numbers"),
            ({"y": np.full((40, 12, 10), -1)}, {}, r"has labels \[-1\]"),
            ({"y": np.full((40, 12, 10), 7)}, {"label_names_array": "names"}, "expected classes 0 to 3"),
            ({"kind": np.arange(3)}, {"class_array": "kind"}, r"has shape \(3,\), expected \(40,\)"),
            (
                {"kind": np.arange(40)},
                {"class_array": "kind", "class_names_array": "names"},
                "there is no class",
            ),
            ({"x": np.full((40, 12, 10), 2.0)}, {}, r"values lie in \[2, 2\]"),
            ({"x": np.zeros((40, 12, 10), np.int32)}, {}, "has integers of type int32"),
        ],
    )
    def test_arrays_that_cannot_be_used(
        self, tmp_path: Path, arrays: dict[str, Any], changes: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(DataError, match=says):
            self.make(tmp_path, arrays, **changes)

    def test_strokes_are_written_on_clutter(self, tmp_path: Path) -> None:
        glyphs = np.zeros((40, 9, 9), dtype=np.uint8)
        glyphs[:, 2:7, 4] = 255
        made = self.make(
            tmp_path, {"x": glyphs}, source="strokes", label_array=None, class_array="kind", split="classes",
            height=32, width=32,
        )  # fmt: skip
        batch = made.tasks(0, 0, 2)
        share = batch.query["labels"].float().mean((-1, -2))
        assert 0.005 < float(share.min()) and float(share.max()) < 0.2
        again = self.make(
            tmp_path, {"x": glyphs}, source="strokes", label_array=None, class_array="kind", split="classes",
            height=32, width=32,
        )  # fmt: skip
        assert made.fingerprint() == again.fingerprint()

    def test_strokes_need_ink_and_a_class(self, tmp_path: Path) -> None:
        glyphs = np.zeros((40, 9, 9), dtype=np.uint8)
        with pytest.raises(DataError, match="say which array holds the class of each character"):
            self.make(tmp_path, {"x": glyphs}, source="strokes", label_array=None)
        with pytest.raises(DataError, match=r"x\[0\] has no ink"):
            self.make(tmp_path, {"x": glyphs}, source="strokes", label_array=None, class_array="kind")


class TestFolder:
    def fill(self, root: Path, name: str = "a") -> Path:
        rng = np.random.default_rng(0)
        for c in range(5):
            for n in range(4):
                folder = root / f"class {c}"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(folder / f"{n}.jpg")
                mask = np.zeros((20, 30), dtype=np.uint8)
                mask[4:15, 5:20] = 255
                Image.fromarray(mask).save(folder / f"{n}.png")
        return root

    def test_the_fingerprint_does_not_depend_on_where_the_data_lie(self, tmp_path: Path) -> None:
        found = {
            SegmentationDomain(SegmentationConfig(**SMALL, data=self.fill(tmp_path / name))).fingerprint()
            for name in ("a", "b")
        }
        assert len(found) == 1

    def test_the_fingerprint_is_of_images_masks_and_rules(self, tmp_path: Path) -> None:
        first = self.fill(tmp_path / "a")
        found = [
            SegmentationDomain(SegmentationConfig(**SMALL, data=first, **more)).fingerprint()
            for more in ({}, {"fit": "pad"})
        ]
        path = first / "class 3" / "2.png"
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
        found.append(SegmentationDomain(SegmentationConfig(**SMALL, data=first)).fingerprint())
        assert len(set(found)) == 3

    def test_without_data_it_says_what_to_give(self) -> None:
        with pytest.raises(DataError, match="set data to a folder of images and masks"):
            SegmentationDomain(SegmentationConfig())

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="there are no images with masks"):
            SegmentationDomain(SegmentationConfig(data=tmp_path))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"source": "synthesised", "data": "x"}, "synthesised tasks need no data"),
        ({"shots": 1, "ways": 2}, "shots=1 images cannot show ways=2 classes"),
        ({"structures": ("tube",)}, "did you mean 'tubes'"),
        ({"train_classes": ("a",), "train_classes_array": "b"}, "not both"),
        ({"fit": "squash"}, "resize"),
        ({"shot": 3}, "shot"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        SegmentationConfig(**wrong)


CLOTHES = {
    "label_array": "y", "label_names_array": "class_names", "train_classes_array": "fewshot_train_classes",
    "test_classes_array": "fewshot_val_classes",
}  # fmt: skip
CELLS = {"label_array": "mask", "label_names_array": "mask_names", "split_array": "split", "split": "images"}
MEMBRANES = {"label_array": "mask", "split_array": "split", "group_array": "slice", "split": "images"}
OBJECTS = {
    "label_array": "mask", "class_array": "category", "class_names_array": "category_names",
    "split_array": "split",
}  # fmt: skip
STROKES = {
    "source": "strokes",
    "class_array": "y",
    "class_names_array": "class_names",
    "split_array": "split",
}


@pytest.mark.skipif("METAINIT_DATA" not in os.environ, reason="METAINIT_DATA names no folder of data sets")
@pytest.mark.parametrize(
    ("name", "settings", "classes"),
    [
        ("ccp_fashion", CLOTHES, [18, 4, 4]),
        ("wbc", CELLS, [2, 2, 2]),
        ("isbi_em", MEMBRANES, [1, 1, 1]),
        ("eth80", OBJECTS, [3, 1, 2]),
        ("omniglot_small", STROKES, [110, 27, 46]),
    ],
)
def test_real_data_sets_are_read(name: str, settings: dict[str, Any], classes: list[int]) -> None:
    path = Path(os.environ["METAINIT_DATA"]) / name / f"{name}.npz"
    made = SegmentationDomain(SegmentationConfig(**{**settings, "data": path, "height": 32, "width": 32}))
    assert [len(made.classes(split)) for split in SPLITS] == classes
    for split in SPLITS:
        batch = made.tasks(0, 0, 3, split)
        assert bool((batch.support["labels"] == 1).flatten(1).any(1).all())
        assert 0 <= batch.query["images"].min() and batch.query["images"].max() <= 1
