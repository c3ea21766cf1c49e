"""Signals to fit, read from a user's files: images, and sinograms from a scanner."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from metainit.domains import images as reading
from metainit.domains.base import Domain, TaskBatch
from metainit.domains.ct import CTConfig, CTDomain
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.errors import DataError

SINOGRAM = ".npz"
GEOMETRY = ("size", "field_of_view", "detectors")
"""What a sinogram takes over from the domain that its prior was learned on."""


@dataclass(frozen=True)
class Signal:
    """One file to fit: a task, its domain, and where it came from."""

    path: Path
    domain: Domain
    batch: TaskBatch

    @property
    def form(self) -> tuple[Any, ...]:
        """What signals must have in common to be fitted at once: the names and shapes of their tensors."""
        parts = (self.batch.support, self.batch.query, self.batch.shared)
        return tuple((k, tuple(v.shape)) for part in parts for k, v in sorted(part.items()))

    @property
    def points(self) -> int:
        """The number of coordinates that a step evaluates the network at."""
        return max(len(v) for k, v in self.batch.shared.items() if k.endswith("coordinates"))


def together(signals: list[Signal]) -> TaskBatch:
    """Return signals of one form as one batch of tasks."""
    first = signals[0].batch
    support = {k: torch.cat([s.batch.support[k] for s in signals]) for k in first.support}
    query = {k: torch.cat([s.batch.query[k] for s in signals]) for k in first.query}
    return TaskBatch(support, query, first.shared, tuple(i for s in signals for i in s.batch.ids))


def read_signal(path: Path, channels: int, geometry: Mapping[str, Any] | None = None) -> Signal:
    """Read one file to fit: an image, or an npz file with ``sinogram`` and ``angles``.

    An image keeps its own size; a grey image beside it named ``<name>.mask.png`` says which pixels are known.

    Args:
        path: the file.
        channels: of the network; images are turned into as many.
        geometry: arguments of `CTConfig` for sinograms; by default the slice is as wide as the detector.

    Raises:
        DataError: the file cannot be read, or does not fit the network or the geometry.
    """
    try:
        if path.suffix != SINOGRAM:
            return _image(path, channels)
        if channels != 1:
            raise DataError(f"{path}: a sinogram needs a network with 1 output, this one has {channels}")
        return _sinogram(path, geometry or {})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors())
        raise DataError(f"{path}: cannot be fitted: {said}") from error


def content_of(path: Path) -> str:
    """Return the SHA-256 of a file to fit and of its mask, by which a changed one is told."""
    total = hashlib.sha256()
    for part in (path, _mask_of(path)):
        if part.is_file():
            total.update(hashlib.sha256(part.read_bytes()).digest())
    return total.hexdigest()


def _is_signal(path: Path) -> bool:
    known = path.suffix.lower() in (*reading.SUFFIXES, SINOGRAM)
    return known and ".mask" not in path.suffixes and not path.name.startswith(".")


def _mask_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.mask.png")


def _image(path: Path, channels: int) -> Signal:
    pixels = reading.with_channels(reading.read_image(path).pixels, channels, str(path))
    height, width = pixels.shape[:2]
    domain = ImageDomain(ImageConfig(height=height, width=width, channels=channels), images=[])
    mask = _mask_of(path)
    known = None
    if mask.is_file():
        known = torch.from_numpy(
            reading.resized(reading.read_image(mask).pixels[..., :1], height, width) > 0.5
        )
        if not known.any():
            raise DataError(f"{mask}: no pixel is known; expected some above one half")
    return Signal(path, domain, domain.measured(torch.from_numpy(pixels)[None], known, [path.name]))


def _sinogram(path: Path, geometry: Mapping[str, Any]) -> Signal:
    arrays = reading.load_npz(path, ["sinogram", "angles"])
    try:
        projections, angles = (
            torch.from_numpy(np.asarray(arrays[name], dtype=np.float32)) for name in ("sinogram", "angles")
        )
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected numbers: {error}") from error
    if projections.dim() != 2:
        raise DataError(f"{path}: sinogram has shape {tuple(projections.shape)}, expected (views, detectors)")
    domain = CTDomain(CTConfig.model_validate({"size": projections.shape[-1], **geometry}))
    return Signal(path, domain, domain.measured(projections[None], angles, [path.name]))


def signal_paths(path: Path) -> list[Path]:
    """Return the files to fit at a path, in the order of their names.

    Raises:
        DataError: there are none.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    chosen = [p for p in found if _is_signal(p)]
    if not chosen:
        raise DataError(
            f"{path}: nothing to fit; expected images ({', '.join(reading.SUFFIXES)}) or npz files with the "
            "arrays sinogram (views, detectors) and angles (views, degrees)"
        )
    return chosen
