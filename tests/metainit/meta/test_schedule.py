"""The step size over a run."""

import pytest

from metainit.meta.schedule import warm_up_and_cosine


def test_it_warms_up_and_ends_low() -> None:
    factors = [warm_up_and_cosine(step, 100, 10) for step in range(101)]
    assert factors[9] == factors[10] == 1.0
    assert factors[100] == pytest.approx(0.01)
    assert all(a <= b for a, b in zip(factors[:10], factors[1:10], strict=False))
    assert all(a > b for a, b in zip(factors[10:100], factors[11:101], strict=True))
