"""The loss of segmentation: cross-entropy minus the logarithm of the soft Dice overlap."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORE = 255
"""The label of a pixel whose class is not known: neither losses nor metrics see it."""
SMOOTHING = 1.0
"""Pixels added to both parts of the Dice ratio, so that a batch without foreground has a finite loss."""


def one_hot(labels: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return labels ``(..., H, W)`` as ``(..., classes, H, W)``; an ignored pixel is zero in all of them.

    Example:
        >>> one_hot(torch.tensor([[0, 1, 255]]), 2, torch.float32).tolist()
        [[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]]
    """
    # By comparison and not by scattering: vmap and forward mode take it as it is.
    numbers = torch.arange(classes, device=labels.device)[:, None, None]
    return (labels.unsqueeze(-3) == numbers).to(dtype)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy over the pixels that are not ignored; 0 where all of them are.

    Args:
        logits: ``(N, K, H, W)``.
        labels: ``(N, H, W)`` whole numbers below K, or `IGNORE`.

    Example:
        >>> round(float(cross_entropy(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2))), 4)
        1.3863
    """
    truth = one_hot(labels, logits.shape[-3], logits.dtype)
    total = -(truth * logits.log_softmax(-3)).sum()
    return total / truth.sum().clamp(min=1)


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return the Dice overlap of probabilities and truth, in (0, 1].

    .. math:: D = \frac{2 \sum p\,t + 1}{\sum p + \sum t + 1}

    with sums over the foreground classes and the pixels of all images that are not ignored.

    Source:
        Hendryx et al. 2019, arXiv:1912.06290. Their code takes the mean over images of a Dice that counts
        the background as well. Here the background is left out, since it would outweigh a small structure,
        and the images are pooled, since the structure may be missing from one of them.

    Args:
        logits: ``(N, K, H, W)``, class 0 is the background.
        labels: ``(N, H, W)``.

    Example:
        >>> sure = 50 * one_hot(torch.tensor([[[0, 1]]]), 2, torch.float32)
        >>> round(float(soft_dice(sure, torch.tensor([[[0, 1]]]))), 4)
        1.0
    """
    truth = one_hot(labels, logits.shape[-3], logits.dtype)
    known = truth.sum(-3, keepdim=True)
    found = logits.softmax(-3) * known
    both = (found * truth).narrow(-3, 1, logits.shape[-3] - 1).sum()
    each = (found + truth).narrow(-3, 1, logits.shape[-3] - 1).sum()
    return (2 * both + SMOOTHING) / (each + SMOOTHING)


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return cross-entropy minus the logarithm of the soft Dice, :math:`H - \ln D`, a scalar.

    Made of operations that `torch.func.vmap` batches and that can be differentiated twice.

    Source:
        Hendryx et al. 2019, Meta-Learning Initializations for Image Segmentation, arXiv:1912.06290.

    Args:
        logits: ``(N, K, H, W)``, class 0 is the background.
        labels: ``(N, H, W)`` whole numbers below K, or `IGNORE`.

    Example:
        >>> labels = torch.tensor([[[0, 1], [1, 255]]])
        >>> right = 50 * one_hot(labels, 2, torch.float32)
        >>> float(segmentation_loss(right, labels)) < 1e-6 < float(segmentation_loss(-right, labels))
        True
    """
    return cross_entropy(logits, labels) - soft_dice(logits, labels).log()
