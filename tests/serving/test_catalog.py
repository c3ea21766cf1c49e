"""What a reference means among many names, and what is said where it means nothing."""

from __future__ import annotations

import time

import pytest

from metainit.references import Reference
from serving.catalog import Catalog, Facts, Init, Missing

MANY = 10_000


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    inits = {}
    for number in range(MANY):
        name = f"network-of-a-team-{number:05}"
        inits[name] = Init.gathered(name, [Facts(name, 1, "0" * 64, 1, "prior", "maml")], {"champion": 1})
    return Catalog(inits)


@pytest.mark.parametrize("text", ["nothing", "network-of-a-team-00007/2", "network-of-a-team-00007@best"])
def test_what_means_nothing_is_none_and_is_told_in_a_short_text(catalog: Catalog, text: str) -> None:
    reference = Reference.parse(text)
    assert catalog.seek(reference) is None
    with pytest.raises(Missing) as error:
        catalog.find(reference)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("text", ["", "/1", "@champion"])
def test_what_means_something_is_found(catalog: Catalog, text: str) -> None:
    reference = Reference.parse(f"network-of-a-team-00007{text}")
    assert catalog.seek(reference) == catalog.find(reference)


def test_a_mistyped_name_among_many_is_told_soon(catalog: Catalog) -> None:
    began = time.thread_time()
    with pytest.raises(Missing, match="did you mean 'network-of-a-team-0[0-9]{4}'"):
        catalog.find(Reference.parse("network-of-a-taem-00007"))
    assert time.thread_time() - began < 0.3
