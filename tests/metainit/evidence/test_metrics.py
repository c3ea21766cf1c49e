"""Metrics: closed forms, limits, and what they refuse."""

import json

import pytest
import torch
from torch import Tensor

from metainit.errors import DataError
from metainit.evidence.metrics import MAX_PSNR, psnr, ssim


def image(height: int = 24, width: int = 20, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(height, width, channels, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("error", "expected"), [(1.0, 0.0), (0.1, 20.0), (0.01, 40.0)])
def test_psnr_of_a_constant_error_is_20_log10(error: float, expected: float) -> None:
    a = image().double()
    assert psnr(a, a + error) == pytest.approx(expected, abs=1e-5)


def test_psnr_of_equal_images_has_a_ceiling_that_json_can_hold() -> None:
    assert psnr(image(), image()) == MAX_PSNR
    json.dumps(psnr(image(), image()), allow_nan=False)


def test_ssim_is_one_for_equal_images_and_has_the_closed_form_of_two_constants() -> None:
    assert ssim(image(), image()) == pytest.approx(1)
    # Without variance only the luminance term is left: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2.
    a, b = torch.full((16, 16, 1), 0.5), torch.full((16, 16, 1), 0.25)
    assert ssim(a, b) == pytest.approx((2 * 0.125 + 1e-4) / (0.3125 + 1e-4), rel=1e-6)


def test_ssim_falls_with_noise_and_is_symmetric() -> None:
    a, b = image(seed=0), image(seed=1)
    little, much = (0.9 * a + 0.1 * b), (0.5 * a + 0.5 * b)
    assert 1 > ssim(a, little) > ssim(a, much) > ssim(a, b)
    assert ssim(a, b) == pytest.approx(ssim(b, a))


@pytest.mark.parametrize("side", [1, 2, 3, 8, 11])
def test_ssim_of_small_images(side: int) -> None:
    a = image(side, side, 1)
    assert ssim(a, a) == pytest.approx(1)


@pytest.mark.parametrize("other", [(24, 20, 1), (20, 24, 3), (24, 20)])
@pytest.mark.parametrize("metric", [psnr, ssim])
def test_images_of_different_shapes_are_refused(metric: object, other: tuple[int, ...]) -> None:
    assert callable(metric)
    with pytest.raises(DataError, match=r"of one shape, came \(24, 20, 3\) and"):
        metric(image(), torch.zeros(other))
