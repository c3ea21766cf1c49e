"""The classes of images: a number for each image, read beside it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from metainit.domains import images as reading
from metainit.domains.digits import DIGIT_NAMES, bundled_digits
from metainit.errors import DataError

NAMES = "class_names"
"""The array of an npz file that names its classes, where there is one."""


@dataclass(frozen=True)
class ImageClasses:
    """The class of each image, in the order of the images ``(images,)``, and the names of the classes."""

    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def digest(self) -> str:
        """Return the SHA-256 of labels and names."""
        return hashlib.sha256("\x1f".join(self.names).encode() + self.labels.tobytes()).hexdigest()


def digit_classes() -> ImageClasses:
    """Return the classes of the bundled digits.

    Raises:
        DataError: scikit-learn is not installed.
    """
    return ImageClasses(bundled_digits().labels, DIGIT_NAMES)


def named_digits() -> list[reading.NamedImage]:
    """Return the bundled digits as images; `split` is 1 for those that are for test.

    Raises:
        DataError: scikit-learn is not installed.
    """
    digits = bundled_digits()
    return [
        reading.NamedImage(f"digit[{i}]", pixels[..., None], int(test))
        for i, (pixels, test) in enumerate(zip(digits.pixels, digits.test, strict=True))
    ]


def npz_classes(path: Path, key: str) -> ImageClasses:
    """Read whole numbers from 0 ``(images,)``; ``class_names`` names them, else the numbers do.

    Raises:
        DataError: the array is missing or has another shape or type, or a class has no name.
    """
    labels = reading.load_npz(path, [key])[key]
    if labels.ndim != 1 or len(labels) == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{path}: array {key!r} has shape {labels.shape} and type {labels.dtype}, expected the number of "
            "each image's class, (images,) whole numbers"
        )
    numbers = labels.astype(np.int64)
    if numbers.min() < 0:
        raise DataError(f"{path}: the smallest number in {key!r} is {numbers.min()}, expected 0 or more")
    listed = reading.listed_arrays(path)
    names = reading.load_npz(path, [NAMES])[NAMES] if NAMES in listed else np.arange(numbers.max() + 1)
    if numbers.max() >= len(names):
        raise DataError(
            f"{path}: the largest number in {key!r} is {numbers.max()}, {NAMES} has {len(names)} names"
        )
    return ImageClasses(numbers, tuple(str(name) for name in names))
