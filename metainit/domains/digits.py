"""The handwritten digits that ship with scikit-learn: no download."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from metainit.errors import DataError

DIGITS = "digits"
DIGIT_NAMES = tuple(map(str, range(10)))
DIGITS_TEST = 360
"""The last of scikit-learn's 1,797 digits, which are in the order of their writers."""


class Digits(NamedTuple):
    """Pixels ``(1797, 8, 8)`` in [0, 1], labels ``(1797,)``, and which are for test."""

    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    test: npt.NDArray[np.bool_]


def bundled_digits() -> Digits:
    """Return scikit-learn's digits.

    Raises:
        DataError: scikit-learn is not installed.

    Example:
        >>> digits = bundled_digits()
        >>> digits.pixels.shape, int(digits.test.sum())
        ((1797, 8, 8), 360)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the bundled digits need scikit-learn: pip install 'metainit[ray]'") from error
    bundle = load_digits()
    pixels = (np.asarray(bundle.images) / 16).astype(np.float32)
    test = np.arange(len(pixels)) >= len(pixels) - DIGITS_TEST
    return Digits(pixels, np.asarray(bundle.target, dtype=np.int64), test)
