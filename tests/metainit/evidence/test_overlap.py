"""Metrics of segmentation against other libraries, brute force, and sets whose overlap is known."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from skimage.segmentation import find_boundaries
from sklearn.metrics import f1_score, jaccard_score
from torch import Tensor

from metainit.errors import DataError
from metainit.evidence.overlap import OVERLAP_METRICS, boundary_f, dice, iou

GENERATOR = torch.Generator().manual_seed(0)
PROBABILITIES = torch.rand(5, 4, 16, 12, generator=GENERATOR).softmax(1)
LABELS = torch.randint(4, (5, 16, 12), generator=GENERATOR)
LABELS[LABELS == 3] = 255


def certain(labels: Tensor, classes: int = 2) -> Tensor:
    return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float()


@pytest.mark.parametrize(("metric", "reference"), [(iou, jaccard_score), (dice, f1_score)])
def test_overlaps_are_those_of_scikit_learn(metric: object, reference: object) -> None:
    assert callable(metric) and callable(reference)
    expected = []
    for scores, labels in zip(PROBABILITIES, LABELS, strict=True):
        known = labels != 255
        found = scores.argmax(0)[known]
        # Class 3 is in the prediction alone: it counts, as 0.
        expected.append(reference(labels[known], found, labels=[1, 2, 3], average="macro", zero_division=0))
    assert metric(PROBABILITIES, LABELS) == pytest.approx(np.mean(expected))


def test_boundary_f_is_that_of_a_brute_force_search() -> None:
    found = torch.zeros(1, 20, 24, dtype=torch.long)
    true = found.clone()
    found[0, 4:12, 5:14] = 1
    true[0, 6:15, 4:13] = 1
    # scikit-image's inner boundary agrees with ours away from the border.
    outline: Callable[..., Any] = find_boundaries
    edges = [np.argwhere(outline(m[0].numpy(), mode="inner", connectivity=1)) for m in (found, true)]
    distances = np.linalg.norm(edges[0][:, None] - edges[1][None], axis=-1)
    precision, recall = ((distances.min(axis) <= 1).mean() for axis in (1, 0))
    expected = 2 * precision * recall / (precision + recall)
    assert boundary_f(certain(found), true) == pytest.approx(expected)


def test_the_tolerance_grows_with_the_diagonal() -> None:
    for side, agrees in ((64, False), (400, True)):
        masks = torch.zeros(2, 1, side, side, dtype=torch.long)
        masks[0, :, : side // 2] = 1
        masks[1, :, : side // 2 + 3] = 1  # 3 pixels off; 0.75 % of the larger diagonal is 4.2
        assert boundary_f(certain(masks[0]), masks[1]) == float(agrees)


@pytest.mark.parametrize("metric", OVERLAP_METRICS.values(), ids=OVERLAP_METRICS)
class TestEvery:
    def test_is_one_for_the_truth_and_less_for_anything_else(self, metric: object) -> None:
        assert callable(metric)
        labels = torch.zeros(3, 12, 12, dtype=torch.long)
        labels[:, 3:8, 3:8] = 1
        assert metric(certain(labels), labels) == 1
        assert metric(certain(labels.roll(3, -1)), labels) < 1
        assert metric(certain(0 * labels), labels) == 0

    def test_does_not_see_ignored_pixels(self, metric: object) -> None:
        assert callable(metric)
        labels = torch.zeros(1, 12, 12, dtype=torch.long)
        labels[:, :, :4] = 1
        found = certain(labels)
        labels[:, :, 8:] = 255
        found[..., 8:] = certain(torch.ones(1, 12, 4, dtype=torch.long))
        assert metric(found, labels) == 1

    def test_counts_an_empty_image_that_is_seen_as_empty_as_right(self, metric: object) -> None:
        assert callable(metric)
        empty = torch.zeros(1, 8, 8, dtype=torch.long)
        assert metric(certain(empty), empty) == 1
        assert metric(certain(empty + 1), empty) == 0

    def test_of_numbers_that_are_none_is_none(self, metric: object) -> None:
        assert callable(metric)
        assert np.isnan(metric(torch.full((1, 2, 4, 4), torch.nan), torch.zeros(1, 4, 4)))

    def test_refuses_other_shapes(self, metric: object) -> None:
        assert callable(metric)
        with pytest.raises(DataError, match="expected probabilities"):
            metric(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5))


def test_averages_over_images_and_not_over_pixels() -> None:
    labels = torch.zeros(2, 10, 10, dtype=torch.long)
    labels[0, 0, 0] = 1
    labels[1, :5] = 1
    found = labels.clone()
    found[0, 0, 0] = 0  # a missed structure of one pixel weighs as much as a found one of fifty
    assert iou(certain(found), labels) == 0.5
