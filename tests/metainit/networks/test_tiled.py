"""Tiles: what is exact, that no seam shows, and how much is held at once."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metainit.card import Spec
from metainit.errors import RecipeError
from metainit.networks import build
from metainit.networks.tiled import tile_starts, tiled, window


def image(height: int, width: int, count: int = 1, channels: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, height, width, generator=generator, dtype=torch.float64)


def pointwise(x: Tensor) -> Tensor:
    return torch.stack([x[:, 0] * x[:, 1], x.sum(1).sin(), x[:, 0] ** 2], dim=1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16),
    st.floats(0, 0.95), st.integers(1, 5),
)  # fmt: skip
def test_what_is_computed_pixel_by_pixel_comes_out_exactly(
    height: int, width: int, rows: int, columns: int, overlap: float, at_once: int
) -> None:
    x = image(height, width, count=2)
    found = tiled(pointwise, (rows, columns), overlap, at_once)(x)
    torch.testing.assert_close(found, pointwise(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.floats(0, 0.95))
def test_tiles_cover_the_axis_and_overlap_as_much_as_asked(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] + tile == max(length, tile)
    covered = {i for s in starts for i in range(s, s + tile)}
    assert covered.issuperset(range(length))
    stride = max(1, math.floor(tile * (1 - overlap)))
    assert all(0 < b - a <= stride for a, b in zip(starts, starts[1:], strict=False))


def test_an_image_no_larger_than_a_tile_is_the_networks_own() -> None:
    network = build(Spec(name="unet", arguments={"in_channels": 2, "width": 4, "depth": 3})).double()
    x = image(17, 23)
    with torch.no_grad():
        assert torch.equal(tiled(network, (32, 32))(x), network(x))


def test_a_network_of_bounded_sight_is_exact_away_from_the_tiles_borders() -> None:
    """A 5x5 mean on tiles cut without overlap is wrong at every border; blended, the error is small."""

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 5, 1, 2)

    x = image(64, 64)
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    error = (tiled(mean, (32, 32), 0.5)(x) - mean(x))[inner].abs().max()
    hard = (tiled(mean, (32, 32), 0.0)(x) - mean(x))[inner].abs().max()
    assert error < 0.02 < 0.2 < hard


def test_no_seam_shows() -> None:
    """Every tile answers with a level of its own: the blend must not jump where one tile ends."""
    levels = iter([0.0, 1.0, 0.3, 0.8, 0.1, 0.9, 0.5])

    def level(x: Tensor) -> Tensor:
        return torch.stack([torch.full_like(one[:1], next(levels)) for one in x])

    found = tiled(level, (8, 32), 0.5)(image(8, 100))
    assert found.diff(dim=-1).abs().max() < 0.13  # at a hard seam: up to 1
    assert found.min() >= 0 and found.max() <= 1


def test_no_more_than_at_once_tiles_of_one_image_are_held() -> None:
    seen: list[tuple[int, ...]] = []

    def record(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        assert not torch.is_grad_enabled()
        return x

    tiled(record, (16, 16), 0.5, at_once=3)(image(90, 50, count=2))
    assert max(count for count, *_ in seen) == 3 and {s[1:] for s in seen} == {(2, 16, 16)}


def test_the_window_is_positive_symmetric_and_sums_to_one_at_half_overlap() -> None:
    w = window(8, 16, torch.zeros((), dtype=torch.float64))
    assert (w > 0).all() and torch.allclose(w, w.flip(0)) and torch.allclose(w, w.flip(1))
    along = window(1, 16, torch.zeros((), dtype=torch.float64))[0]
    torch.testing.assert_close(along[8:] + along[:8], torch.ones(8, dtype=torch.float64))


@pytest.mark.parametrize(
    "wrong", [{"tile": (0, 8)}, {"tile": (8, 8), "overlap": 1.0}, {"tile": (8, 8), "at_once": 0}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(RecipeError, match=r"expected a positive tile and at_once and an overlap in \[0, 1\)"):
        tiled(pointwise, **wrong)  # type: ignore[arg-type]
