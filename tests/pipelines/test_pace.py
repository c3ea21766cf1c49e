"""The seconds left go by how things go now, not by how they began."""

from __future__ import annotations

import math

import pytest

from pipelines.pace import Pace


def test_a_slow_beginning_is_forgotten() -> None:
    pace = Pace()
    assert math.isnan(pace.left(10))
    pace.done(1, at=0.0)
    assert math.isnan(pace.left(10))
    for count in range(2, 12):  # a minute each
        pace.done(count, at=60.0 * (count - 1))
    assert pace.left(21) == pytest.approx(600)
    began = 600.0
    for count in range(12, 41):  # from here on a second each
        pace.done(count, at=began + count - 11)
    assert pace.left(140) == pytest.approx(100)


def test_what_comes_in_lots_counts_as_many() -> None:
    pace = Pace()
    for done, at in ((64, 5.0), (192, 9.0), (320, 13.0)):
        pace.done(done, at)
    assert pace.left(320 + 64) == pytest.approx(2.0)
    assert pace.left(320) == 0
