"""Phantoms: purity, range, variety, and the table they start from."""

import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize

from metainit.domains.phantoms import phantoms, shepp_logan


def test_a_phantom_depends_on_its_seed_and_index_alone() -> None:
    batch = phantoms(5, range(8), 24)
    assert torch.equal(batch, phantoms(5, range(8), 24))
    assert torch.equal(batch[[6, 2]], phantoms(5, [6, 2], 24))
    before = torch.random.get_rng_state()
    phantoms(5, [0], 24)
    assert torch.equal(before, torch.random.get_rng_state())


def test_no_two_phantoms_are_alike_within_or_across_seeds() -> None:
    every = torch.cat([phantoms(seed, range(20), 16) for seed in (0, 1, 2)]).flatten(1)
    distances = torch.cdist(every, every) + torch.eye(60)
    assert distances.min() > 0.1


def test_values_lie_in_the_unit_range_and_the_object_in_the_circle() -> None:
    batch = phantoms(0, range(64), 64)
    assert batch.shape == (64, 64, 64) and batch.dtype == torch.float32
    assert batch.min() == 0 and batch.max() == 1
    offset = torch.arange(64) - 31.5
    outside = torch.hypot(offset[:, None], offset) > 32
    assert batch[:, outside].abs().max() == 0


def test_every_phantom_has_a_skull_around_a_darker_brain() -> None:
    rows = phantoms(7, range(64), 128)[:, 64]  # through the middle, from ear to ear
    left, middle, right = rows[:, :48].amax(1), rows[:, 52:76].mean(1), rows[:, 80:].amax(1)
    assert (left > 0.6).all() and (right > 0.6).all()
    assert (middle < torch.minimum(left, right)).all()


def test_the_family_varies_so_that_its_mean_is_a_poor_guess() -> None:
    train, held_out = phantoms(0, range(128), 32), phantoms(1, range(64), 32)
    error = ((held_out - train.mean(0)) ** 2).mean((1, 2))
    mean_psnr = (-10 * error.log10()).mean()
    assert 13 < mean_psnr < 18


def test_the_same_phantom_at_two_sizes_shows_the_same_object() -> None:
    large, small = phantoms(2, range(8), 128), phantoms(2, range(8), 32)
    pooled = torch.nn.functional.avg_pool2d(large[:, None], 4)[:, 0]
    assert (pooled - small).abs().mean() < 0.02


def test_the_table_is_the_modified_shepp_logan_phantom_of_scikit_image() -> None:
    expected = torch.from_numpy(resize(shepp_logan_phantom(), (128, 128), anti_aliasing=True))
    # scikit-image's picture is drawn on a grid half a pixel off, so edges differ.
    difference = (shepp_logan(128) - expected).abs()
    assert difference.median() < 1e-3
    assert difference.mean() < 0.03


@pytest.mark.parametrize("size", [2, 33])
def test_any_size_and_an_empty_batch(size: int) -> None:
    assert phantoms(0, [1], size).shape == (1, size, size)
    assert phantoms(0, [], size).shape == (0, size, size)
