"""The header of a safetensors file: what it holds and where, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from metainit.checkpoint import Limits
from metainit.errors import CheckpointError
from metainit.headers import read_header

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.arange(4, dtype=torch.int64)}


def crafted(path: Path, header: object, body: bytes = bytes(8)) -> Path:
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + body)
    return path


def entry(start: int = 0, end: int = 8) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [start, end]}


def test_places_are_those_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file(TENSORS, path, {"note": "x"})
    content, places = path.read_bytes(), read_header(path)
    assert {n: (p.dtype, p.shape) for n, p in places.items()} == {"b": ("F32", (2, 3)), "a": ("I64", (4,))}
    for name, place in places.items():
        assert content[place.start : place.end] == TENSORS[name].numpy().tobytes()
    starts = [place.start for place in places.values()]
    assert starts == sorted(starts)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ([], "no readable"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "no readable"),
        ({"w": {**entry(), "shape": ["2"]}}, "no readable"),
        ({"w": entry(0, 9)}, "outside the file"),
        ({"w": entry(-1, 8)}, "outside the file"),
        ({"w": entry(), "v": entry()}, "on top of each other"),
    ],
)
def test_what_is_no_header_is_refused(tmp_path: Path, header: object, said: str) -> None:
    path = crafted(tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match=f"a.safetensors: .*{said}"):
        read_header(path)


def test_limits_are_kept_before_anything_is_read(tmp_path: Path) -> None:
    path = crafted(tmp_path / "a.safetensors", {"w": entry(0, 4), "v": entry(4, 8)})
    with pytest.raises(CheckpointError, match="2 tensors, expected at most 1"):
        read_header(path, Limits(tensors=1))
    with pytest.raises(CheckpointError, match="claims a header"):
        read_header(path, Limits(header_bytes=10))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="claims a header"):
        read_header(path)
    path.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="in 3; it is no checkpoint"):
        read_header(path)
    with pytest.raises(CheckpointError, match="cannot read"):
        read_header(tmp_path / "none")
