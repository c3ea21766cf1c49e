"""An exported folder is what the model hubs expect, holds the registered bytes, and loads back."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import yaml

import metainit
from metainit.errors import RegistryError
from metainit.transfer import file_sha256
from pipelines.export import export
from pipelines.registry import Registry
from tests.pipelines.conftest import MakeFolder, make_evidence


def test_a_folder_for_a_hub(home: Path, make_folder: MakeFolder, tmp_path: Path) -> None:
    registry = Registry()
    version = registry.register(make_folder(1, make_evidence(31.5)), "faces")
    folder = export(registry, version, tmp_path / "hub/faces")
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "card.json",
        "config.json",
        "evidence.json",
        "model.safetensors",
        "pictures",
        "recipe.yaml",
    ]
    assert file_sha256(folder / "model.safetensors") == version.sha256
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert (metadata["license"], metadata["library_name"]) == ("other", "metainit")
    assert {"metainit", "prior", "reptile", "siren"} <= set(metadata["tags"]) and metadata["metrics"] == [
        "psnr"
    ]
    result = metadata["model-index"][0]["results"][0]
    assert result["metrics"][0] == {"type": "psnr", "name": "psnr after 2 steps", "value": 31.5}
    assert version.sha256 in text and "![curve.png](pictures/curve.png)" in text
    start = metainit.load(str(folder / "model.safetensors"))
    assert json.loads((folder / "card.json").read_text()) == start.card.model_dump(mode="json")
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["network"] == {"name": "siren", "arguments": {"width": 4}} and config["routine"]["steps"] == 2
    )
    again = export(registry, version, tmp_path / "again", licence="cc0-1.0")
    assert "license: cc0-1.0" in (again / "README.md").read_text()


def test_nothing_is_overwritten_and_a_full_disk_leaves_nothing(
    home: Path, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry()
    version = registry.register(make_folder(1), "faces")
    place = tmp_path / "place"
    place.mkdir()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.export._dump", full)
        with pytest.raises(RegistryError, match="free some space"):
            export(registry, version, place / "faces")
    assert list(place.iterdir()) == []
    assert "It was not measured." in (export(registry, version, place) / "README.md").read_text()
    with pytest.raises(RegistryError, match="not an empty folder"):
        export(registry, version, place)
