"""Read labelled images from an npz file: label maps, or binary masks with the class of each image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from metainit.card import Record
from metainit.domains import images as reading
from metainit.domains.masks import LabelledImage, Mask, Unusable, as_mask, masks_of
from metainit.domains.seeding import generator_of
from metainit.domains.segmentation_loss import IGNORE
from metainit.domains.strokes import on_clutter
from metainit.errors import DataError


class ArrayNames(Record):
    """Which arrays of an npz file hold what.

    `array`: images ``(n, h, w)`` or ``(n, h, w, channels)``. `label_array`: label maps ``(n, h, w)``, 0 is
    the background; with `class_array`, the number of each image's class ``(n,)``, they are masks of that
    class (or, where they have several numbers, each pair of class and number is a class).
    `label_names_array` and `class_names_array` name the numbers; both start with number 0. `split_array`: 0
    where an image is for training. `group_array`: what must not be torn apart. `train_classes_array` and
    `test_classes_array`: numbers of classes.
    """

    array: str = "x"
    label_array: str | None = None
    label_names_array: str | None = None
    class_array: str | None = None
    class_names_array: str | None = None
    split_array: str | None = None
    group_array: str | None = None
    train_classes_array: str | None = None
    test_classes_array: str | None = None


def read_labelled_npz(
    path: Path, names: ArrayNames, ignore: int, unusable: Unusable
) -> Iterator[LabelledImage]:
    """Yield the labelled images of an npz file, in their order; those without any class are passed over.

    Raises:
        DataError: an array is missing or has the wrong shape; or, where that is refused, an image or its
        labels
            cannot be used.
    """
    if names.label_array is None:
        raise DataError(f"{path}: say which array holds the labels (label_array)")
    arrays = _arrays(path, names)
    images, labels = arrays[names.array], arrays[names.label_array]
    _check_shapes(path, names, images, labels)
    count = len(images)
    of_image = _column(path, arrays, names.class_array, count)
    parts = _column(path, arrays, names.split_array, count)
    groups = _column(path, arrays, names.group_array, count)
    label_names = _names(arrays, names.label_names_array)
    class_names = _names(arrays, names.class_names_array)
    # Of all images: one of them may show one of several classes.
    binary = label_names is None and len(set(np.unique(labels).tolist()) - {0, ignore}) <= 1
    for i in range(count):
        where = f"{path.name}[{i}]"
        try:
            pixels = reading.as_pixels(images[i], f"{path}: {names.array}[{i}]")
            place = f"{path}: {names.label_array}[{i}]"
            if of_image is None:
                masks = masks_of(labels[i], label_names, ignore, place)
            else:
                own = _name(class_names, int(of_image[i]), place)
                if binary:
                    masks = {own: _binary(labels[i], ignore, place)}
                else:
                    parts_of = masks_of(labels[i], label_names, ignore, place)
                    masks = {f"{own}/{name}": mask for name, mask in parts_of.items()}
        except DataError as error:
            unusable(where, error)
            continue
        if any((mask == 1).any() for mask in masks.values()):
            yield LabelledImage(
                where,
                pixels,
                masks,
                None if parts is None else int(parts[i]),
                None if groups is None else str(groups[i]),
            )


def read_strokes(
    path: Path, names: ArrayNames, height: int, width: int, channels: int, unusable: Unusable
) -> Iterator[LabelledImage]:
    """Yield images of written characters on a cluttered ground; see `metainit.domains.strokes`.

    `names.array` holds the characters, ink high, and `names.class_array` what character each is. The clutter
    of an image is of other classes of the same split.

    Raises:
        DataError: an array is missing or has the wrong shape, or, where that is refused, a character is
        empty.
    """
    if names.class_array is None:
        raise DataError(f"{path}: say which array holds the class of each character (class_array)")
    arrays = _arrays(path, names)
    glyphs = arrays[names.array]
    if glyphs.ndim != 3 or not len(glyphs):
        raise DataError(
            f"{path}: array {names.array!r} has shape {glyphs.shape}, expected (characters, h, w)"
        )
    of_image = _column(path, arrays, names.class_array, len(glyphs))
    assert of_image is not None
    parts = _column(path, arrays, names.split_array, len(glyphs))
    groups = _column(path, arrays, names.group_array, len(glyphs))
    class_names = _names(arrays, names.class_names_array)
    shown = reading.as_pixels(glyphs.reshape(-1, *glyphs.shape[2:]), f"{path}: {names.array}")[..., 0]
    ink = shown.reshape(glyphs.shape)
    marks = np.zeros(len(ink), dtype=int) if parts is None else parts
    for i in range(len(ink)):
        others = np.flatnonzero((marks == marks[i]) & (of_image != of_image[i]))
        generator = generator_of("strokes", i)
        # A few to draw from are enough, and cheaper than all.
        some = others[:: max(1, len(others) // 97)]
        where = f"{path.name}[{i}]"
        pixels, mask = on_clutter(ink[i], [ink[j] for j in some], height, width, channels, generator)
        if not ink[i].any():
            unusable(where, DataError(f"{path}: {names.array}[{i}] has no ink"))
            continue
        own = int(of_image[i])
        yield LabelledImage(
            where,
            pixels,
            {_name(class_names, own, where): mask},
            None if parts is None else int(parts[i]),
            None if groups is None else str(groups[i]),
        )


def listed_classes(path: Path, names: ArrayNames) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Return the classes that arrays list for training and for test, None where there is no such array."""
    arrays = _arrays(path, names)
    key = names.label_names_array if names.class_array is None else names.class_names_array
    called = _names(arrays, key)
    train, test = (
        None
        if array is None
        else tuple(_name(called, int(n), f"{path}: {array}") for n in arrays[array].ravel())
        for array in (names.train_classes_array, names.test_classes_array)
    )
    return train, test


def _binary(labels: npt.NDArray[Any], ignore: int, where: str) -> Mask:
    """Return a mask of one value beside 0, which may be that of unknown pixels where there is no other."""
    marks = set(np.unique(labels).tolist()) - {0}
    mask = as_mask(labels.astype(np.int64), where)
    if marks > {ignore}:
        mask = np.where(labels == ignore, IGNORE, (labels > 0).astype(np.uint8)).astype(np.uint8)
    return mask


def _arrays(path: Path, names: ArrayNames) -> dict[str, npt.NDArray[Any]]:
    given = (getattr(names, field) for field in ArrayNames.model_fields)
    keys = [str(key) for key in given if key is not None]
    return reading.load_npz(path, list(dict.fromkeys(keys)))


def _check_shapes(path: Path, names: ArrayNames, images: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
    if images.ndim not in (3, 4) or len(images) == 0:
        raise DataError(
            f"{path}: array {names.array!r} has shape {images.shape}, expected (images, height, width) or "
            "(images, height, width, channels)"
        )
    if labels.shape != images.shape[:3]:
        raise DataError(
            f"{path}: array {names.label_array!r} has shape {labels.shape}, expected {images.shape[:3]}: one "
            f"label for each pixel of {names.array!r}"
        )
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise DataError(
            f"{path}: array {names.label_array!r} has type {labels.dtype}, expected whole numbers"
        )


def _column(
    path: Path, arrays: dict[str, npt.NDArray[Any]], key: str | None, count: int
) -> npt.NDArray[Any] | None:
    if key is None:
        return None
    column = arrays[key]
    if column.shape != (count,):
        raise DataError(f"{path}: array {key!r} has shape {column.shape}, expected ({count},)")
    return column


def _names(arrays: dict[str, npt.NDArray[Any]], key: str | None) -> dict[int, str] | None:
    return None if key is None else {n: str(name) for n, name in enumerate(arrays[key].ravel())}


def _name(names: dict[int, str] | None, number: int, where: str) -> str:
    if names is None:
        return str(number)
    if number not in names:
        raise DataError(f"{where}: there is no class {number}, expected 0 to {max(names)}")
    return names[number]
