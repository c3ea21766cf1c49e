"""A fixture for modules whose tests train: one thread inside operations, fastest with small tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.zoo.fits import one_thread


@pytest.fixture(autouse=True, scope="module")
def one_thread_inside_operations() -> Iterator[None]:
    """Have one thread, and what there was before afterwards."""
    with one_thread():
        yield
