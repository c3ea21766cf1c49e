"""A store of its own for each test: a copy of one that was made once, since making it takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, Method, Spec

MakeFolder = Callable[..., Path]


@pytest.fixture
def home(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with an empty embedded store, which everything uses by default."""
    folder = tmp_path / "home"
    folder.mkdir()
    shutil.copyfile(empty_store, folder / empty_store.name)
    monkeypatch.setenv("METAINIT_HOME", str(folder))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "METAINIT_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> MakeFolder:
    """Write a folder such as a training run ends with; the seed makes the weights."""

    def make(seed: int = 0, evidence: dict[str, Any] | None = None, size: int = 4) -> Path:
        folder = tmp_path / f"run-{seed}"
        generator = torch.Generator().manual_seed(seed)
        card = Card(
            kind="prior",
            name="faces",
            method=Method(name="reptile", paper="Nichol 2018"),
            network=Spec(name="siren", arguments={"width": size}),
            routine=AdaptationRoutine(steps=2, step_size=0.01),
        )
        weights = {"w": torch.randn(size, size, generator=generator), "b": torch.zeros(size)}
        checkpoint.save(folder / "checkpoint.safetensors", weights, card)
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / "pictures" / "curve.png").write_bytes(b"not really a picture")
        (folder / "recipe.yaml").write_text("name: faces\n")
        if evidence is not None:
            (folder / "evidence.json").write_text(json.dumps(evidence))
        return folder

    return make


def make_evidence(level: float, low: float = 1.0, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Evidence of 3 seeds and 16 tasks whose values after 2 steps lie around `level`."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = 5 * torch.randn(16, generator=torch.Generator().manual_seed(99))
    noise = 0.1 * torch.randn(3, 16, generator=generator)
    final = level + difficulty + noise
    values = torch.stack([torch.full_like(final, 10.0), final], dim=-1)
    return {
        "schema_version": 1,
        "domain": {"name": "image", "arguments": {"size": 64, "data": "somewhere"}},
        "data_fingerprint": "photos-1",
        "network": {"name": "siren", "arguments": {"width": 4}},
        "metric": "psnr",
        "higher_is_better": True,
        "steps": [0, 2],
        "task_ids": [f"task-{i}" for i in range(16)],
        "seeds": [0, 1, 2],
        "curves": [{"source": "faces", "role": "candidate", "values": values.tolist()}],
        "comparisons": [],
        "headline": {
            "metric": "psnr",
            "steps": 2,
            "value": level,
            "control": "siren",
            "control_value": level - low - 0.5,
            "gain": low + 0.5,
            "low": low,
            "high": low + 1,
            "tasks": 16,
            "seeds": 3,
        },
    } | changes
