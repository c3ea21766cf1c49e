"""Tags are checked when they are read: a version whose tags are damaged is named, and the others live on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metainit import checkpoint
from metainit.card import Card, Method
from metainit.errors import RegistryError
from pipelines.following import look
from pipelines.registry import Registry
from pipelines.tags import TAG, TAG_SCHEMA, VersionTags, read_tags
from tests.pipelines.conftest import MakeFolder, make_evidence

GOOD = {"sha256": "a" * 64, "size": "10", "kind": "prior", "method": "reptile", "headline": '{"gain": 1}'}


def tagged(**changes: str) -> dict[str, str]:
    return {TAG + key: value for key, value in {**GOOD, **changes}.items()}


def test_what_is_written_is_read(home: object, make_folder: MakeFolder) -> None:
    version = Registry().register(make_folder(1, make_evidence(30)), "faces")
    said = read_tags(version.reference, version.tags)
    assert (said.sha256, said.size, said.kind) == (version.sha256, version.size, "prior")
    assert said.tag_schema == TAG_SCHEMA and said.headline == version.headline
    assert {key.removeprefix(TAG) for key in version.tags} <= VersionTags.model_fields.keys()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sha256": "A" * 64}, "metainit.sha256"),
        ({"size": "-1"}, "metainit.size"),
        ({"headline": "{"}, "metainit.headline"),
        ({"headline": "[]"}, "metainit.headline"),
        ({"gate": "yes"}, "metainit.gate"),
        ({"kind": "pri\nor"}, "metainit.kind"),
        ({"kind": "prior\n"}, "metainit.kind"),
        ({"kind": ""}, "metainit.kind"),
        ({"kind": "../prior"}, "metainit.kind"),
        ({"tag_schema": "2"}, "newer than this metainit"),
    ],
)
def test_damage_is_named(changes: dict[str, str], named: str) -> None:
    with pytest.raises(RegistryError, match=named):
        read_tags("faces/3", tagged(**changes))


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(VersionTags.model_fields)), st.text()))
def test_nothing_but_a_registry_error_comes_of_any_text(changes: dict[str, str]) -> None:
    try:
        read_tags("faces/3", tagged(**changes))
    except RegistryError as error:
        assert "faces/3" in str(error)


def test_a_damaged_version_is_left_out_and_the_others_stay(
    home: object, make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry()
    for seed in (1, 2, 3):
        registry.register(make_folder(seed), "faces")
    registry.promote("faces/1")
    registry.promote("faces/2")
    seen = look(registry)
    registry.tag(registry.resolve("faces/2"), "size", "large")
    with caplog.at_level(logging.WARNING):
        assert [v.version for v in registry.versions("faces")] == [3, 1]
    assert "faces/2 is left out" in caplog.text and "metainit.size" in caplog.text
    for reference in ("faces", "faces@champion", "faces/2"):
        with pytest.raises(RegistryError, match="faces/2 are damaged: metainit.size"):
            registry.resolve(reference)
    assert registry.resolve("faces@previous").version == 1
    assert registry.rollback("faces").version == 1, "the way out does not lead through what is damaged"
    assert registry.aliases("faces") == {"champion": 1, "previous": 2}
    known = look(registry, seen).names["faces"]
    assert [v.version for v in known.versions] == [3, 1] and [d.version for d in known.damaged] == [2]


def test_a_kind_that_would_be_refused_is_not_registered(home: object, tmp_path: Path) -> None:
    card = Card(kind="Prior of mine", name="faces", method=Method(name="reptile"))
    checkpoint.save(tmp_path / "run/checkpoint.safetensors", {"w": torch.zeros(2)}, card)
    registry = Registry()
    with pytest.raises(RegistryError, match="of the kind 'Prior of mine'; expected lower-case"):
        registry.register(tmp_path / "run", "faces")
    assert registry.names() == []
