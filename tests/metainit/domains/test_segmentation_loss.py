"""The loss against torch's own cross-entropy, brute force, and finite differences; under vmap and twice."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, vmap

from metainit.domains.segmentation_loss import cross_entropy, segmentation_loss, soft_dice

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 4, 6, 5, generator=GENERATOR, dtype=torch.float64)
LABELS = torch.randint(5, (3, 6, 5), generator=GENERATOR)
LABELS[LABELS == 4] = 255


def test_cross_entropy_is_that_of_torch() -> None:
    expected = torch.nn.functional.cross_entropy(LOGITS, LABELS, ignore_index=255)
    torch.testing.assert_close(cross_entropy(LOGITS, LABELS), expected)


def test_soft_dice_is_that_of_a_loop_over_pixels() -> None:
    both = each = 0.0
    for n in range(3):
        for y in range(6):
            for x in range(5):
                label = int(LABELS[n, y, x])
                if label == 255:
                    continue
                probabilities = LOGITS[n, :, y, x].softmax(0)
                for c in (1, 2, 3):
                    both += float(probabilities[c]) * (label == c)
                    each += float(probabilities[c]) + (label == c)
    assert float(soft_dice(LOGITS, LABELS)) == pytest.approx((2 * both + 1) / (each + 1))


def test_hard_predictions_have_the_dice_of_sets() -> None:
    labels = torch.tensor([[[1, 1, 1, 0]]])
    found = torch.tensor([[[1, 1, 0, 1]]])
    logits = 1e3 * torch.nn.functional.one_hot(found, 2).movedim(-1, 1).double()
    assert float(soft_dice(logits, labels)) == pytest.approx((2 * 2 + 1) / (3 + 3 + 1))


@pytest.mark.parametrize("fill", [0, 255])
def test_is_finite_without_foreground_and_without_any_label(fill: int) -> None:
    labels = torch.full((2, 4, 4), fill)
    logits = torch.randn(2, 3, 4, 4, generator=GENERATOR, dtype=torch.float64).requires_grad_()
    loss = segmentation_loss(logits, labels)
    (slope,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isfinite()) and bool(slope.isfinite().all())
    assert (fill == 255) == bool((slope == 0).all())


def test_ignored_pixels_change_nothing() -> None:
    changed = LOGITS + 7 * torch.randn_like(LOGITS) * (LABELS == 255)[:, None]
    torch.testing.assert_close(segmentation_loss(changed, LABELS), segmentation_loss(LOGITS, LABELS))


def test_derivatives_of_first_and_second_order_match_finite_differences() -> None:
    logits = LOGITS[:1, :, :2, :2].clone().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return segmentation_loss(x, LABELS[:1, :2, :2])

    assert torch.autograd.gradcheck(loss, (logits,))
    assert torch.autograd.gradgradcheck(loss, (logits,))


@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"  # torch's own, on first use
)
def test_vmap_equals_a_loop_and_composes_with_derivatives() -> None:
    logits, labels = LOGITS[:, None], LABELS[:, None]
    for function in (segmentation_loss, grad(segmentation_loss)):
        expected = torch.stack([function(a, b) for a, b in zip(logits, labels, strict=True)])
        torch.testing.assert_close(vmap(function)(logits, labels), expected)
    small, marks = logits[..., :2, :2], labels[..., :2, :2]
    expected = torch.stack([hessian(segmentation_loss)(a, b) for a, b in zip(small, marks, strict=True)])
    torch.testing.assert_close(vmap(hessian(segmentation_loss))(small, marks), expected)


def test_lowering_it_finds_the_truth() -> None:
    logits = torch.zeros(3, 4, 6, 5, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        loss = segmentation_loss(logits, LABELS)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    known = LABELS != 255
    assert bool((logits.argmax(1) == LABELS)[known].all())
