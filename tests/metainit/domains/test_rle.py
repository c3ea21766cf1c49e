"""Masks of COCO files: round trips with an encoder, closed forms of areas, and damaged codes."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metainit.domains.rle import coco_mask, decode_counts, polygon_mask, rle_mask
from metainit.errors import DataError


def runs_of(mask: np.ndarray) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate(([0], edges, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs


def encoded(counts: list[int]) -> str:
    """Write run lengths as ``rleToString`` of the COCO API does."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if more else bits) + 48)
    return text


@given(st.lists(st.integers(0, 2**40), max_size=60))
def test_run_lengths_survive_compression(counts: list[int]) -> None:
    assert decode_counts(encoded(counts)) == counts


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**20))
def test_masks_survive_both_codes(height: int, width: int, seed: int) -> None:
    mask = (np.random.default_rng(seed).random((height, width)) < 0.4).astype(np.uint8)
    counts = runs_of(mask)
    for code in (counts, encoded(counts)):
        np.testing.assert_array_equal(
            coco_mask({"counts": code, "size": [height, width]}, height, width), mask
        )


def test_a_polygon_covers_the_pixels_whose_centres_it_holds() -> None:
    rows, columns = np.mgrid[:40, :50] + 0.5
    corners = np.array([[3.2, 4.1], [44.7, 8.3], [20.1, 37.9]])
    inside = np.ones((40, 50), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) >= 0
    np.testing.assert_array_equal(polygon_mask([corners.ravel().tolist()], 40, 50), inside)


def test_polygons_are_united_and_cut_at_the_border() -> None:
    mask = polygon_mask([[0, 0, 2, 0, 2, 2, 0, 2], [3, 3, 9, 3, 9, 9, 3, 9]], 4, 5)
    assert mask.sum() == 4 + 2 and mask[:2, :2].all() and mask[3, 3:].all()


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ({"counts": "~", "size": [2, 2]}, "holds '~'"),
        ({"counts": "o", "size": [2, 2]}, "ends in the middle"),
        ({"counts": "o" * 20, "size": [2, 2]}, "60 bits"),
        ({"counts": [1, 2], "size": [2, 2]}, "fills 3 pixels"),
        ({"counts": [5, -1], "size": [2, 2]}, "runs of 0 or more"),
        ({"counts": [4], "size": [1, 4]}, r"size \[1, 4\], expected \[2, 2\]"),
        ({"counts": 4, "size": [2, 2]}, "run lengths are a int"),
        ({"counts": [4]}, "neither a list of polygons"),
        ("4", "neither a list of polygons"),
        ([1, 2, 3], "expected a list of polygons"),
        ([[0, 0, 1, 1]], "three corners"),
        ([[0, 0, 1, 1, 2, float("nan")]], "three corners"),
    ],
)
def test_what_is_no_mask_is_refused(segmentation: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        coco_mask(segmentation, 2, 2)


def test_runs_fill_columns_first() -> None:
    np.testing.assert_array_equal(rle_mask([0, 2, 2], 2, 2), [[1, 0], [1, 0]])
