"""Read masks and label maps, and bring labelled images to one size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from metainit.domains import images as reading
from metainit.domains.images import Array
from metainit.domains.segmentation_loss import IGNORE
from metainit.errors import DataError

Mask = npt.NDArray[np.uint8]
"""``(height, width)``: 1 where the class is, 0 where it is not, 255 where nobody knows."""
Labels = npt.NDArray[np.integer[Any]]
Fit = Literal["resize", "crop", "pad"]
FAINT = 128
"""Largest value below which a grey mask of many values is taken for a label map, which it cannot be."""


@dataclass(frozen=True)
class LabelledImage:
    """One image with a mask for each class that somebody marked in it."""

    name: str
    pixels: Array
    masks: Mapping[str, Mask]
    part: int | None = None
    """What the source's split array says: 0 is for training."""
    group: str | None = None
    """What must not be torn apart by a split: a patient, a slide."""


@dataclass(frozen=True)
class Unusable:
    """What happens to a file or class that cannot be used: refused, or left out and remembered."""

    rule: Literal["refuse", "skip"] = "refuse"
    skipped: dict[str, str] = field(default_factory=dict)

    def __call__(self, name: str, error: DataError) -> None:
        """Raise the error, or note it under a name."""
        if self.rule == "refuse":
            raise DataError(f"{error}; set unusable=skip to leave such things out") from error
        self.skipped[name] = str(error)


def read_pixels(path: Path, max_pixels: int) -> Array:
    """Read one image file, after a look at its size.

    Raises:
        DataError: the file cannot be read, or has more than `max_pixels` pixels.
    """
    check_size(path, max_pixels)
    return reading.read_image(path).pixels


def check_size(path: Path, max_pixels: int) -> None:
    """Refuse an image that is too large to be read, going by its header.

    Raises:
        DataError: it has more than `max_pixels` pixels.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error}; make it smaller") from error
    except (OSError, ValueError, SyntaxError, TypeError):
        return  # whoever reads it says what is wrong
    if width * height > max_pixels:
        raise DataError(
            f"{path}: has {height} x {width} pixels, expected at most {max_pixels} in all: make it smaller, "
            "cut it into tiles, or raise max_pixels"
        )


def read_labels(path: Path, max_pixels: int) -> Labels:
    """Read the numbers that a mask or label map is made of: palette indices, grey values, or bits.

    A palette stays what it is, the numbers of the colours. Colour files are taken where all channels are
    equal; an alpha channel is dropped.

    Raises:
        DataError: the file cannot be read, is too large, or shows colours.
    """
    check_size(path, max_pixels)
    try:
        with Image.open(path) as picture:
            picture.load()
            values = np.asarray(picture)
            bits = picture.mode == "1"
    except (OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a mask: {error}") from error
    if values.ndim == 3:
        colours = values[..., : values.shape[-1] - 1] if values.shape[-1] in (2, 4) else values
        if not (colours == colours[..., :1]).all():
            raise DataError(
                f"{path}: is a picture in {values.shape[-1]} channels that differ, expected a mask: one "
                "channel of grey values or bits, or a palette; save the numbers of the classes and not "
                "their colours"
            )
        values = colours[..., 0]
    if bits:
        values = values.astype(np.uint8)
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{path}: has values of type {values.dtype}, expected whole numbers")
    return values


def as_mask(values: Labels, name: str) -> Mask:
    """Return the mask of one class that a file shows.

    One value beside 0 marks the class, whatever it is (1, 255, 65535). With 0, 1 and 255, 1 marks the class
    and 255 what nobody knows. Among more values (a soft edge) those above half of the largest mark it.

    Raises:
        DataError: the values look like a map of several classes, or are negative.

    Example:
        >>> as_mask(np.array([[0, 255], [255, 0]]), 'a').tolist()
        [[0, 1], [1, 0]]
        >>> as_mask(np.array([[0, 1], [255, 0]]), 'a').tolist()
        [[0, 1], [255, 0]]
    """
    found = np.unique(values)
    if found[0] < 0:
        raise DataError(f"{name}: has the value {found[0]}, expected 0 and more")
    marks = found[found > 0]
    if len(marks) <= 1:
        return (values > 0).astype(np.uint8)
    if marks.tolist() == [1, IGNORE]:
        return values.astype(np.uint8)
    if marks[-1] < FAINT:
        raise DataError(
            f"{name}: has the values {found[:8].tolist()}, which look like the numbers of several classes; "
            "expected the mask of one class; put label maps into labels/"
        )
    mask: Mask = (values > marks[-1] / 2).astype(np.uint8)
    return mask


def masks_of(labels: Labels, names: Mapping[int, str] | None, ignore: int, name: str) -> dict[str, Mask]:
    """Return a mask for each class of a label map that is in it; 0 is the background.

    Args:
        labels: ``(height, width)``.
        names: of the classes by number; None takes any number for a class and calls it by its number.
        ignore: the number of pixels whose class is not known.
        name: of the image, for errors.

    Raises:
        DataError: a number is negative, or none of the classes.

    Example:
        >>> masks_of(np.array([[0, 2], [9, 2]]), {1: 'cell', 2: 'nucleus'}, 9, 'a')['nucleus'].tolist()
        [[0, 1], [255, 1]]
    """
    found = [int(v) for v in np.unique(labels) if v not in (0, ignore)]
    known = set(found) if names is None else set(names)
    if strange := [v for v in found if v < 0 or v not in known]:
        classes = "0 and more" if names is None else f"0 to {max(names, default=0)}"
        raise DataError(
            f"{name}: has labels {strange[:5]}, expected classes {classes}, or {ignore} where the class is "
            "not known (ignore)"
        )
    unknown = labels == ignore
    masks = {}
    for value in found:
        mask = (labels == value).astype(np.uint8)
        mask[unknown] = IGNORE
        masks[str(value) if names is None else names[value]] = mask
    return masks


def fitted(pixels: Array, height: int, width: int, fit: Fit) -> Array:
    """Bring an image ``(h, w, channels)`` to a size: squash it, cut its centre out, or pad it with black."""
    if fit == "resize":
        return reading.resized(pixels, height, width)
    if fit == "crop":
        return reading.centre_cropped(pixels, height, width)
    rows, columns, top, left = _inside(pixels.shape[0], pixels.shape[1], height, width)
    frame = np.zeros((height, width, pixels.shape[2]), dtype=np.float32)
    frame[top : top + rows, left : left + columns] = reading.resized(pixels, rows, columns)
    return frame


def fitted_mask(mask: Mask, height: int, width: int, fit: Fit) -> Mask:
    """Bring a mask to a size as `fitted` does its image, by nearest pixels; what is padded is not known.

    Example:
        >>> fitted_mask(np.eye(2, dtype=np.uint8), 2, 4, 'pad').tolist()
        [[255, 1, 0, 255], [255, 0, 1, 255]]
    """
    if fit == "resize":
        return _nearest(mask, height, width)
    if fit == "crop":
        factor = max(height / mask.shape[0], width / mask.shape[1])
        rows, columns = max(round(mask.shape[0] * factor), height), max(round(mask.shape[1] * factor), width)
        top, left = (rows - height) // 2, (columns - width) // 2
        return _nearest(mask, rows, columns)[top : top + height, left : left + width]
    rows, columns, top, left = _inside(mask.shape[0], mask.shape[1], height, width)
    frame = np.full((height, width), IGNORE, dtype=np.uint8)
    frame[top : top + rows, left : left + columns] = _nearest(mask, rows, columns)
    return frame


def _inside(rows: int, columns: int, height: int, width: int) -> tuple[int, int, int, int]:
    factor = min(height / rows, width / columns)
    rows, columns = max(1, min(round(rows * factor), height)), max(1, min(round(columns * factor), width))
    return rows, columns, (height - rows) // 2, (width - columns) // 2


def _nearest(mask: Mask, height: int, width: int) -> Mask:
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    return np.ascontiguousarray(mask[rows[:, None], columns])
