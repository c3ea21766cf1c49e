"""Decode the two forms of segmentation in COCO files: run-length codes and polygons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from metainit.errors import DataError

Mask = npt.NDArray[np.uint8]
MAX_RUNS = 10_000_000


def decode_counts(text: str) -> list[int]:
    """Return the run lengths of a compressed code.

    Each number is written in groups of five bits, the lowest first, as characters from ``0`` on; the sixth
    bit says that more follow, and the fifth of the last group is the sign. From the fourth number on it is
    the difference to the one two places before.

    Source: ``rleFrString`` of the COCO API (Lin et al. 2014, Microsoft COCO).

    Raises:
        DataError: the text is none.

    Example:
        >>> decode_counts('52203')
        [5, 2, 2, 2, 5]
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise DataError(f"a compressed run-length code holds {character!r}, expected '0' to 'o'")
        value |= (bits & 31) << shift
        shift += 5
        if shift > 60:
            raise DataError("a compressed run-length code holds a number of more than 60 bits")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError("a compressed run-length code ends in the middle of a number")
    return counts


def rle_mask(counts: Sequence[int], height: int, width: int) -> Mask:
    """Return the mask of run lengths: pixels by columns, first those that are 0.

    Raises:
        DataError: a run is negative, or the runs do not fill the mask.

    Example:
        >>> rle_mask([1, 2, 3], 2, 3).tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    if len(counts) > MAX_RUNS:
        raise DataError(f"a run-length code has {len(counts)} runs, expected at most {MAX_RUNS}")
    if any(not isinstance(run, int) or run < 0 for run in counts) or sum(counts) != height * width:
        raise DataError(
            f"a run-length code fills {sum(counts)} pixels, expected runs of 0 or more that fill the "
            f"{height} x {width} = {height * width} of the image"
        )
    values = np.arange(len(counts)) % 2
    return np.repeat(values, counts).astype(np.uint8).reshape(width, height).T


def polygon_mask(polygons: Sequence[Sequence[float]], height: int, width: int) -> Mask:
    """Return the union of polygons ``[x1, y1, x2, y2, ...]``, with the origin at the corner of the image.

    A pixel belongs to a polygon if its centre lies inside.

    Raises:
        DataError: a polygon has fewer than three corners, or an odd number of coordinates.

    Example:
        >>> polygon_mask([[1, 0, 3, 0, 3, 1, 1, 1]], 2, 4).tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    from skimage.draw import polygon

    fill: Callable[..., Any] = polygon
    mask = np.zeros((height, width), dtype=np.uint8)
    for corners in polygons:
        points = np.asarray(corners, dtype=np.float64)
        if points.ndim != 1 or points.size < 6 or points.size % 2 or not np.isfinite(points).all():
            raise DataError(
                f"a polygon has {points.size} coordinates, expected x and y of three corners or more"
            )
        # scikit-image counts from the centre of the first pixel.
        rows, columns = fill(points[1::2] - 0.5, points[::2] - 0.5, shape=(height, width))
        mask[rows, columns] = 1
    return mask


def coco_mask(segmentation: Any, height: int, width: int) -> Mask:
    """Return the mask of a ``segmentation`` of a COCO annotation, in any of its forms.

    Raises:
        DataError: it has none of the forms, or does not fit the size of the image.

    Example:
        >>> int(coco_mask({'counts': [1, 2, 3], 'size': [2, 3]}, 2, 3).sum())
        2
    """
    if isinstance(segmentation, list):
        if not all(isinstance(part, list) for part in segmentation):
            raise DataError("a segmentation is a list, expected a list of polygons [x1, y1, x2, y2, ...]")
        return polygon_mask(segmentation, height, width)
    if not isinstance(segmentation, dict) or not {"counts", "size"} <= set(segmentation):
        raise DataError("a segmentation is neither a list of polygons nor an object with counts and size")
    if list(segmentation["size"]) != [height, width]:
        raise DataError(f"a run-length code has size {segmentation['size']}, expected {[height, width]}")
    counts = segmentation["counts"]
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list):
        raise DataError(f"run lengths are a {type(counts).__name__}, expected a list or a text")
    return rle_mask(counts, height, width)
