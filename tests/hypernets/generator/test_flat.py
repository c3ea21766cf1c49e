"""Vectors of some parameters among those of all."""

from __future__ import annotations

import pytest
import torch

from hypernets.generator.flat import FlatLayout

LAYOUT = FlatLayout(("a", "b", "c"), ((2, 2), (), (3,)))


@pytest.mark.parametrize("names", [("a",), ("b", "c"), ("c", "a"), ("a", "b", "c")])
def test_what_is_widened_is_its_own_where_it_was_and_zero_elsewhere(names: tuple[str, ...]) -> None:
    part = FlatLayout.of({n: v for n, v in LAYOUT.unflatten(torch.zeros(8)).items() if n in names})
    vectors = 1 + torch.arange(2.0 * part.size).reshape(2, part.size)
    wide = LAYOUT.unflatten(LAYOUT.widened(vectors, names))
    own = part.unflatten(vectors)
    for name, value in wide.items():
        assert torch.equal(value, own[name] if name in names else torch.zeros_like(value))


def test_columns_are_in_the_order_of_the_vector_whatever_that_of_the_names() -> None:
    assert LAYOUT.columns(("c", "b")).tolist() == [4, 5, 6, 7]
    everything = torch.arange(8.0)
    assert torch.equal(everything[LAYOUT.columns({"a", "c"})], torch.tensor([0.0, 1, 2, 3, 5, 6, 7]))
