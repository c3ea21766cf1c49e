"""What is brought into the cache is what the registry says, and a wait that ends is not a full disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metainit import checkpoint
from metainit.card import Card, Method
from metainit.errors import CheckpointError
from metainit.transfer import file_sha256
from serving import cache as cache_module
from serving.cache import Cache, NotReady
from serving.catalog import Facts


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    folder = tmp_path / "artifact"
    card = Card(kind="prior", name="faces", method=Method(name="reptile"))
    checkpoint.save(folder / "checkpoint.safetensors", {"w": torch.zeros(4)}, card)
    return folder


@pytest.fixture
def facts(artifact: Path) -> Facts:
    file = artifact / "checkpoint.safetensors"
    return Facts("faces", 1, file_sha256(file), file.stat().st_size, "prior", "reptile")


def test_a_kind_that_the_card_does_not_have_is_refused(tmp_path: Path, artifact: Path, facts: Facts) -> None:
    cache = Cache(tmp_path / "store")
    with pytest.raises(CheckpointError, match="faces/1 has the kind 'ghn' in the registry.*'prior'"):
        cache.add(replace(facts, kind="ghn"), lambda _: artifact)
    assert cache.open(facts) is None


def test_what_agrees_is_kept(tmp_path: Path, artifact: Path, facts: Facts) -> None:
    assert Cache(tmp_path / "store").add(facts, lambda _: artifact).card["kind"] == "prior"


def test_a_wait_for_another_process_that_ends_is_told_as_one(
    tmp_path: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LOCK_SECONDS", 0.05)
    with Cache(tmp_path).locked(facts):
        with pytest.raises(
            NotReady, match="another process has been bringing it for more than 0.05 s"
        ) as told:
            with Cache(tmp_path).locked(facts):
                pass
    assert "space" not in str(told.value)
