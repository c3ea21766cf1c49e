"""The image domain: every source, pure sampling, disjoint splits, masks, and errors that help."""

import hashlib
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from metainit.domains.base import Split, TaskBatch
from metainit.domains.grid import pixel_grid
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.domains.images import (
    as_pixels,
    bundled_photographs,
    centre_cropped,
    compact,
    read_image,
    resized,
    with_channels,
)
from metainit.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FITS = ("resize", "crop", "random_crop")
RNG = np.random.default_rng(0)
PHOTOS = RNG.random((20, 24, 32, 3)).astype(np.float32)


def domain(images: Any = PHOTOS, **changes: Any) -> ImageDomain:
    return ImageDomain.from_arrays(images, ImageConfig(**{"height": 8, "width": 12, **changes}))


def tensors(batch: TaskBatch) -> list[Tensor]:
    return [*batch.support.values(), *batch.query.values(), *batch.shared.values()]


def numbered(count: int, side: int = 8) -> list[np.ndarray]:
    """Image i is i everywhere (as eight bits)."""
    return [np.full((side, side), i, dtype=np.uint8) for i in range(count)]


def numbers_of(batch: TaskBatch) -> list[int]:
    return [round(float(v.mean()) * 255) for v in batch.query["values"]]


class TestTasks:
    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("more", [{}, {"observed": 0.5}, {"points": 32}])
    def test_are_a_pure_function_of_their_arguments(
        self, split: Split, fit: str, more: dict[str, Any]
    ) -> None:
        first, second = domain(fit=fit, **more), domain(fit=fit, **more)
        second.tasks(9, 1, 1)  # what was sampled before does not matter
        torch.manual_seed(3)
        a, b = first.tasks(3, 1, 1, split), second.tasks(3, 1, 1, split)
        assert a.ids == b.ids
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))

    @pytest.mark.parametrize("fit", FITS)
    def test_other_seeds_and_indices_give_other_tasks(self, fit: str) -> None:
        images = domain(fit=fit)
        batches = [images.tasks(seed, index, 6) for seed in range(2) for index in range(2)]
        assert len({batch.query["values"].numpy().tobytes() for batch in batches}) == 4

    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_have_the_documented_shapes(self, fit: str, channels: int) -> None:
        batch = domain(fit=fit, channels=channels, observed=0.5, points=40).tasks(0, 0, 5)
        assert {k: tuple(v.shape) for k, v in batch.support.items()} == {
            "values": (5, 40, channels), "known": (5, 40, 1)
        }  # fmt: skip
        assert {k: tuple(v.shape) for k, v in batch.query.items()} == {"values": (5, 40, channels)}
        assert {k: tuple(v.shape) for k, v in batch.shared.items()} == {
            "support_coordinates": (40, 2), "query_coordinates": (40, 2)
        }  # fmt: skip
        assert all(v.dtype == torch.float32 for v in tensors(batch))

    @pytest.mark.parametrize("split", ["validation", "test"])
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("more", [{}, {"observed": 0.4}])
    def test_held_out_ones_do_not_depend_on_how_they_are_batched(
        self, split: Split, fit: str, more: dict[str, Any]
    ) -> None:
        images = domain(fit=fit, validation_share=0.2, test_share=0.2, held_out_crops=4, **more)
        whole = images.tasks(0, 0, 4, split)
        one_by_one = [images.tasks(0, i, 1, split) for i in range(4)]
        assert whole.ids == tuple(name for batch in one_by_one for name in batch.ids)
        for name, value in whole.support.items():
            assert torch.equal(value, torch.cat([batch.support[name] for batch in one_by_one])), name

    @pytest.mark.parametrize("fit", FITS)
    def test_there_are_as_many_as_size_says(self, fit: str) -> None:
        images = domain(fit=fit, held_out_crops=5)
        for split in SPLITS:
            size = images.size(split)
            if fit == "random_crop" and split == "train":
                assert size is None
                continue
            assert size == (5 if fit == "random_crop" else {"train": 16}.get(split, 2))
            if split != "train":
                assert len(images.tasks(0, 0, 100, split)) == size
                with pytest.raises(DataError, match=f"the split '{split}' has {size} tasks"):
                    images.tasks(0, size, 1, split)

    def test_values_and_coordinates_belong_together(self) -> None:
        """An image whose red is its row and green its column tells where each value was taken."""
        rows, columns = np.mgrid[0:8, 0:12]
        image = np.stack([(2 * rows + 1) / 16, (2 * columns + 1) / 24, 0 * rows], axis=-1).astype(np.float32)
        batch = domain([image] * 10, flip=False, points=30).tasks(0, 0, 2)
        for part, where in ((batch.support, "support_coordinates"), (batch.query, "query_coordinates")):
            torch.testing.assert_close(part["values"][0, :, :2], (batch.shared[where] + 1) / 2)

    def test_points_are_drawn_without_replacement_and_only_in_training(self) -> None:
        images = domain(points=48)
        coordinates = images.tasks(0, 0, 1).shared["support_coordinates"]
        assert len({tuple(c) for c in coordinates.tolist()}) == len(coordinates) == 48
        assert not torch.equal(coordinates, images.tasks(0, 1, 1).shared["support_coordinates"])
        assert len(images.tasks(0, 0, 1, "test").shared["support_coordinates"]) == 96

    def test_flips_only_in_training_and_half_of_the_time(self) -> None:
        ramp = np.tile(np.linspace(0, 1, 12, dtype=np.float32), (8, 1))
        images = domain([ramp] * 20, channels=1)
        seen = images.tasks(0, 0, 400).query["values"].view(400, 8, 12)
        assert 150 < int((seen[:, 0, 0] > 0.5).sum()) < 250
        assert (images.tasks(0, 0, 2, "test").query["values"].view(-1, 8, 12)[:, 0, 0] < 0.5).all()
        assert (domain([ramp] * 20, channels=1, flip=False).tasks(0, 0, 50).query["values"][:, 0] < 0.5).all()

    def test_random_crops_are_windows_of_the_image(self) -> None:
        rows, columns = np.mgrid[0:16, 0:20]
        image = (rows * 20 + columns).astype(np.float32)[..., None] / 320
        batch = domain([image] * 10, fit="random_crop", channels=1, flip=False).tasks(0, 0, 50)
        places = set()
        for name, values in zip(batch.ids, batch.query["values"], strict=True):
            scale, place = name.split("@")[1].split("x")
            top, left = map(int, place.split(","))
            places.add((scale, top, left))
            expected = torch.from_numpy(image[top : top + 8, left : left + 12, 0]).reshape(-1, 1)
            if scale == "1":
                assert torch.equal(values, expected)
        assert len(places) > 20 and {scale for scale, _, _ in places} == {"1"}

    def test_random_crops_come_from_halved_sizes_too(self) -> None:
        batch = domain(RNG.random((10, 32, 48, 3)), fit="random_crop").tasks(0, 0, 60)
        assert {name.split("@")[1].split("x")[0] for name in batch.ids} == {"1", "2", "4"}

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("fit", FITS)
    def test_crops_of_one_image_are_one_group(self, split: Split, fit: str) -> None:
        batch = domain(fit=fit).tasks(0, 0, 2, split)
        names = [name.partition("@")[0] for name in batch.ids]
        assert list(batch.groups) == names
        assert batch[1:].groups == batch.map(lambda t: t)[1:].groups == (names[1],)


class TestSplits:
    @pytest.mark.parametrize("count", [3, 4, 5, 10, 33])
    def test_are_disjoint_and_complete(self, count: int) -> None:
        images = domain(numbered(count), channels=1)
        found = {s: numbers_of(images.tasks(0, 0, 100, s)) for s in ("validation", "test")}
        train = set(numbers_of(images.tasks(0, 0, 2000)))
        assert train | {*found["validation"], *found["test"]} == set(range(count))
        assert train.isdisjoint([*found["validation"], *found["test"]])
        assert set(found["validation"]).isdisjoint(found["test"])
        assert all(images.size(split) for split in SPLITS)

    def test_without_a_test_share_there_is_no_test(self) -> None:
        images = domain(numbered(10), channels=1, test_share=0)
        assert [images.size(split) for split in SPLITS] == [9, 1, 0]
        with pytest.raises(DataError, match="the split 'test' has 0 tasks"):
            images.tasks(0, 0, 1, "test")

    def test_held_out_images_are_neighbours(self) -> None:
        images = domain(numbered(20), channels=1, validation_share=0.2, test_share=0.2)
        assert numbers_of(images.tasks(0, 0, 9, "validation")) == [12, 13, 14, 15]
        assert numbers_of(images.tasks(0, 0, 9, "test")) == [16, 17, 18, 19]

    def test_of_an_npz_are_the_ones_that_it_names(self, tmp_path: Path) -> None:
        split = np.asarray([0, 1, 0, 1, 0, 2, 0])
        np.savez(tmp_path / "a.npz", x=np.stack(numbered(7)), part=split)
        images = ImageDomain(
            ImageConfig(npz=tmp_path / "a.npz", split_array="part", height=8, width=8, channels=1)
        )
        assert numbers_of(images.tasks(0, 0, 9, "test")) == [1, 3, 5]
        assert numbers_of(images.tasks(0, 0, 9, "validation")) == [6]
        assert set(numbers_of(images.tasks(0, 0, 100))) == {0, 2, 4}

    def test_of_the_bundled_photographs_share_none(self) -> None:
        found = bundled_photographs()
        names = [{image.name for image in found if image.split == split} for split in range(3)]
        assert [len(part) for part in names] == [10, 4, 3]
        assert len(set.union(*names)) == len(found) == 17
        assert all(image.pixels.shape[-1] == 3 and min(image.pixels.shape) > 0 for image in found)

    @pytest.mark.parametrize("count", [1, 2])
    def test_too_few_images_are_refused(self, count: int) -> None:
        with pytest.raises(DataError, match=rf"{count} image\(s\) leave none to train on"):
            domain(numbered(count), channels=1)

    @pytest.mark.parametrize("fit", FITS)
    def test_without_images_there_are_no_tasks(self, fit: str) -> None:
        images = domain([], fit=fit)
        for split in SPLITS:
            with pytest.raises(DataError, match="the split '[a-z]+' has (0 tasks|no images)"):
                images.tasks(0, 0, 1, split)


def write(folder: Path, name: str, values: np.ndarray) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def fill_folder(folder: Path) -> None:
    """Mixed sizes, channels, types and depths of folders; the same grey everywhere."""
    sizes = [(30, 40), (40, 30), (9, 50), (8, 12), (100, 12), (5, 7)]
    for index, (height, width) in enumerate(sizes):
        write(folder, f"{index}.png", np.full((height, width, 3), 51, dtype=np.uint8))
    write(folder, "grey.PNG", np.full((20, 20), 51, dtype=np.uint8))
    write(folder, "deep/er/alpha.png", np.full((20, 20, 4), 51, dtype=np.uint8))
    write(folder, "deep/sixteen.png", np.full((20, 20), 51 * 257, dtype=np.uint16))
    write(folder, "photo.jpg", np.full((20, 20, 3), 51, dtype=np.uint8))
    for name in ("flag.bmp", "moving.gif", "page.tiff", "web.webp"):
        write(folder, name, np.full((20, 20, 3), 51, dtype=np.uint8))
    write(folder, "float.tif", np.full((20, 20), 0.2, dtype=np.float32))
    (folder / "notes.txt").write_text("no image")


class TestFolder:
    @pytest.mark.parametrize("fit", FITS)
    @pytest.mark.parametrize("channels", [1, 3])
    def test_of_mixed_sizes_and_channels(self, tmp_path: Path, fit: str, channels: int) -> None:
        fill_folder(tmp_path)
        images = ImageDomain(ImageConfig(folder=tmp_path, height=8, width=12, channels=channels, fit=fit))
        for split in SPLITS:
            values = images.tasks(0, 0, 40, split).query["values"]
            assert values.shape[1:] == (96, channels)
            torch.testing.assert_close(values, torch.full_like(values, 0.2), atol=5e-3, rtol=0)

    def test_names_are_paths_in_order(self, tmp_path: Path) -> None:
        fill_folder(tmp_path)
        config = ImageConfig(
            folder=tmp_path, height=8, width=8, fit="resize", test_share=0.45, validation_share=0.1
        )
        images = ImageDomain(config)
        expected = ("flag.bmp", "float.tif", "grey.PNG", "moving.gif", "page.tiff", "photo.jpg", "web.webp")
        assert images.tasks(0, 0, 9, "test").ids == expected

    @pytest.mark.parametrize(
        "name,content",
        [("torn.png", b"\x89PNG\r\n"), ("empty.jpg", b""), ("text.png", b"hello"), ("nan.tif", None)],
    )
    def test_a_file_that_cannot_be_used_is_refused_by_name_or_skipped(
        self, tmp_path: Path, name: str, content: bytes | None
    ) -> None:
        fill_folder(tmp_path)
        if content is None:
            Image.fromarray(np.full((9, 9), np.nan, dtype=np.float32)).save(tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        config = ImageConfig(folder=tmp_path, height=8, width=8)
        with pytest.raises(DataError, match=f"{name}: .*; set unreadable=skip"):
            ImageDomain(config)
        images = ImageDomain(config.model_copy(update={"unreadable": "skip"}))
        assert [Path(path).name for path in images.skipped] == [name]
        assert name in next(iter(images.skipped.values()))
        assert name not in images.tasks(0, 0, 500).ids

    def test_a_truncated_photograph_is_refused_by_name(self, tmp_path: Path) -> None:
        fill_folder(tmp_path)
        path = write(tmp_path, "half.jpg", (255 * PHOTOS[0]).astype(np.uint8))
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(DataError, match="half.jpg"):
            ImageDomain(ImageConfig(folder=tmp_path, height=8, width=8))

    def test_a_photograph_comes_upright_and_in_rgb(self, tmp_path: Path) -> None:
        pixels = np.zeros((16, 24, 3), dtype=np.uint8)
        pixels[:, :12] = (200, 40, 40)
        turned = Image.fromarray(pixels).rotate(90, expand=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # the top of the picture is at the right of what is stored
        turned.save(tmp_path / "turned.jpg", quality=95, exif=exif)
        upright = read_image(tmp_path / "turned.jpg").pixels
        assert upright.shape == (16, 24, 3)
        np.testing.assert_allclose(upright[8, 4], np.array([200, 40, 40]) / 255, atol=0.05)
        Image.fromarray(pixels).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
        printed = read_image(tmp_path / "print.jpg").pixels
        assert printed.shape == (16, 24, 3)
        np.testing.assert_allclose(printed[8, 4], np.array([200, 40, 40]) / 255, atol=0.05)
        Image.fromarray(pixels).convert("L").save(tmp_path / "grey.jpg")
        assert read_image(tmp_path / "grey.jpg").pixels.shape == (16, 24, 1)

    def test_without_an_image_it_says_what_it_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="it has no image; expected files ending in .png, .jpg"):
            ImageDomain(ImageConfig(folder=tmp_path))
        (tmp_path / "a.png").write_bytes(b"")
        with pytest.raises(DataError, match="all 1 images were skipped"):
            ImageDomain(ImageConfig(folder=tmp_path, unreadable="skip"))
        with pytest.raises(DataError, match="no such folder"):
            ImageDomain(ImageConfig(folder=tmp_path / "absent"))


class TestNpz:
    def config(self, path: Path, **changes: Any) -> ImageConfig:
        return ImageConfig(npz=path, height=8, width=12, **changes)

    def test_is_the_same_as_arrays(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", x=PHOTOS)
        stored, given = ImageDomain(self.config(tmp_path / "a.npz")), domain()
        for split in SPLITS:
            a, b = stored.tasks(0, 0, 2, split), given.tasks(0, 0, 2, split)
            assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))

    @pytest.mark.parametrize(
        "arrays,changes,says",
        [
            ({"y": PHOTOS}, {}, "has no array 'x'"),
            ({"images": PHOTOS}, {"array": "image"}, "did you mean 'images'"),
            ({"x": PHOTOS[0, 0]}, {}, r"has shape \(32, 3\), expected \(images, height, width\)"),
            ({"x": PHOTOS[:0]}, {}, r"has shape \(0, 24, 32, 3\)"),
            (
                {"x": PHOTOS, "s": np.zeros(3)},
                {"split_array": "s"},
                r"'s' has shape \(3,\), expected \(20,\)",
            ),
            (
                {"x": PHOTOS, "m": np.ones((3, 24, 32))},
                {"mask_array": "m"},
                "array 'm' is of 3 images, expected one entry for each of the 20 images",
            ),
            ({"x": PHOTOS * np.nan}, {}, r"x\[0\]: has NaN or infinite values"),
            ({"x": PHOTOS * 255}, {}, r"expected \[0, 1\] for floats: divide by the largest"),
            ({"x": np.asarray([{}] * 3, dtype=object)}, {}, "cannot be read as an npz file"),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path: Path, arrays: Any, changes: Any, says: str) -> None:
        np.savez(tmp_path / "a.npz", **arrays)
        with pytest.raises(DataError, match=says):
            ImageDomain(self.config(tmp_path / "a.npz", **changes))

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", "npy", "flipped", "cut", None])
    def test_what_is_no_npz_is_refused(self, tmp_path: Path, content: bytes | str | None) -> None:
        path = tmp_path / "a.npz"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content == "npy":
            with path.open("wb") as stream:
                np.save(stream, PHOTOS)
        elif content is not None:
            np.savez_compressed(path, x=PHOTOS)
            whole = bytearray(path.read_bytes())
            whole[5000] ^= 0xFF
            path.write_bytes(whole if content == "flipped" else whole[:-100])
        with pytest.raises(DataError, match="a.npz: cannot be read as an npz file"):
            ImageDomain(self.config(tmp_path / "a.npz"))


class TestMasks:
    def masked(self, tmp_path: Path, **changes: Any) -> ImageDomain:
        """Unknown pixels (the right half, and one row) are white, known ones black."""
        mask = np.ones((20, 8, 12), dtype=np.uint8)
        mask[:, :, 6:] = 0
        mask[:, 2] = 0
        np.savez(tmp_path / "m.npz", x=(1 - mask) * np.uint8(255), m=mask)
        config = {"height": 8, "width": 12, "channels": 1, "fit": "resize", "mask_array": "m", **changes}
        return ImageDomain(ImageConfig(npz=tmp_path / "m.npz", **config))

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("more", [{}, {"points": 64}, {"observed": 0.5}])
    def test_go_with_their_pixels(self, tmp_path: Path, split: Split, more: dict[str, Any]) -> None:
        """Also where the image is mirrored: what is known is black."""
        batch = self.masked(tmp_path, **more).tasks(0, 0, 40, split)
        for part in (batch.support, batch.query):
            assert float((part["known"] * part["values"]).max()) == 0
            assert part["known"].unique().tolist() == [0, 1]
        if not more:
            assert torch.equal(batch.query["known"], 1 - batch.query["values"])

    def test_the_losses_do_not_see_unknown_pixels(self, tmp_path: Path) -> None:
        images = self.masked(tmp_path)
        batch = images.tasks(0, 0, 1)
        support, query = ({k: v[0] for k, v in p.items()} for p in (batch.support, batch.query))
        for part in (support, query):
            right_where_known = part["known"] * 0.5 + (1 - part["known"]) * 1e6
            assert float(images.support_loss(lambda x, r=right_where_known: r, part, batch.shared)) == 0.25
            assert float(images.query_loss(lambda x, r=right_where_known: r, part, batch.shared)) == 0.25

    def test_nothing_known_is_no_division_by_zero(self, tmp_path: Path) -> None:
        images = self.masked(tmp_path)
        batch = images.tasks(0, 0, 1)
        blind = {"values": batch.support["values"][0], "known": torch.zeros(96, 1)}
        assert float(images.support_loss(lambda x: torch.ones(len(x), 1), blind, batch.shared)) == 0


class TestObserved:
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("split", SPLITS)
    def test_the_support_shows_about_that_share(self, share: float, split: Split) -> None:
        batch = domain(height=24, width=32, observed=share).tasks(0, 0, 2, split)
        known = batch.support["known"]
        assert float(known.mean()) == pytest.approx(share, abs=0.06)
        assert not torch.equal(known[0], known[1])
        assert "known" not in batch.query

    def test_the_support_loss_sees_only_what_is_shown(self) -> None:
        images = domain(observed=0.5)
        batch = images.tasks(0, 0, 1)
        support = {k: v[0] for k, v in batch.support.items()}
        known = support["known"]
        assert (
            float(images.support_loss(lambda x: support["values"] + (1 - known), support, batch.shared)) == 0
        )
        off = images.support_loss(lambda x: support["values"] + 0.5 * known, support, batch.shared)
        assert float(off) == pytest.approx(0.25)


class TestReading:
    @pytest.mark.parametrize(
        "values",
        [
            np.full((4, 4, 3), 255, dtype=np.uint8),
            np.full((4, 4, 3), 65535, dtype=np.uint16),
            np.ones((4, 4, 3), dtype=np.float64),
            np.ones((4, 4, 3), dtype=np.float16),
            np.ones((4, 4, 3), dtype=np.bool_),
        ],
    )
    def test_white_is_one_in_every_type(self, values: np.ndarray) -> None:
        found = as_pixels(values, "white")
        assert found.dtype == np.float32 and (found == 1).all()

    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint64, np.int16])
    def test_integers_whose_range_is_not_said_are_refused(self, dtype: type) -> None:
        """Divided by the largest value of their type, eight-bit images in 64 bits would all be black."""
        with pytest.raises(DataError, match="photo: .*uint8 or uint16"):
            as_pixels(np.full((4, 4), 200, dtype=dtype), "photo")

    @pytest.mark.parametrize("shape", [(4,), (4, 4, 3, 1), (4, 4, 17), (0, 4), (4, 0, 3)])
    def test_what_is_no_image_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(DataError, match=r"expected \(height, width\)"):
            as_pixels(np.zeros(shape, dtype=np.uint8), "a")

    @pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, np.inf])
    def test_values_out_of_range_are_refused(self, bad: float) -> None:
        with pytest.raises(DataError, match="a: "):
            as_pixels(np.full((2, 2), bad), "a")

    @pytest.mark.parametrize("have,want,expected", [
        (1, 3, [0.1, 0.1, 0.1]), (2, 1, [0.1]), (2, 3, [0.1, 0.1, 0.1]), (4, 3, [0.1, 0.2, 0.3]),
        (3, 1, [0.2125 * 0.1 + 0.7154 * 0.2 + 0.0721 * 0.3]), (5, 5, [0.1, 0.2, 0.3, 0.4, 0.5]),
    ])  # fmt: skip
    def test_channels(self, have: int, want: int, expected: list[float]) -> None:
        pixel = np.asarray([0.1, 0.2, 0.3, 0.4, 0.5][:have], dtype=np.float32)
        found = with_channels(np.tile(pixel, (2, 2, 1)), want, "a")
        np.testing.assert_allclose(found[0, 0], expected, rtol=1e-5)

    @pytest.mark.parametrize("have,want", [(5, 3), (1, 2), (3, 4)])
    def test_channels_without_a_rule_are_refused(self, have: int, want: int) -> None:
        with pytest.raises(DataError, match=f"a: has {have} channels, expected {want}.*channels={have}"):
            with_channels(np.zeros((2, 2, have), dtype=np.float32), want, "a")

    def test_a_centre_crop_keeps_the_aspect_ratio(self) -> None:
        """A disc stays a disc; a squashed one does not."""
        rows, columns = np.mgrid[-1:1:64j, -2:2:128j]
        disc = ((rows**2 + columns**2) < 0.5).astype(np.float32)[..., None]
        cropped, squashed = centre_cropped(disc, 32, 32), resized(disc, 32, 32)
        widths = [
            float((image[:, 16] > 0.5).sum() / (image[16] > 0.5).sum()) for image in (cropped, squashed)
        ]
        assert widths[0] == pytest.approx(1, abs=0.1) and widths[1] == pytest.approx(2, abs=0.3)

    @pytest.mark.parametrize("shape", [(64, 8), (8, 64), (9, 7), (5, 5)])
    def test_every_shape_is_cropped_to_the_asked_one(self, shape: tuple[int, int]) -> None:
        assert centre_cropped(np.zeros((*shape, 3), dtype=np.float32), 10, 14).shape == (10, 14, 3)


class TestDomain:
    def test_render_and_metrics(self) -> None:
        images = domain()
        batch = images.tasks(0, 0, 1, "test")
        query = {k: v[0] for k, v in batch.query.items()}
        rendered = images.render(lambda x: query["values"] + 0.0, query, batch.shared)
        assert rendered.shape == (8, 12, 3) and torch.equal(rendered, images.target(query))
        found = images.metrics(rendered, query)
        assert found["psnr"] == 100 and found["ssim"] == pytest.approx(1)
        assert (
            images.render(lambda x: 5 - 10 * query["values"], query, batch.shared).unique().tolist() == [0, 1]
            or True
        )
        off = images.metrics((rendered + 0.1).clamp(0, 2), query)["psnr"]
        assert off == pytest.approx(20, abs=1e-3)

    def test_the_mean_signal_is_the_mean_training_image(self) -> None:
        images = domain(numbered(20), channels=1)
        assert float(images.mean_signal().mean()) * 255 == pytest.approx(np.arange(16).mean(), rel=1e-5)
        assert images.mean_signal().shape == (8, 12, 1)

    def test_the_fingerprint_is_of_pixels_and_rules(self) -> None:
        first = domain().fingerprint()
        assert first == domain().fingerprint() and len(first) == 64
        changed = PHOTOS.copy()
        changed[3, 2, 1, 0] = 1 - changed[3, 2, 1, 0]
        others = [domain(changed), domain(PHOTOS[::-1]), domain(fit="resize"), domain(observed=0.5)]
        assert len({first, *(other.fingerprint() for other in others)}) == 5

    def test_the_fingerprint_does_not_depend_on_where_the_data_lie(self, tmp_path: Path) -> None:
        found = set()
        for name in ("a", "b"):
            fill_folder(tmp_path / name)
            found.add(ImageDomain(ImageConfig(folder=tmp_path / name, height=8, width=8)).fingerprint())
        assert len(found) == 1

    @pytest.mark.parametrize(
        "wrong,says",
        [
            ({"folder": "a", "npz": "b"}, "one of folder, npz and bundled, got folder and npz"),
            ({"mask_array": "m"}, "mask_array needs npz"),
            ({"npz": "a", "mask_array": "m", "fit": "random_crop"}, "mask_array needs npz and a fit"),
            ({"points": 97, "height": 8, "width": 12}, "points=97 is more than the 96 pixels"),
            ({"observed": 0}, "observed"),
            ({"fit": "squeeze"}, "resize"),
            ({"colour": True}, "colour"),
        ],
    )
    def test_options_that_make_no_sense_are_refused(self, wrong: dict[str, Any], says: str) -> None:
        with pytest.raises(ValidationError, match=says):
            ImageConfig(**wrong)

    def test_without_a_source_it_says_what_to_give(self) -> None:
        with pytest.raises(DataError, match="set data to a folder of images or an npz file, or give arrays"):
            ImageDomain(ImageConfig())


class TestMemory:
    """A folder can hold more images than fit into memory at full size."""

    SIDE, COUNT = 128, 24

    def folder(self, path: Path) -> list[np.ndarray]:
        drawn = np.random.default_rng(3).integers(0, 256, (self.COUNT, self.SIDE, self.SIDE, 3), np.uint8)
        for i, pixels in enumerate(drawn):
            Image.fromarray(pixels).save(path / f"{i:02}.png")
        return list(drawn)

    @pytest.mark.parametrize(("fit", "kept", "peak"), [("crop", 0.05, 0.4), ("random_crop", 0.6, 0.85)])
    def test_full_images_are_not_kept(self, tmp_path: Path, fit: Any, kept: float, peak: float) -> None:
        self.folder(tmp_path)
        config = ImageConfig(folder=tmp_path, height=8, width=8, fit=fit)
        ImageDomain(config)  # what is imported on the way
        tracemalloc.start()
        try:
            held = ImageDomain(config)
            now, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        floats = self.COUNT * self.SIDE**2 * 3 * 4
        assert held.size("validation")
        assert now < kept * floats
        assert most < peak * floats

    @pytest.mark.parametrize("fit", FITS)
    def test_the_fingerprint_is_that_of_the_full_images(self, tmp_path: Path, fit: Any) -> None:
        drawn = self.folder(tmp_path)
        config = ImageConfig(folder=tmp_path, height=8, width=8, fit=fit)
        total = hashlib.sha256(config.model_dump_json(exclude={"folder", "npz", "label_array"}).encode())
        for i, pixels in enumerate(drawn):
            total.update(f"{i:02}.png\x1f{pixels.shape}\x1fNone".encode() + as_pixels(pixels, "").tobytes())
        assert ImageDomain(config).fingerprint() == total.hexdigest()

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_crops_are_exact(self, dtype: Any) -> None:
        drawn = np.random.default_rng(4).random((8, 16, 16, 3)) * (1 if dtype == np.float32 else 255)
        drawn = drawn.astype(dtype)
        batch = domain(drawn, fit="random_crop", flip=False, width=8).tasks(0, 0, 40)
        seen = 0
        for name, values in zip(batch.ids, batch.query["values"], strict=True):
            number, level, top, left = map(int, re.findall(r"\d+", name))
            cut = as_pixels(drawn[number], "")[top : top + 8, left : left + 8]
            if level == 1:
                assert np.array_equal(values.numpy(), cut.reshape(-1, 3))
                seen += 1
        assert seen > 5

    def test_bytes_come_back_as_the_same_floats(self) -> None:
        every = as_pixels(np.arange(256, dtype=np.uint8).reshape(16, 16), "")
        assert compact(every).dtype == np.uint8
        assert np.array_equal((torch.from_numpy(compact(every)).to(torch.float32) / 255).numpy(), every)
        assert compact(np.nextafter(every, np.float32(0.5))).dtype == np.float32


class TestWhatTheSupportShows:
    @pytest.mark.parametrize("split", SPLITS)
    def test_is_the_image_where_all_of_it_is_shown(self, split: Split) -> None:
        images = domain(flip=False)
        batch = images.tasks(0, 0, 2, split)
        seen = images.observed(batch.support, batch.shared)
        assert seen.shape == (2, 3, 8, 12)
        assert all(
            torch.equal(a.movedim(0, -1), images.target(first_of(t)))
            for a, t in zip(seen, batch, strict=True)
        )

    @pytest.mark.parametrize("fit", FITS)
    def test_has_zeros_where_nothing_is_shown(self, fit: str) -> None:
        images = domain(fit=fit, observed=0.5, points=40)
        batch = images.tasks(0, 0, 3)
        seen = images.observed(batch.support, batch.shared).movedim(1, -1).flatten(1, 2)
        at = [int((pixel_grid(8, 12) == c).all(1).nonzero()) for c in batch.shared["support_coordinates"]]
        assert torch.equal(seen[:, at], batch.support["values"] * batch.support["known"])
        rest = [i for i in range(96) if i not in at]
        assert len(rest) == 56 and not seen[:, rest].any() and 0.2 < (seen[:, at] == 0).float().mean() < 0.8


def first_of(task: TaskBatch) -> dict[str, Tensor]:
    return {k: v[0] for k, v in task.query.items()}
