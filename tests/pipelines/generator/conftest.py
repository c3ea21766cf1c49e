"""The debug chain of digits and that of classes, made once: prior, zoo, generator."""

from __future__ import annotations

import pytest

from pipelines.zoo.fits import one_thread
from tests.one_thread import one_thread_inside_operations
from tests.pipelines.generator.chains import Chain, chain_of

__all__ = ["one_thread_inside_operations"]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Digits by their class; nothing in its folder may be changed."""
    with one_thread():
        return chain_of("digits", "zoo-digits", "gen-digits", tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Classifiers by their examples; nothing in its folder may be changed."""
    with one_thread():
        return chain_of("digit-classes", "zoo-classes", "gen-classes", tmp_path_factory.mktemp("classes"))
