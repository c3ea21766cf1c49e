"""Labelled image sets for classification: bundled digits, an npz file, or a folder for each class.

Everything comes out the same way: standardized images of one size in memory, a label for each, and three
parts. What the source marks as not for training is `test`; `validation` is carved out of the training part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from metainit.card import Record
from metainit.domains import images as reading
from metainit.domains.base import Split
from metainit.domains.digits import DIGIT_NAMES, DIGITS, bundled_digits
from metainit.domains.seeding import generator_of, seed_of
from metainit.errors import DataError, suggestion

REPORTED = ("val", "validation", "test")
"""Suffixes of the arrays of an npz file that are for reporting."""
SMALLEST_STD = 1e-3


class LabelledImagesConfig(Record):
    """Where labelled images come from, and what is made of them.

    `data`: ``digits`` (bundled with scikit-learn), an npz file, or a folder with a folder for each class.
    `size`: side of the square images; as they are unless given. `pool`: how they become that small,
    ``average`` over blocks of pixels (which have to fit) or ``resize``. `validation` and, where the source
    has no test part, `test`: shares of the images of each class. `unreadable`: what becomes of files that
    cannot be used.

    Example:
        >>> LabelledImagesConfig(data='digits', size=4).pool
        'average'
    """

    data: str = DIGITS
    size: int | None = Field(default=None, ge=2, le=512)
    channels: Literal[1, 3] = 1
    pool: Literal["average", "resize"] = "average"
    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, lt=1)
    split_seed: int = 0
    unreadable: Literal["refuse", "skip"] = "refuse"


class Examples(NamedTuple):
    """Images ``(n, channels, side, side)`` and their labels ``(n,)``."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class LabelledImages:
    """Standardized images with labels, in three parts.

    `mean` and `std`: of each channel of the training part's pixels in [0, 1]; an image is
    ``(pixels - mean) / std``. `skipped`: files that were left out, and why.
    """

    parts: dict[Split, Examples]
    class_names: tuple[str, ...]
    mean: Tensor
    std: Tensor
    digest: str
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width."""
        channels, height, width = self.parts["train"].images.shape[1:]
        return channels, height, width

    def fingerprint(self) -> str:
        """Return the SHA-256 of images, labels and parts."""
        return self.digest

    def size(self, split: Split) -> int:
        """Return how many images a part has."""
        return len(self.parts[split].labels)

    def batch(self, seed: int, index: int, count: int, split: Split = "train") -> Examples:
        """Return `count` different examples of a part: a pure function of the arguments.

        Raises:
            DataError: the part holds fewer.
        """
        part = self.parts[split]
        if count > len(part.labels):
            raise DataError(f"a batch of {count} was asked of the {len(part.labels)} images for {split}")
        chosen = torch.randperm(len(part.labels), generator=generator_of("images", seed, split, index))[
            :count
        ]
        return Examples(part.images[chosen], part.labels[chosen])


class _Raw(NamedTuple):
    """Pixels ``(n, channels, side, side)`` in [0, 1], labels, and which are for test (None: not said)."""

    pixels: Tensor
    labels: npt.NDArray[np.int64]
    test: npt.NDArray[np.bool_] | None
    class_names: tuple[str, ...]
    skipped: dict[str, str]


def read_labelled_images(config: LabelledImagesConfig) -> LabelledImages:
    """Read a labelled image set.

    Raises:
        DataError: the data are missing, damaged, empty, of different sizes, or have fewer than two classes,
            or a class without training images.

    Example:
        >>> digits = read_labelled_images(LabelledImagesConfig(data='digits'))
        >>> digits.shape, len(digits.class_names), len(digits.parts['test'].labels)
        ((1, 8, 8), 10, 360)
        >>> images, labels = digits.batch(seed=0, index=3, count=16)
        >>> images.shape
        torch.Size([16, 1, 8, 8])
    """
    raw = _read(config)
    contents = _contents(raw)
    splits = _splits(raw, contents, config)
    present = set(raw.labels[splits == "train"].tolist())
    absent = [name for number, name in enumerate(raw.class_names) if number not in present]
    if absent:
        raise DataError(f"{config.data}: no image for training shows the class {', '.join(absent[:5])}")
    return _in_parts(raw, contents, splits)


def read_classes_apart(config: LabelledImagesConfig) -> LabelledImages:
    """Read a labelled image set of which each class lies in one part only, with all of its images.

    Where the source marks whole classes as not for training these are `test`; else, and for `validation`,
    the config's shares are of the classes.

    Raises:
        DataError: the data are missing, damaged, empty, of different sizes, or have no class to train on.

    Example:
        >>> digits = read_classes_apart(LabelledImagesConfig(data='digits'))
        >>> [len(digits.parts[split].labels.unique()) for split in ('train', 'validation', 'test')]
        [7, 1, 2]
    """
    raw = _read(config)
    # A source may name classes of which it has no image.
    present = np.unique(raw.labels)
    names = [raw.class_names[n] for n in present]
    own = np.full(len(present), "train", dtype=object)
    alike = np.zeros(len(present), dtype=np.int64)
    if raw.test is not None and all(len(np.unique(raw.test[raw.labels == n])) == 1 for n in present):
        own[np.isin(present, raw.labels[raw.test])] = "test"
    else:
        _carve(own, alike, names, "test", config.test, config.split_seed)
    if "train" not in own:
        raise DataError(f"{config.data}: all classes are marked as for test, expected some to train on")
    _carve(own, alike, names, "validation", config.validation, config.split_seed)
    return _in_parts(raw, _contents(raw), own[np.searchsorted(present, raw.labels)])


def _read(config: LabelledImagesConfig) -> _Raw:
    path = Path(config.data).expanduser()
    if config.data == DIGITS:
        raw = _read_digits(config)
    elif path.suffix == ".npz":
        raw = _read_npz(path, config)
    else:
        raw = _read_folder(path, config)
    if len(raw.class_names) < 2:
        raise DataError(
            f"{config.data}: has the class {', '.join(raw.class_names)} alone, expected two or more"
        )
    return raw


def _contents(raw: _Raw) -> list[str]:
    return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in raw.pixels]


def _in_parts(raw: _Raw, contents: Sequence[str], splits: npt.NDArray[Any]) -> LabelledImages:
    """Return the images in their parts, standardized by the training part."""
    parts: dict[Split, Examples] = {}
    for split in ("train", "validation", "test"):
        chosen = torch.from_numpy(np.flatnonzero(splits == split))
        # Numpy leaves strides of grey images that torch takes for channels-last. In torch 2.13 the backward
        # pass of a convolution of such images with kernel 1 and stride 2 writes past its memory on a CPU.
        pixels = torch.empty((len(chosen), *raw.pixels.shape[1:])).copy_(raw.pixels[chosen])
        parts[split] = Examples(pixels, torch.from_numpy(raw.labels)[chosen])
    pixels = parts["train"].images.double()
    mean, std = (v.float() for v in (pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp_min(SMALLEST_STD)))
    for split, (images, labels) in parts.items():
        parts[split] = Examples((images - mean[:, None, None]) / std[:, None, None], labels)
    lines = [
        *raw.class_names,
        *(f"{c} {n} {s}" for c, n, s in zip(contents, raw.labels, splits, strict=True)),
    ]
    digest = hashlib.sha256("\n".join(map(str, [tuple(raw.pixels.shape), *lines])).encode()).hexdigest()
    return LabelledImages(parts, raw.class_names, mean, std, digest, raw.skipped)


def _splits(raw: _Raw, contents: Sequence[str], config: LabelledImagesConfig) -> npt.NDArray[Any]:
    """Return each image's part; equal images of a class are never torn apart by carving."""
    splits = np.full(len(raw.labels), "train", dtype=object)
    if raw.test is not None:
        splits[raw.test] = "test"
    else:
        _carve(splits, raw.labels, contents, "test", config.test, config.split_seed)
    _carve(splits, raw.labels, contents, "validation", config.validation, config.split_seed)
    return splits


def _carve(
    splits: npt.NDArray[Any],
    labels: npt.NDArray[np.int64],
    contents: Sequence[str],
    into: Split,
    share: float,
    seed: int,
) -> None:
    """Move a share of each class's training images to another part; some are always left."""
    for label in np.unique(labels):
        own = [contents[i] for i in np.flatnonzero((labels == label) & (splits == "train")).tolist()]
        ranked = sorted(set(own), key=lambda content: (seed_of(into, seed, content), content))
        moved = set(ranked[: min(round(share * len(ranked)), len(ranked) - 1)]) if ranked else set()
        for i in np.flatnonzero((labels == label) & (splits == "train")).tolist():
            if contents[i] in moved:
                splits[i] = into


def _read_digits(config: LabelledImagesConfig) -> _Raw:
    digits = bundled_digits()
    pixels = _fitted(digits.pixels[..., None], config, DIGITS)
    return _Raw(pixels, digits.labels, digits.test, DIGIT_NAMES, {})


def _read_npz(path: Path, config: LabelledImagesConfig) -> _Raw:
    """Read ``x``, ``y`` and perhaps ``split`` (0: training), or ``x_train``, ``y_train``, ``x_test``, ..."""
    arrays = reading.load_npz(path, None)
    test: npt.NDArray[np.bool_] | None = None
    if "x" in arrays:
        images, labels = _images(path, arrays, "x"), _array(path, arrays, "y")
        if "split" in arrays:
            test = _column(path, "split", arrays["split"], len(images)) != 0
    elif "x_train" in arrays:
        images, labels = _images(path, arrays, "x_train"), _array(path, arrays, "y_train")
        own = [len(images)]
        for name in [n for n in REPORTED if f"x_{n}" in arrays]:
            more, theirs = _images(path, arrays, f"x_{name}"), _array(path, arrays, f"y_{name}")
            if more.shape[1:] != images.shape[1:]:
                raise DataError(
                    f"{path}: images of x_{name} have shape {more.shape[1:]}, those of x_train "
                    f"{images.shape[1:]}"
                )
            images, labels = np.concatenate([images, more]), np.concatenate([labels, theirs])
            own.append(len(more))
        test = np.arange(len(images)) >= own[0] if len(own) > 1 else None
    else:
        raise DataError(
            f"{path}: has arrays {', '.join(sorted(arrays))}; expected x and y, or x_train and y_train"
        )
    numbers = _column(path, "labels", labels, len(images))
    if numbers.min() < 0:
        raise DataError(f"{path}: the smallest label is {numbers.min()}, expected 0 or more")
    names = arrays.get("class_names", np.arange(numbers.max() + 1))
    if numbers.max() >= len(names):
        raise DataError(f"{path}: the largest label is {numbers.max()}, class_names has {len(names)} names")
    flat = reading.as_pixels(images.reshape(-1, *images.shape[2:]), f"{path}: the images")
    pixels = flat.reshape(*images.shape[:3], -1)
    return _Raw(_fitted(pixels, config, str(path)), numbers, test, tuple(str(n) for n in names), {})


def _images(path: Path, arrays: dict[str, npt.NDArray[Any]], key: str) -> npt.NDArray[Any]:
    images = arrays[key]
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise DataError(
            f"{path}: array {key!r} has shape {images.shape}, expected (images, height, width) or "
            "(images, height, width, channels)"
        )
    return images


def _array(path: Path, arrays: dict[str, npt.NDArray[Any]], key: str) -> npt.NDArray[Any]:
    if key not in arrays:
        raise DataError(f"{path}: has no array {key!r}; {suggestion(key, arrays)}")
    return arrays[key]


def _column(path: Path, key: str, values: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    if values.shape != (count,) or not np.issubdtype(values.dtype, np.integer):
        raise DataError(
            f"{path}: {key} have shape {values.shape} and type {values.dtype}, expected ({count},) whole "
            "numbers"
        )
    return values.astype(np.int64)


def _read_folder(folder: Path, config: LabelledImagesConfig) -> _Raw:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder, npz file or bundled set; the bundled set is {DIGITS!r}")
    classes = [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]
    if not classes:
        raise DataError(f"{folder}: has no folder inside, expected one for each class, with its images")
    skipped: dict[str, str] = {}
    skip: Callable[[str, str], None] | None = skipped.__setitem__ if config.unreadable == "skip" else None
    pixels: list[Tensor] = []
    labels: list[int] = []
    for number, own in enumerate(classes):
        for image in reading.read_folder(own, skip):
            where = str(own / image.name)
            try:
                fitted = _fitted(image.pixels[None], config, where)
                if pixels and fitted.shape != pixels[0].shape:
                    have, want = tuple(fitted.shape[2:]), tuple(pixels[0].shape[2:])
                    raise DataError(
                        f"{where}: has {have} pixels, those before it {want}; set size and pool=resize"
                    )
            except DataError as error:
                if skip is None:
                    raise
                skip(where, str(error))
                continue
            pixels.append(fitted)
            labels.append(number)
    if not pixels:
        raise DataError(f"{folder}: all {len(skipped)} images were skipped")
    return _Raw(torch.cat(pixels), np.asarray(labels), None, tuple(f.name for f in classes), skipped)


def _fitted(pixels: reading.Array, config: LabelledImagesConfig, where: str) -> Tensor:
    """Return images ``(n, h, w, channels)`` as a tensor of the config's channels and size."""
    values = reading.with_channels(pixels, config.channels, where)
    tensor = torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))
    height, width = tensor.shape[2:]
    size = config.size or height
    if (height, width) == (size, size):
        return tensor
    if config.pool == "resize":
        small = functional.interpolate(tensor, (size, size), mode="bilinear", antialias=True)
        return small.clamp(0, 1)
    if height != width or height % size:
        raise DataError(
            f"{where}: images of {height}x{width} pixels do not divide into {size}x{size} equal blocks: set "
            "pool=resize, or another size"
        )
    return functional.avg_pool2d(tensor, height // size)
