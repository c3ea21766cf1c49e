"""Metrics of segmentation: intersection over union, Dice, and the F measure of the boundary."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from metainit.domains.segmentation_loss import IGNORE
from metainit.errors import DataError

BOUNDARY_TOLERANCE = 0.0075
"""Distance at which two boundaries still agree, in diagonals of the image (Csurka et al. 2013)."""

Mask = npt.NDArray[np.bool_]


def iou(probabilities: Tensor, labels: Tensor) -> float:
    r"""Return the mean intersection over union of the foreground classes, in [0, 1].

    .. math:: \frac{|P \cap T|}{|P \cup T|}

    P is the set of pixels whose most probable class it is, T the set of pixels that have it. The ratio is
    taken in each image for each foreground class that is there in P or in T, then averaged over the classes
    of an image and over the images, as in the evaluation of FSS-1000 and of Hendryx et al. 2019
    (arXiv:1912.06290). Ignored pixels belong to no set. An image where both are empty counts as 1.

    Args:
        probabilities: ``(N, K, H, W)``; any values whose largest marks the class.
        labels: ``(N, H, W)`` whole numbers below K, 255 where ignored.

    Raises:
        DataError: the shapes do not fit each other.

    Example:
        >>> import torch
        >>> truth = torch.tensor([[[1, 1, 0, 0]]])
        >>> iou(torch.nn.functional.one_hot(torch.tensor([[[1, 0, 0, 0]]]), 2).movedim(-1, 1), truth)
        0.5
    """
    return _mean(
        probabilities, labels, lambda found, true: _ratio((found & true).sum(), (found | true).sum())
    )


def dice(probabilities: Tensor, labels: Tensor) -> float:
    r"""Return the mean Dice overlap :math:`2 |P \cap T| / (|P| + |T|)`, averaged as `iou` is.

    Source: Dice 1945; also called the F1 measure of the pixels.
    """
    return _mean(
        probabilities,
        labels,
        lambda found, true: _ratio(2 * (found & true).sum(), found.sum() + true.sum()),
    )


def boundary_f(probabilities: Tensor, labels: Tensor) -> float:
    r"""Return the F measure of the boundaries, averaged as `iou` is.

    .. math:: F = \frac{2 p r}{p + r}

    Precision p is the share of the predicted boundary that lies within a tolerance of the true one, recall r
    the share of the true boundary that lies within it of the predicted one. The boundary of a set are its
    pixels with one of their four neighbours outside; the border of the image is no boundary. The tolerance
    is 0.75 % of the diagonal, but at least one pixel, without which small images would ask for exact
    boundaries.

    Source:
        Csurka et al. 2013, What is a good evaluation measure for semantic segmentation?, BMVC, section 3.
    """
    tolerance = max(1.0, BOUNDARY_TOLERANCE * math.hypot(*labels.shape[-2:]))
    return _mean(probabilities, labels, lambda found, true: _boundary_f(found, true, tolerance))


def _boundary_f(found: Mask, true: Mask, tolerance: float) -> float:
    ours, theirs = _boundary(found), _boundary(true)
    if not ours.any() or not theirs.any():
        # A set that fills the image has no boundary, and neither has an empty one.
        return float((found == true).all())
    precision = float((_distance(theirs)[ours] <= tolerance).mean())
    recall = float((_distance(ours)[theirs] <= tolerance).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: Mask) -> Mask:
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _distance(boundary: Mask) -> npt.NDArray[np.float64]:
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~boundary))


def _ratio(part: Any, whole: Any) -> float:
    return float(part / whole)


def _mean(probabilities: Tensor, labels: Tensor, measure: Callable[[Mask, Mask], float]) -> float:
    """Average a measure over the classes of each image, then over the images."""
    if probabilities.ndim != 4 or labels.shape != (len(probabilities), *probabilities.shape[2:]):
        raise DataError(
            "metrics: expected probabilities (images, classes, height, width) and labels (images, height, "
            f"width), came {tuple(probabilities.shape)} and {tuple(labels.shape)}"
        )
    if not bool(probabilities.isfinite().all()):
        return math.nan
    found = probabilities.detach().argmax(1).cpu().numpy()
    true = labels.detach().cpu().numpy()
    images = []
    for own, truth in zip(found, true, strict=True):
        known = truth != IGNORE
        pairs = [((own == c) & known, truth == c) for c in range(1, probabilities.shape[1])]
        there = [measure(a, b) for a, b in pairs if a.any() or b.any()]
        images.append(sum(there) / len(there) if there else 1.0)
    return sum(images) / len(images) if images else math.nan


OVERLAP_METRICS: Mapping[str, Callable[[Tensor, Tensor], float]] = MappingProxyType(
    {"iou": iou, "dice": dice, "boundary_f": boundary_f}
)
"""The metrics of segmentation by name, the headline first."""
