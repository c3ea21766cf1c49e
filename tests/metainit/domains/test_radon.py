"""Projections: closed forms, agreement with scikit-image, and exact derivatives."""

import warnings

import numpy as np
import pytest
import torch
from skimage.transform import radon as reference
from torch import Tensor
from torch.func import grad, hessian, jvp, vmap

from metainit.domains.radon import radon
from metainit.errors import DataError

ANGLES = torch.tensor([0.0, 17.3, 45.0, 90.0, 121.9, 179.0], dtype=torch.float64)

forward_mode = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"  # torch's own, on first use
)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(3))


def smooth_disc(size: int, radius: float) -> Tensor:
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    return (radius + 0.5 - torch.hypot(offset[:, None], offset)).clamp(0, 1)


@pytest.mark.parametrize("circle", [True, False])
@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (20, 15), (15, 22)])
def test_agrees_with_scikit_image_to_float_precision(shape: tuple[int, int], circle: bool) -> None:
    image = noise(*shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the image is not zero outside the circle, on purpose
        expected = reference(image.numpy(), ANGLES.numpy(), circle=circle).T
    np.testing.assert_allclose(radon(image, ANGLES, circle=circle), expected, rtol=0, atol=1e-12)


def test_float32_stays_close_to_float64() -> None:
    image = noise(64, 64)
    exact = radon(image, ANGLES)
    single = radon(image.float(), ANGLES.float())
    assert single.dtype == torch.float32
    assert (single - exact).norm() / exact.norm() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_images_are_projected_in_float32(dtype: torch.dtype) -> None:
    image = smooth_disc(16, 5).to(dtype)
    result = radon(image, ANGLES)
    assert result.dtype == dtype
    assert torch.equal(result, radon(image.float(), ANGLES).to(dtype))


def test_a_centred_disc_has_the_closed_form_2_sqrt_r2_minus_s2() -> None:
    errors = []
    for size, radius in ((128, 45.0), (256, 90.0)):
        s = torch.arange(size, dtype=torch.float64) - size // 2
        expected = 2 * (radius**2 - s**2).clamp_min(0).sqrt().expand(len(ANGLES), -1)
        error = radon(smooth_disc(size, radius), ANGLES) - expected
        assert error[:, s.abs() < radius - 2].abs().max() < 0.6  # pixels, of up to 2 * radius
        errors.append(error.norm() / expected.norm())
    assert errors[0] < 0.012 and errors[1] < 0.6 * errors[0]  # of first order in the pixel size


def test_views_at_0_and_90_degrees_are_column_and_row_sums() -> None:
    image = noise(16, 16)
    columns, rows = radon(image, torch.tensor([0.0, 90.0]))
    torch.testing.assert_close(columns, image.sum(0), rtol=0, atol=1e-5)
    # At 90 degrees the rotation about pixel 8 takes row i to bin 16 - i; row 0 leaves the detector.
    torch.testing.assert_close(rows[1:], image.sum(1).flip(0)[:-1], rtol=0, atol=1e-5)


def test_half_a_turn_mirrors_the_projection() -> None:
    image = noise(17, 17)
    first, second = radon(image, torch.tensor([30.0, 210.0], dtype=torch.float64))
    torch.testing.assert_close(first, second.flip(0))


def test_every_view_holds_the_mass_of_the_image() -> None:
    image = smooth_disc(64, 20) * (1 + 0.1 * noise(64, 64))
    mass = radon(image, ANGLES).sum(-1)
    torch.testing.assert_close(mass, image.sum().expand(6), rtol=2e-3, atol=0)


def test_more_detectors_sample_the_same_projection_finer() -> None:
    image = smooth_disc(64, 20)
    coarse, fine = radon(image, ANGLES), radon(image, ANGLES, detectors=192)
    torch.testing.assert_close(fine[:, 1::3], coarse)


def test_is_linear() -> None:
    a, b = noise(2, 12, 12)
    combined = radon(2 * a - 3 * b, ANGLES)
    torch.testing.assert_close(combined, 2 * radon(a, ANGLES) - 3 * radon(b, ANGLES))


@pytest.mark.parametrize("circle", [True, False])
@pytest.mark.parametrize("batched", [True, False])
def test_the_backward_pass_is_the_adjoint(circle: bool, batched: bool) -> None:
    image = noise(3, 14, 11).requires_grad_()
    angles = ANGLES.expand(3, -1) if batched else ANGLES
    sinogram = radon(image, angles, circle=circle)
    other = noise(*sinogram.shape)
    (back,) = torch.autograd.grad(sinogram, image, other)
    torch.testing.assert_close((sinogram * other).sum(), (image * back).sum())


@forward_mode
def test_derivatives_of_first_and_second_order_match_finite_differences() -> None:
    image = noise(2, 6, 6).requires_grad_()

    def squared(x: Tensor) -> Tensor:
        return radon(x, ANGLES.reshape(2, 3)) ** 2

    assert torch.autograd.gradcheck(squared, (image,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(squared, (image,))


def test_leading_dimensions_broadcast_and_each_image_may_have_its_own_angles() -> None:
    images, angles = noise(2, 3, 9, 9), 180 * noise(3, 4).abs()
    result = radon(images, angles)
    assert result.shape == (2, 3, 4, 9)
    torch.testing.assert_close(result[1, 2], radon(images[1, 2], angles[2]))
    shared = radon(images, angles[0])
    torch.testing.assert_close(shared[1, 2], radon(images[1, 2], angles[0]))
    assert radon(images[0, 0], angles).shape == (3, 4, 9)


@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0), (2, 1)])
def test_vmap_equals_a_loop(in_dims: tuple[int | None, int | None]) -> None:
    images, angles = noise(4, 4, 4), 180 * noise(4, 4).abs()
    x = images if in_dims[0] is not None else images[0]
    t = angles if in_dims[1] is not None else angles[0]

    def one(i: int) -> Tensor:
        own_x = x if in_dims[0] is None else x.select(in_dims[0], i)
        return radon(own_x, t if in_dims[1] is None else t.select(in_dims[1], i))

    torch.testing.assert_close(vmap(radon, in_dims)(x, t), torch.stack([one(i) for i in range(4)]))


@forward_mode
def test_transforms_compose() -> None:
    images, angles = noise(3, 5, 5), 180 * noise(3, 2).abs()

    def loss(x: Tensor, t: Tensor) -> Tensor:
        return (radon(x, t) ** 2).sum() / 2

    # The loss is 1/2 |Rx|^2, so its gradient is R'Rx and its Hessian R'R.
    normal = vmap(hessian(loss))(images, angles).flatten(3).flatten(1, 2)
    gradient = vmap(grad(loss))(images, angles).flatten(1)
    torch.testing.assert_close(gradient, (normal @ images.flatten(1)[..., None])[..., 0])
    _, tangent = jvp(lambda x: radon(x, angles), (images,), (images,))
    torch.testing.assert_close(tangent, radon(images, angles))


@pytest.mark.parametrize(
    ("images", "angles", "options", "text"),
    [
        (torch.zeros(4), torch.zeros(1), {}, r"floating tensor .* came \(4,\)"),
        (torch.zeros(4, 4, dtype=torch.int32), torch.zeros(1), {}, "torch.int32"),
        (torch.zeros(4, 4), torch.zeros(0), {}, "at least one angle"),
        (torch.zeros(2, 4, 4), torch.zeros(3, 1), {}, "do not broadcast; give angles"),
        (torch.zeros(4, 4), torch.zeros(1), {"detectors": 0}, "at least one detector, came 0"),
    ],
)
def test_unusable_arguments_are_named(
    images: Tensor, angles: Tensor, options: dict[str, int], text: str
) -> None:
    with pytest.raises(DataError, match=text):
        radon(images, angles, circle=True, **options)
