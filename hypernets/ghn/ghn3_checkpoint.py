"""Published GHN-3 files in, checkpoints of this project out.

Two containers are in use: a dictionary of tensors that joblib wrote (the files on the hub), and a dictionary
with ``state_dict`` and ``config`` that ``torch.save`` wrote (own trainings). Neither is unpickled.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from hypernets.ghn.ghn3_config import PAPER, Ghn3Config
from hypernets.ghn.ghn3_network import Ghn3
from hypernets.ghn.ghn3_pickle import read_pickle
from metainit import checkpoint as files
from metainit.card import Card, DataSource, Method, Provenance
from metainit.checkpoint import DEFAULT_LIMITS, Checkpoint, Limits
from metainit.errors import CheckpointError

KIND = "ghn"
METHOD = "ghn3"
RECIPE_KEY = "hypernetwork"
_NODE_TABLES = ("centrality_embed_in", "centrality_embed_out", "input_dist_embed")
_ZIP_START = b"PK\x03\x04"
_LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def import_ghn3(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> tuple[Ghn3Config, dict[str, Tensor]]:
    """Read a published GHN-3 file: its sizes and its tensors, under the names of `Ghn3`.

    What a file does not say (whether weights are normalized, whether nodes see distances) is as in the paper.

    Raises:
        CheckpointError: the file is missing, truncated, oversized, holds anything but tensors and plain
            values, is a GHN-2, or its tensors are not those of a GHN-3.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            start = stream.read(len(_LEGACY_TORCH))
            stream.seek(0)
            if size > limits.file_bytes:
                raise CheckpointError(f"{path} has {size} bytes, expected at most {limits.file_bytes}")
            torch_wrote = start.startswith(_ZIP_START) or start == _LEGACY_TORCH
            value = _from_torch(path, limits) if torch_wrote else read_pickle(stream, size, str(path))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    return _interpreted(value, path, limits)


def to_checkpoint(
    config: Ghn3Config, tensors: Mapping[str, Tensor], path: str | Path, name: str, source: str
) -> Checkpoint:
    """Write a hypernetwork as a checkpoint of this project; `source` says where it comes from.

    Raises:
        CheckpointError: a tensor is not finite, or the file cannot be written.
    """
    try:
        card = Card(
            kind=KIND,
            name=name,
            method=Method(name=METHOD, paper=PAPER),
            provenance=Provenance(
                recipe={RECIPE_KEY: config.model_dump(mode="json")}, data=DataSource(description=source)
            ),
        )
    except ValidationError as error:
        raise CheckpointError(f"{name!r} cannot be a checkpoint's name: {error}") from error
    return files.save(path, tensors, card)


def from_checkpoint(stored: Checkpoint) -> Ghn3:
    """Build the hypernetwork that a checkpoint holds.

    Raises:
        CheckpointError: the checkpoint is of another kind, or its tensors do not fit its configuration.
    """
    card = stored.card
    if card.kind != KIND or card.method.name != METHOD:
        raise CheckpointError(
            f"{card.name!r} is a {card.kind} made by {card.method.name}, expected a {KIND} made by {METHOD}: "
            "metainit import-ghn3 makes one of a published file"
        )
    try:
        config = Ghn3Config.model_validate(card.provenance.recipe.get(RECIPE_KEY))
    except ValidationError as error:
        raise CheckpointError(f"the card of {card.name!r} describes no GHN-3: {error}") from error
    _require_fit(config, stored.tensors, card.name)
    with torch.device("meta"):
        ghn = Ghn3(config)
    ghn.load_state_dict(dict(stored.tensors), assign=True)
    return ghn.eval()


def _from_torch(path: Path, limits: Limits) -> Any:
    """Read what `torch.save` wrote, with torch's own restricted reader."""
    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            _require_small(path, limits)
        # A run's options are kept beside the weights; a namespace has no behaviour of its own.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a hostile or damaged file provokes in the readers
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors and plain values: {reason}"
        ) from error


def _require_small(path: Path, limits: Limits) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > limits.file_bytes:
        raise CheckpointError(f"{path} unpacks to {unpacked} bytes, expected at most {limits.file_bytes}")


def _interpreted(value: Any, path: Path, limits: Limits) -> tuple[Ghn3Config, dict[str, Tensor]]:
    written = value.get("config") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and isinstance(value.get("state_dict"), Mapping):
        value = value["state_dict"]
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected a dictionary of tensors")
    if len(value) > limits.tensors:
        raise CheckpointError(f"{path} holds {len(value)} tensors, expected at most {limits.tensors}")
    tensors = {}
    for key, tensor in value.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(
                f"{path} holds {key!r}: {type(tensor).__name__}, expected names and tensors"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(f"{path} holds {key} of type {tensor.dtype}, expected floating point")
        tensors[_published_name(key)] = tensor
    if any(key.startswith("gnn.gru.") for key in tensors):
        raise CheckpointError(
            f"{path} is a GHN-2 (it has gnn.gru.*), which is not supported; choose one of the ghn3*.pt files"
        )
    config = _config(tensors, written if isinstance(written, Mapping) else {}, path)
    _require_fit(config, tensors, str(path))
    # Copied, because a mapped file can change under its tensors.
    whole = torch.contiguous_format
    return config, {
        key: tensor.detach().to(torch.float32, copy=True, memory_format=whole)
        for key, tensor in tensors.items()
    }


def _published_name(key: str) -> str:
    """Return a tensor's name with the tables of nodes beside the layers, as in the published files."""
    moved = key.removeprefix("gnn.0.")
    return moved if moved.startswith(_NODE_TABLES) else key


def _config(tensors: Mapping[str, Tensor], written: Mapping[Any, Any], path: Path) -> Ghn3Config:
    """Read the sizes off the tensors; what a written configuration says has to agree."""

    def shape(key: str, dimensions: int) -> tuple[int, ...]:
        found = tensors.get(key)
        if found is None or found.dim() != dimensions:
            size = "is missing" if found is None else f"has the shape {tuple(found.shape)}"
            raise CheckpointError(f"{path} is no GHN-3: its tensor {key} {size}")
        return tuple(found.shape)

    hidden = shape("embed.weight", 2)[1]
    block, _ = shape("decoder.conv.2.weight", 2)
    window, _ = shape("decoder.fc.0.weight", 2)
    layers = sum(bool(re.fullmatch(r"gnn\.\d+\.ln1\.weight", key)) for key in tensors)
    sizes = {
        "hidden": hidden,
        "layers": layers,
        "heads": shape("gnn.0.attn.proj_e.2.weight", 2)[0],
        "channels": math.isqrt(block),
        "kernel": math.isqrt(window // max(1, 4 * hidden)),
        "classes": shape("decoder.class_layer_predictor.1.weight", 2)[0],
        "final_norm": "ln.weight" in tensors,
    }
    said = {
        ours: written[theirs]
        for ours, theirs in (
            ("hidden", "hid"), ("layers", "layers"), ("heads", "heads"), ("classes", "num_classes"),
            ("final_norm", "layernorm"),
        )
        if isinstance(written.get(theirs), int)
    }  # fmt: skip
    differing = {key: value for key, value in said.items() if value != sizes[key]}
    if differing:
        found = {key: sizes[key] for key in differing}
        raise CheckpointError(f"{path} says {differing} of itself, but its tensors say {found}")
    choices = {
        ours: written[theirs]
        for ours, theirs in (("weight_norm", "weight_norm"), ("virtual_edges", "ve"))
        if theirs in written
    }
    try:
        return Ghn3Config.model_validate({**sizes, **choices})
    except ValidationError as error:
        raise CheckpointError(f"{path} is no GHN-3 that can be used: {error}") from error


def _require_fit(config: Ghn3Config, tensors: Mapping[str, Tensor], origin: str) -> None:
    with torch.device("meta"):
        expected = {key: value.shape for key, value in Ghn3(config).state_dict().items()}
    problems = [f"{key} is missing" for key in sorted(expected.keys() - tensors.keys())]
    problems += [f"{key} is unexpected" for key in sorted(tensors.keys() - expected.keys())]
    problems += [
        f"{key} has the shape {tuple(tensors[key].shape)}, expected {tuple(expected[key])}"
        for key in sorted(expected.keys() & tensors.keys())
        if tensors[key].shape != expected[key]
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{origin} does not fit a GHN-3 of its sizes: {'; '.join(problems[:5])}{more}")
