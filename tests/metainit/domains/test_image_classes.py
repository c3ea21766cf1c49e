"""Images with classes: the bundled digits, labelled npz files, every image once, and block means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metainit.domains.base import Enumerable, Split
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.domains.images import block_averaged
from metainit.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COUNT = 40


@pytest.fixture(scope="module")
def digits() -> ImageDomain:
    return ImageDomain(ImageConfig(bundled="digits", height=8, width=8, channels=1, flip=False))


def labelled(folder: Path, changes: dict[str, Any] | None = None, **config: Any) -> ImageDomain:
    """Image i is i everywhere, of the class i % 3."""
    images = np.repeat(np.arange(COUNT, dtype=np.uint8), 64).reshape(COUNT, 8, 8)
    arrays = {"x": images, "y": np.arange(COUNT, dtype=np.uint16) % 3, **(changes or {})}
    np.savez(folder / "a.npz", **arrays)
    settings = {"npz": folder / "a.npz", "height": 8, "width": 8, "channels": 1, "label_array": "y", **config}
    return ImageDomain(ImageConfig.model_validate(settings))


class TestDigits:
    def test_are_those_of_scikit_learn_with_their_labels(self, digits: ImageDomain) -> None:
        from sklearn.datasets import load_digits

        bundle, seen = load_digits(), []
        for split in SPLITS:
            size = digits.size(split)
            assert size is not None
            batch = digits.enumerated(split, 0, size)
            numbers = [int(name.removeprefix("digit[").removesuffix("]")) for name in batch.ids]
            pixels = torch.from_numpy(bundle.images[numbers] / 16).float().reshape(size, 64, 1)
            assert torch.equal(batch.support["values"], pixels)
            assert batch.conditions["class"].tolist() == bundle.target[numbers].tolist()
            seen.append(numbers)
        assert sorted(sum(seen, [])) == list(range(1797))
        assert seen[2] == list(range(1797 - 360, 1797)) and max(seen[0]) < min(seen[1])
        assert digits.class_names == tuple("0123456789")

    def test_may_be_given_another_size(self) -> None:
        config = ImageConfig(bundled="digits", height=4, width=4, channels=1, fit="average")
        whole = ImageDomain(config.model_copy(update={"height": 8, "width": 8}))
        small, large = (d.enumerated("test", 0, 3).support["values"] for d in (ImageDomain(config), whole))
        blocks = large.reshape(3, 4, 2, 4, 2).mean((2, 4)).reshape(3, 16, 1)
        torch.testing.assert_close(small, blocks, atol=1e-6, rtol=0)

    def test_give_way_to_images_that_are_given(self) -> None:
        config = ImageConfig(bundled="digits", height=8, width=8, channels=1)
        given = ImageDomain.from_arrays(np.zeros((20, 8, 8)), config)
        assert given.class_names == () and given.tasks(0, 0, 2).conditions == {}


class TestLabels:
    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("fit", ["resize", "crop", "average", "random_crop"])
    def test_are_those_of_each_image(self, tmp_path: Path, split: Split, fit: str) -> None:
        batch = labelled(tmp_path, fit=fit, observed=0.5).tasks(0, 0, 3, split)
        numbers = [round(float(v.mean()) * 255) for v in batch.query["values"]]
        assert batch.conditions["class"].dtype == torch.int64
        assert batch.conditions["class"].tolist() == [n % 3 for n in numbers]

    def test_have_names_where_the_file_says_them(self, tmp_path: Path) -> None:
        assert labelled(tmp_path).class_names == ("0", "1", "2")
        names = np.asarray(["cat", "dog", "cow", "hen"])
        assert labelled(tmp_path, {"class_names": names}).class_names == ("cat", "dog", "cow", "hen")

    def test_are_part_of_the_fingerprint(self, tmp_path: Path) -> None:
        plain = labelled(tmp_path, label_array=None)
        assert plain.class_names == () and plain.tasks(0, 0, 2).conditions == {}
        found = {
            plain.fingerprint(),
            labelled(tmp_path).fingerprint(),
            labelled(tmp_path, {"y": np.arange(COUNT) % 2}).fingerprint(),
            labelled(tmp_path, {"class_names": np.asarray(["a", "b", "c"])}).fingerprint(),
        }
        assert len(found) == 4 and labelled(tmp_path).fingerprint() in found

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"y": np.zeros(COUNT)}, "type float64, expected the number of each image's class"),
            ({"y": np.zeros((COUNT, 1), dtype=int)}, r"shape \(40, 1\)"),
            ({"y": np.zeros(COUNT - 1, dtype=int)}, "array 'y' is of 39 images, expected one entry .* 40"),
            ({"y": np.full(COUNT, -1)}, "the smallest number in 'y' is -1"),
            ({"class_names": np.asarray(["a", "b"])}, "largest number in 'y' is 2, class_names has 2 names"),
        ],
    )
    def test_that_cannot_be_are_refused(self, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
        with pytest.raises(DataError, match=says):
            labelled(tmp_path, changes)

    def test_that_are_not_there_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has no array 'z'"):
            labelled(tmp_path, label_array="z")
        with pytest.raises(ValueError, match="label_array needs npz"):
            ImageConfig(bundled="digits", label_array="y")


class TestEnumeration:
    @pytest.mark.parametrize("count", [1, 7, COUNT])
    def test_meets_every_image_once_whole_and_as_it_is(self, tmp_path: Path, count: int) -> None:
        ramp = np.arange(COUNT * 64, dtype=np.uint16).reshape(COUNT, 8, 8) * 7
        domain = labelled(tmp_path, {"x": ramp}, flip=True, points=16)
        assert isinstance(domain, Enumerable)
        met: list[torch.Tensor] = []
        for split in SPLITS:
            size = domain.size(split)
            assert size is not None
            batches = [domain.enumerated(split, at, count) for at in range(0, size, count)]
            assert [len(b) for b in batches][:-1] == [count] * (len(batches) - 1)
            met += [values for batch in batches for values in batch.support["values"]]
        expected = torch.from_numpy(ramp.astype(np.float32) / np.float32(65535)).reshape(COUNT, 64, 1)
        assert torch.equal(torch.stack(met), expected)

    @pytest.mark.parametrize("split", SPLITS[1:])
    def test_of_held_out_tasks_is_their_own_order(self, tmp_path: Path, split: Split) -> None:
        domain = labelled(tmp_path, observed=0.5)
        whole, part = domain.tasks(0, 0, 4, split), domain.enumerated(split, 1, 2)
        assert part.ids == whole.ids[1:3]
        assert torch.equal(part.support["known"], whole.support["known"][1:3])

    def test_ends(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="has 32 tasks, there is none at 32"):
            labelled(tmp_path).enumerated("train", 32, 1)
        with pytest.raises(DataError, match="no end of the tasks in 'train' with fit=random_crop"):
            labelled(tmp_path, fit="random_crop").enumerated("train", 0, 1)


class TestBlocks:
    def test_their_means_are_exact(self) -> None:
        whole = np.random.default_rng(0).integers(0, 256, (28, 42, 2), dtype=np.uint8)
        found = block_averaged(whole.astype(np.float32), 14, 14, "image")
        expected = [
            [whole[2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean((0, 1)) for j in range(14)] for i in range(14)
        ]
        np.testing.assert_array_equal(found, np.asarray(expected, dtype=np.float32))

    def test_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a.npz\[0\]: 8x8 pixels do not divide into 5x8 equal blocks"):
            labelled(tmp_path, fit="average", height=5)
