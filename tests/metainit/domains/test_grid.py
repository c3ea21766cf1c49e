"""Pixels that are drawn evenly: one in each cell, all of them reachable, far less variance than chance."""

from __future__ import annotations

import pytest
import torch

from metainit.domains.grid import pixel_grid, pixels_at, stratified_pixels
from metainit.errors import DataError


def drawn(height: int, width: int, count: int, seed: int = 0) -> torch.Tensor:
    return stratified_pixels(height, width, count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("height", "width", "count"),
    [
        (64, 64, 1024),
        (8, 12, 48),
        (8, 12, 95),
        (8, 12, 96),
        (5, 7, 16),
        (4, 100, 20),
        (100, 4, 20),
        (3, 3, 1),
    ],
)
def test_different_pixels_of_the_image_and_hardly_fewer_than_asked_for(
    height: int, width: int, count: int
) -> None:
    chosen = drawn(height, width, count)
    assert chosen.min() >= 0 and chosen.max() < height * width
    assert len(set(chosen.tolist())) == len(chosen)
    assert 0.8 * count <= len(chosen) <= count
    assert torch.equal(chosen, drawn(height, width, count))


def test_all_pixels_are_all_pixels() -> None:
    assert drawn(6, 9, 54).tolist() == list(range(54))


def test_each_cell_gives_one_pixel_and_every_pixel_comes_up() -> None:
    seen: set[int] = set()
    for seed in range(60):
        chosen = drawn(8, 12, 24, seed)
        cells = (chosen // 12 // 2) * 6 + chosen % 12 // 2
        assert sorted(cells.tolist()) == list(range(24))
        seen |= set(chosen.tolist())
    assert len(seen) == 96


def test_the_mean_of_a_smooth_image_is_much_surer_than_by_chance() -> None:
    y, x = pixel_grid(32, 32).unbind(-1)
    image = torch.sin(3 * x) + y.square()
    generator = torch.Generator().manual_seed(0)
    even = torch.stack([image[stratified_pixels(32, 32, 64, generator)].mean() for _ in range(200)])
    chance = torch.stack([image[torch.randperm(1024, generator=generator)[:64]].mean() for _ in range(200)])
    assert abs(float(even.mean() - image.mean())) < 0.01
    assert float(even.std()) < 0.25 * float(chance.std())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_coordinates_name_their_pixels(dtype: torch.dtype) -> None:
    chosen = drawn(64, 96, 500)
    assert torch.equal(pixels_at(pixel_grid(64, 96)[chosen].to(dtype), 64, 96), chosen)


@pytest.mark.parametrize("wrong", [[0.0, 0.25], [-1.2, 0.25], [0.25, 1.25]])
def test_coordinates_between_or_outside_the_pixels_are_refused(wrong: list[float]) -> None:
    with pytest.raises(DataError, match="pixel centres of an image of 4x4 pixels"):
        pixels_at(torch.tensor([wrong]), 4, 4)
