"""Real CT slices from an npz file or a folder, split so that a patient is never in two splits."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from metainit.card import Record
from metainit.domains.base import Split
from metainit.domains.splits import carve, groups_of, split_by_group
from metainit.errors import DataError, suggestion

SUFFIXES = (".npy", ".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
_GREY_MODES = ("1", "L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_SPLITS: dict[int, Split] = {0: "train", 1: "test", 2: "test"}


@dataclass(frozen=True)
class Slices:
    """Slices of one size, each with its name, group (patient) and split."""

    images: Tensor
    """``(slices, size, size)``, float32 in [0, 1]."""
    names: tuple[str, ...]
    groups: tuple[str, ...]
    splits: tuple[Split, ...]
    digest: str
    """sha256 of the values as they were stored, before resizing and windowing."""

    def positions(self, split: Split) -> tuple[int, ...]:
        """Return where the slices of a split are in `images`, in order."""
        return tuple(i for i, own in enumerate(self.splits) if own == split)


class SliceRules(Record):
    """How arrays become slices.

    Attributes:
        array: name of the npz array of slices, ``(slices, side, side)``.
        split_array: npz array with 0 (train) and 1 or 2 (test) for each slice; without it slices
            are split by group.
        group_array: npz array that names the patient of each slice; without it each slice is its
            own group.
        window: Hounsfield units that map to 0 and 1, such as (-1000, 400); None for grey values.
        size: height and width of the slices, in pixels; they are resized to it, anti-aliased.
        validation: share of the training groups (patients) kept for validation.
        test: share of the groups kept for test; not used with `split_array`.
        seed: of the split by group.
    """

    array: str | None = None
    split_array: str | None = None
    group_array: str | None = None
    window: tuple[float, float] | None = None
    size: int = Field(default=64, ge=2, le=4096)
    validation: float = Field(default=0.2, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _window_is_a_range(self) -> Self:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise DataError(f"window is {list(self.window)}, expected [lower, upper] in Hounsfield units")
        return self


def load_slices(path: Path, rules: SliceRules) -> Slices:
    """Load slices from an npz file, or from a folder of images and npy arrays.

    In a folder, each file is one slice and each top-level subfolder one patient, with all that lies
    below it; files that lie directly in the folder count as one patient each. Values are Hounsfield
    units where `rules.window` is given (its ends map to 0 and 1, the rest is clipped), else grey
    values (integers are divided by the largest value of their type, floats lie in [0, 1]). Slices
    are resized before the window is applied.

    Args:
        path: the npz file or the folder.
        rules: size, window, names of the arrays, shares of the splits.

    Raises:
        DataError: a file or an array is missing or unreadable, holds NaN, has the wrong shape or
            range, or a patient would be in two splits.
    """
    if path.is_dir():
        return _from_folder(path, rules)
    if path.is_file() and path.suffix == ".npz":
        return _from_npz(path, rules)
    what = "does not exist" if not path.exists() else "is neither a folder nor an .npz file"
    raise DataError(f"{path} {what}; expected a folder of slices or an .npz file with an array of slices")


def _from_npz(path: Path, rules: SliceRules) -> Slices:
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw):
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                stack = _array(path, file, rules.array, "array")
                images = _prepare(f"{path}, array {rules.array!r}", stack, rules)
                split = _column(path, file, rules.split_array, "split_array", len(images))
                group = _column(path, file, rules.group_array, "group_array", len(images))
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an .npz file of plain arrays: {error}; save it again"
        ) from error
    names = tuple(f"{path.stem}-{i}" for i in range(len(images)))
    groups = names if group is None else tuple(str(value) for value in group.tolist())
    if split is None:
        return Slices(
            images,
            names,
            groups,
            split_by_group(groups, rules.validation, rules.test, rules.seed),
            _digest(stack),
        )
    unknown = sorted(set(split.tolist()) - set(_SPLITS))
    if unknown:
        raise DataError(
            f"{path}, array {rules.split_array!r}: expected 0 (train) and 1 or 2 (test), came {unknown}"
        )
    given = tuple(_SPLITS[int(value)] for value in split.tolist())
    both = sorted(groups_of(groups, given, "train") & groups_of(groups, given, "test"))
    if both:
        raise DataError(
            f"{path}: groups {both[:5]} of {rules.group_array!r} are both in train and in test of "
            f"{rules.split_array!r}; correct the file, or leave split_array out to split by group"
        )
    splits = carve(groups, given, "validation", rules.validation, rules.seed)
    return Slices(images, names, groups, splits, _digest(stack))


def _array(path: Path, file: Any, key: str | None, option: str) -> NDArray[Any]:
    names = sorted(file.files)
    if key is None:
        raise DataError(f"{path}: say which array holds the slices ({option}); {suggestion('', names)}")
    if key not in names:
        raise DataError(f"{path} has no array {key!r} ({option}); {suggestion(key, names)}")
    try:
        return np.asarray(file[key])
    except ValueError as error:
        raise DataError(
            f"{path}, array {key!r}: expected numbers or text, came pickled objects, which are "
            "never loaded; save it again as a plain array"
        ) from error


def _column(path: Path, file: Any, key: str | None, option: str, count: int) -> NDArray[Any] | None:
    """Return an array with one value for each slice, None where none is asked for."""
    if key is None:
        return None
    column = _array(path, file, key, option)
    if column.shape != (count,):
        raise DataError(
            f"{path}, array {key!r} ({option}): expected one value for each of the {count} slices, "
            f"shape ({count},), came {column.shape}"
        )
    return column


def _from_folder(path: Path, rules: SliceRules) -> Slices:
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path} holds no slices; expected files that end in {', '.join(SUFFIXES)}")
    arrays = [_read(file) for file in files]
    shapes = Counter(array.shape for array in arrays)
    common = shapes.most_common(1)[0][0]
    for file, array in zip(files, arrays, strict=True):
        if array.shape != common:
            raise DataError(
                f"{file}: expected {common} pixels as in {shapes[common]} of {len(files)} files, "
                f"came {array.shape}; resample it, or keep other sizes in other folders"
            )
    kinds = {array.dtype for array in arrays}
    if len(kinds) > 1:
        raise DataError(f"{path}: expected one pixel type, came {sorted(map(str, kinds))}; store all alike")
    stack = np.stack(arrays)
    images = _prepare(str(path), stack, rules, tuple(str(file) for file in files))
    names = tuple(file.relative_to(path).as_posix() for file in files)
    groups = tuple(name.split("/", 1)[0] for name in names)
    return Slices(
        images,
        names,
        groups,
        split_by_group(groups, rules.validation, rules.test, rules.seed),
        _digest(stack),
    )


def _read(file: Path) -> NDArray[Any]:
    try:
        with file.open("rb") as raw:
            if file.suffix.lower() == ".npy":
                array = np.asarray(np.load(raw, allow_pickle=False))
            else:
                array = _grey(Image.open(raw))
    except Exception as error:  # decoders raise errors of many kinds; all mean the same to the user
        raise DataError(f"{file} cannot be read: {error}; repair it or take it out") from error
    if array.ndim != 2:
        raise DataError(f"{file}: expected one grey slice (height, width), came {array.shape}")
    return array


def _grey(image: Image.Image) -> NDArray[Any]:
    """Return the pixels of a picture with one channel, in the depth it was stored in."""
    if image.mode not in _GREY_MODES:
        raise ValueError(f"expected a grey picture, came colour mode {image.mode!r}")
    pixels = np.asarray(image)
    # Some versions of Pillow widen the 16 bits of a grey PNG to 32.
    return pixels.astype(np.uint16) if image.mode == "I" and image.format == "PNG" else pixels


def _prepare(
    label: str, stack: NDArray[Any], rules: SliceRules, names: Sequence[str] | None = None
) -> Tensor:
    """Check, resize and window a stack: float32 ``(slices, size, size)`` in [0, 1]."""
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or 0 in stack.shape:
        raise DataError(
            f"{label}: expected square slices (slices, side, side), came {stack.shape}; crop or pad them"
        )
    if not (np.issubdtype(stack.dtype, np.number) or stack.dtype == bool):
        raise DataError(f"{label}: expected numbers, came {stack.dtype}")
    bad = np.flatnonzero(~np.isfinite(stack).all(axis=(1, 2)))
    if bad.size:
        which = names[bad[0]] if names else f"slice {bad[0]}"
        raise DataError(
            f"{label}: expected finite values, came NaN or infinity in {bad.size} slices, "
            f"first {which}; repair or remove them"
        )
    lower, upper = _range(label, stack, rules.window)
    values = _resize(stack.astype(np.float32), rules.size)
    return torch.from_numpy(np.clip((values - lower) / (upper - lower), 0, 1).astype(np.float32))


def _range(label: str, stack: NDArray[Any], window: tuple[float, float] | None) -> tuple[float, float]:
    if window is not None:
        return window
    if stack.dtype == bool:
        return 0.0, 1.0
    low, high = float(stack.min()), float(stack.max())
    limit = float(np.iinfo(stack.dtype).max) if np.issubdtype(stack.dtype, np.integer) else 1.0
    if low < 0 or high > limit:
        raise DataError(
            f"{label}: expected grey values in [0, {limit:g}] since no window is given, came "
            f"[{low:g}, {high:g}]; for Hounsfield units give window, such as [-1000, 400]"
        )
    return 0.0, limit


def _resize(stack: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    from skimage.transform import resize

    if stack.shape[1] == size:
        return stack
    scale: Callable[..., Any] = resize
    options = {"order": 1, "preserve_range": True, "anti_aliasing": size < stack.shape[1]}
    return np.asarray(scale(stack, (len(stack), size, size), **options), dtype=np.float32)


def _digest(stack: NDArray[Any]) -> str:
    header = f"{stack.dtype.str}{stack.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(stack).tobytes()).hexdigest()
