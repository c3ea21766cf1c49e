"""Read images from a folder, an npz file, arrays, or the photographs that ship with two libraries.

Everything comes out the same way: float32 arrays ``(height, width, channels)`` in [0, 1], each with a name.
Images are read one by one, so that a folder may hold more of them than fit into memory.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.io
import skimage.transform
from PIL import Image, ImageOps, UnidentifiedImageError

from metainit.errors import DataError, suggestion

Array = npt.NDArray[np.float32]
PHOTOGRAPHS = ("JPEG", "MPO")
"""Pillow's names of the formats that may be turned by a tag, or hold CMYK."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")

BUNDLED_TRAIN = (
    "astronaut", "hubble_deep_field", "immunohistochemistry", "retina", "brick", "camera",
    "grass", "gravel", "moon", "stereo_motorcycle",
)  # fmt: skip
BUNDLED_VALIDATION = ("clock", "coins", "rocket", "flower.jpg")
BUNDLED_TEST = ("chelsea", "coffee", "china.jpg")


@dataclass(frozen=True)
class NamedImage:
    """One image, where it came from, and the split that its source asks for (None: not said)."""

    name: str
    pixels: Array
    split: int | None = None


def as_pixels(values: npt.NDArray[Any], name: str) -> Array:
    """Return an image as float32 ``(height, width, channels)`` in [0, 1].

    Integers of 8 and 16 bits are divided by the largest value of their type; floats must already lie in
    [0, 1]. Other integers do not say what white is.

    Raises:
        DataError: the array has another number of axes or type, is empty, not finite, or out of range.

    Example:
        >>> as_pixels(np.full((2, 3), 255, dtype=np.uint8), 'white').shape
        (2, 3, 1)
    """
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3 or values.shape[-1] > 16 or 0 in values.shape:
        raise DataError(
            f"{name}: expected (height, width) or (height, width, channels) with at most 16 channels, "
            f"got shape {values.shape}"
        )
    if values.dtype == np.bool_:
        return values.astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        if values.dtype not in (np.uint8, np.uint16):
            raise DataError(
                f"{name}: has integers of type {values.dtype}, expected uint8 or uint16 (whose largest value "
                "is white) or floats in [0, 1]: convert it"
            )
        return (values / np.float32(np.iinfo(values.dtype).max)).astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(f"{name}: has NaN or infinite values; mend it, or leave it out")
    if values.min() < -1e-6 or values.max() > 1 + 1e-6:
        raise DataError(
            f"{name}: values lie in [{values.min():.4g}, {values.max():.4g}], expected [0, 1] for floats: "
            "divide by the largest possible value, or store integers"
        )
    return values.astype(np.float32)


def with_channels(pixels: Array, channels: int, name: str) -> Array:
    """Return the image with the asked number of channels: grey to colour, colour to grey, alpha dropped.

    Raises:
        DataError: there is no rule for the two numbers of channels.
    """
    have = pixels.shape[-1]
    if have == channels:
        return pixels
    if have in (2, 4):
        return with_channels(pixels[..., : have - 1], channels, name)
    if have == 1 and channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    if have == 3 and channels == 1:
        luma = np.asarray([0.2125, 0.7154, 0.0721], dtype=np.float32)
        return (pixels @ luma)[..., None].astype(np.float32)
    raise DataError(
        f"{name}: has {have} channels, expected {channels}, and only grey becomes colour or colour grey; "
        f"convert the file, or choose channels={have} and a network for them"
    )


def resized(pixels: Array, height: int, width: int) -> Array:
    """Resize with anti-aliasing (the aspect ratio is not kept)."""
    if pixels.shape[:2] == (height, width):
        return pixels
    out: Any = skimage.transform.resize(pixels, (height, width), order=1, anti_aliasing=True)  # type: ignore[no-untyped-call]
    return np.asarray(np.clip(out, 0, 1), dtype=np.float32)


def centre_cropped(pixels: Array, height: int, width: int) -> Array:
    """Scale so that the image just covers the frame, then cut its centre out."""
    factor = max(height / pixels.shape[0], width / pixels.shape[1])
    rows, columns = round(pixels.shape[0] * factor), round(pixels.shape[1] * factor)
    scaled = resized(pixels, max(rows, height), max(columns, width))
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return scaled[top : top + height, left : left + width]


def block_averaged(pixels: Array, height: int, width: int, name: str) -> Array:
    """Return the mean over each block of pixels: of equal blocks, which have to fill the image.

    Raises:
        DataError: they do not.

    Example:
        >>> block_averaged(np.float32([[[0.0], [1.0], [0.5], [0.5]]]), 1, 2, 'row').tolist()
        [[[0.5], [0.5]]]
    """
    rows, columns, channels = pixels.shape
    if rows % height or columns % width:
        raise DataError(
            f"{name}: {rows}x{columns} pixels do not divide into {height}x{width} equal blocks: set fit to "
            "resize or crop, or choose another height and width"
        )
    blocks = pixels.reshape(height, rows // height, width, columns // width, channels)
    means: Array = blocks.mean((1, 3), dtype=np.float64).astype(np.float32)
    return means


def read_image(path: Path) -> NamedImage:
    """Read one image file.

    Raises:
        DataError: the file cannot be read as an image, or has NaN values.
    """
    stream = io.BytesIO()
    try:
        stream.write(path.read_bytes())
        stream.seek(0)
        with warnings.catch_warnings():
            # Of the last reader that is tried on a damaged file.
            warnings.filterwarnings("ignore", "The legacy `DICOM` plugin", DeprecationWarning)
            # From memory: the readers leave a file open that none of them can read.
            values = _decoded(stream)
    except (
        OSError, ValueError, SyntaxError, TypeError, EOFError, struct.error, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        reason = (str(error).splitlines() or [type(error).__name__])[0].replace(f"`{stream}``", "it")
        raise DataError(f"{path}: cannot be read as an image: {reason}") from error
    if values.ndim == 4 and len(values) == 1:
        values = values[0]  # formats that can hold several pictures put an axis in front
    return NamedImage(str(path), as_pixels(values, str(path)))


def _decoded(stream: io.BytesIO) -> npt.NDArray[Any]:
    """Decode an image; photographs come upright and in grey or RGB, whatever the camera wrote."""
    try:
        with Image.open(stream) as picture:
            if picture.format in PHOTOGRAPHS:
                upright = ImageOps.exif_transpose(picture)
                return np.asarray(upright if upright.mode in ("L", "RGB") else upright.convert("RGB"))
    except UnidentifiedImageError:
        pass  # scikit-image has readers for more than Pillow knows
    stream.seek(0)
    return np.asarray(skimage.io.imread(stream))


def read_folder(folder: Path, skip: Callable[[str, str], None] | None = None) -> Iterator[NamedImage]:
    """Read every image below a folder, in the order of their names.

    Args:
        folder: it and all folders below it.
        skip: called with the path of an unreadable file and with the reason; None refuses such files.

    Raises:
        DataError: the folder is missing or has no image, or a file is unreadable and that is refused.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    skipped = 0
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            if skip is None:
                raise DataError(f"{error}; set unreadable=skip to leave such files out") from error
            skip(str(path), str(error))
            skipped += 1
        else:
            yield NamedImage(str(path.relative_to(folder)), image.pixels)
    if skipped == len(paths):
        reason = f"all {skipped} images were skipped" if skipped else "it has no image"
        raise DataError(f"{folder}: {reason}; expected files ending in {', '.join(SUFFIXES)}")


def read_npz(path: Path, key: str, split_key: str | None = None) -> Iterator[NamedImage]:
    """Read an array ``(images, height, width[, channels])`` of an npz file (never a pickled one).

    Raises:
        DataError: the file or the array is missing or has another shape.
    """
    arrays = load_npz(path, [key] + ([split_key] if split_key else []))
    values = arrays[key]
    if values.ndim not in (3, 4) or len(values) == 0:
        raise DataError(
            f"{path}: array {key!r} has shape {values.shape}, expected (images, height, width) "
            "or (images, height, width, channels)"
        )
    splits = arrays[split_key] if split_key else None
    if splits is not None and splits.shape != (len(values),):
        raise DataError(f"{path}: array {split_key!r} has shape {splits.shape}, expected ({len(values)},)")
    for i, v in enumerate(values):
        split = None if splits is None else int(splits[i])
        yield NamedImage(f"{path.name}[{i}]", as_pixels(v, f"{path}: {key}[{i}]"), split)


def load_npz(path: Path, keys: Sequence[str] | None) -> dict[str, npt.NDArray[Any]]:
    """Read named arrays of an npz file, all of them where `keys` is None.

    Raises:
        DataError: the file cannot be read, or an array is missing.
    """
    try:
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream) as archive:
            wanted = archive.files if keys is None else keys
            for key in wanted:
                if key not in archive.files:
                    raise DataError(f"{path}: has no array {key!r}; {suggestion(key, archive.files)}")
            return {key: archive[key] for key in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an npz file: {error}") from error


def listed_arrays(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in an npz file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream, np.lib.npyio.NpzFile(stream) as archive:
            return tuple(archive.files)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as an npz file: {error}") from error


def bundled_photographs() -> list[NamedImage]:
    """Return the photographs that ship inside scikit-image and scikit-learn; no download.

    `split` is 0 for training, 1 for validation and 2 for test: the three share no photograph.

    Raises:
        DataError: scikit-learn, which holds two of them, is not installed.
    """
    import skimage.data

    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise DataError("the bundled photographs need scikit-learn: pip install 'metainit[ray]'") from error
    images = []
    for split, names in enumerate((BUNDLED_TRAIN, BUNDLED_VALIDATION, BUNDLED_TEST)):
        for name in names:
            if name.endswith(".jpg"):
                values = load_sample_image(name)
            else:
                values = getattr(skimage.data, name)()
                values = values[0] if isinstance(values, tuple) else values
            pixels = with_channels(as_pixels(np.asarray(values), name), 3, name)
            images.append(NamedImage(name, pixels, split))
    return images


def compact(pixels: Array) -> npt.NDArray[np.float32] | npt.NDArray[np.uint8]:
    """Return the image as uint8 where `as_pixels` gives the very same floats again, else as it is.

    Example:
        >>> compact(np.asarray([[[0.0], [1.0]]], dtype=np.float32)).tolist()
        [[[0], [255]]]
    """
    small = np.rint(pixels * 255).astype(np.uint8)
    return small if np.array_equal(as_pixels(small, "image"), pixels) else pixels


class Fingerprint:
    """The SHA-256 of images, their names and the rules that make tasks of them, one image at a time."""

    def __init__(self, *rules: str) -> None:
        self._hash = hashlib.sha256("\x1f".join(rules).encode())

    def add(self, image: NamedImage) -> None:
        """Add the next image."""
        self._hash.update(f"{image.name}\x1f{image.pixels.shape}\x1f{image.split}".encode())
        self._hash.update(np.ascontiguousarray(image.pixels).data)

    def hexdigest(self) -> str:
        """Return the hash of what has been added so far."""
        return self._hash.hexdigest()
