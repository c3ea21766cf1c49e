"""The search for settings: nothing better is next to what it finds, and nothing is tried twice."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

from hypernets.generator.settings import EXTENSIONS, Setting, search

GRID = ((1e-3, 1e-2, 1e-1), (1e-2, 1.0))


def hill(*top: float) -> tuple[Counter[Setting], Callable[[Setting], float]]:
    """A score that falls with the logarithmic distance from a top, and what it was asked for."""
    asked: Counter[Setting] = Counter()

    def score(setting: Setting) -> float:
        asked[setting] += 1
        return -sum(math.log10(a / b) ** 2 for a, b in zip(setting, top, strict=True))

    return asked, score


@pytest.mark.parametrize("top", [(1e-2, 1.0), (1e-1, 1e-2), (1e1, 1e-6), (1e-6, 1e4), (1e-3, 1e-8)])
def test_it_finds_a_top_on_the_grid_on_its_edge_and_beyond(top: Setting) -> None:
    asked, score = hill(*top)
    found = search(GRID, score)
    assert found.best == pytest.approx(top)
    assert set(asked.values()) == {1} and found.scores.keys() == asked.keys()
    # Fewer than the whole product of the axes that it has grown to.
    values = [len({setting[i] for setting in asked}) for i in (0, 1)]
    assert len(asked) <= math.prod(values)


def test_a_best_inside_is_not_looked_beyond() -> None:
    asked, score = hill(1e-2)
    assert search(GRID[:1], score).best == (1e-2,) and len(asked) == 3


def test_it_ends_where_the_score_never_does() -> None:
    found = search(GRID[:1], lambda setting: setting[0])
    assert found.best == pytest.approx((1e-1 * 10**EXTENSIONS,)) and len(found.scores) == 3 + EXTENSIONS
    down = search([(0.1, 0.3, 1.0)], lambda setting: -setting[0])
    assert 0 < down.best[0] == min(down.scores)[0] == pytest.approx(0.1 / 3**EXTENSIONS)


def test_a_ridge_across_the_dimensions_is_followed() -> None:
    """The best of each dimension depends on the other: the edges of the axes alone would miss it."""

    def score(setting: Setting) -> float:
        size, decay = (math.log10(value) for value in setting)
        return -((size + decay) ** 2) * 10 - (size - 1) ** 2

    found = search(((1e-3, 1e-2, 1e-1), (1.0, 10.0)), score)
    size, decay = found.best
    for around in ((size * 10, decay), (size / 10, decay), (size, decay * 10), (size, decay / 10)):
        assert score(around) <= found.scores[found.best]


def test_what_is_no_number_is_never_best() -> None:
    found = search([(1.0, 2.0, 4.0)], lambda setting: math.nan if setting[0] > 2 else setting[0])
    assert found.best == (2.0,) and found.scores[(4.0,)] == -math.inf


def test_no_dimension_and_one_value_are_what_they_are() -> None:
    assert search([], lambda setting: 1.0).best == ()
    assert search([(3.0,), (2.0,)], lambda setting: 1.0).best == (3.0, 2.0)


@pytest.mark.parametrize("axis", [(), (0.0, 1.0), (2.0, 1.0), (1.0, 1.0)])
def test_values_that_cannot_grow_are_refused(axis: Setting) -> None:
    with pytest.raises(ValueError, match="positive ascending"):
        search([axis], lambda setting: 0.0)
