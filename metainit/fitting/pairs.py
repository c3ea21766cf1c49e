"""Find the images of a folder, the masks of some of them, and the truth of others.

Two layouts are known, told apart by whether there is a folder ``images/``:

``images/`` beside ``masks/`` (or ``labels/``)
    ``masks/NAME.png``, or ``masks/CLASS/NAME.png`` where there is one class, belongs to ``images/NAME.*``.
images and masks side by side
    ``NAME_mask.*``, or else ``NAME.png`` beside an image of another type, belongs to ``NAME.*``.

Images without a mask are the ones to be segmented. The truth of these, to be judged by, lies in a folder of
its own (``truth/``, or one that is given) as ``NAME.png`` or ``NAME_mask.png``. Subfolders are part of
a name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metainit.domains.images import SUFFIXES, Array, with_channels
from metainit.domains.masks import Mask, as_mask, read_labels, read_pixels
from metainit.domains.pairing import MASK, image_and_mask, put_mask
from metainit.domains.segmentation_loss import IGNORE
from metainit.errors import DataError

IMAGES, MASKS, LABELS, TRUTH = "images", "masks", "labels", "truth"


@dataclass(frozen=True)
class Pairs:
    """Files by the names of the images: with a mask, without one, and the truth of those without."""

    labelled: Mapping[str, tuple[Path, Path]]
    unlabelled: Mapping[str, Path]
    truth: Mapping[str, Path]


def find_pairs(folder: Path, truth: Path | None = None, ignored: Iterable[Path] = ()) -> Pairs:
    """Return which files of a folder belong together.

    Args:
        folder: what is to be segmented.
        truth: where the truth lies; ``truth/`` in the folder, if there is one, unless given.
        ignored: folders whose files are none of the user's.

    Raises:
        DataError: there is no such folder or no image, a mask has no image, an image has two masks, or two
            files have one name.
    """
    for needed in (folder, truth):
        if needed is not None and not needed.is_dir():
            raise DataError(f"{needed}: no such folder")
    known = truth_of(folder, truth)
    outside = [*ignored, *([known] if known else [])]
    if (folder / IMAGES).is_dir():
        images = _by_name(folder / IMAGES, outside)
        masks = _masks_beside(folder, images, outside)
    else:
        images, masks = _side_by_side(folder, outside)
    if not images:
        raise DataError(f"{folder}: there are no images ({', '.join(SUFFIXES)})")
    _require_images(masks, images)
    true = {} if known is None else _masks_in(known, ignored)
    _require_images(true, images)
    return Pairs(
        {name: (path, masks[name]) for name, path in images.items() if name in masks},
        {name: path for name, path in images.items() if name not in masks},
        {name: path for name, path in true.items() if name not in masks},
    )


def truth_of(folder: Path, truth: Path | None = None) -> Path | None:
    """Return where the truth lies: in the given folder, else in ``truth/`` beside the images, if that is."""
    return truth or (folder / TRUTH if (folder / TRUTH).is_dir() else None)


def read_image_of(path: Path, channels: int, max_pixels: int) -> Array:
    """Read an image ``(height, width, channels)`` with a network's number of channels.

    Raises:
        DataError: it cannot be read, is too large, or has a number of channels without a rule.
    """
    return with_channels(read_pixels(path, max_pixels), channels, str(path))


def read_mask_of(path: Path, shape: tuple[int, ...], classes: int, ignore: int, max_pixels: int) -> Mask:
    """Read the classes of an image's pixels ``(height, width)``: 0 for the background, 255 for unknown.

    With two classes the file is the mask of one class, however that is marked; with more it holds the numbers
    of the classes, and `ignore` where the class is not known.

    Raises:
        DataError: it cannot be read, has another size than its image, or values that are no classes.
    """
    values = read_labels(path, max_pixels)
    if values.shape != shape:
        raise DataError(f"{path}: has {values.shape} pixels, its image has {shape}; they have to be equal")
    if classes == 2:
        return as_mask(values, str(path))
    strange = np.unique(values[((values < 0) | (values >= classes)) & (values != ignore)])
    if strange.size:
        raise DataError(
            f"{path}: has labels {strange[:5].tolist()}, expected classes 0 to {classes - 1}, or {ignore} "
            "where the class is not known"
        )
    return np.where(values == ignore, IGNORE, values).astype(np.uint8)


def content_of(*paths: Path) -> str:
    """Return the SHA-256 of files, by which a changed one is told."""
    total = hashlib.sha256()
    for path in paths:
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _pictures(folder: Path, outside: Iterable[Path]) -> list[Path]:
    hidden = [path.resolve() for path in outside]
    found = []
    for path in sorted(folder.rglob("*")):
        whole = path.resolve()
        if path.suffix.lower() not in SUFFIXES or not path.is_file() or path.name.startswith("."):
            continue
        if not any(other in whole.parents for other in hidden):
            found.append(path)
    return found


def _by_name(folder: Path, outside: Iterable[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _pictures(folder, outside):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{path}: has the same name as {found[name].name}; rename one")
        found[name] = path
    return found


def _masks_in(folder: Path, outside: Iterable[Path]) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for name, path in _by_name(folder, outside).items():
        put_mask(masks, name, path)
    return masks


def _masks_beside(folder: Path, images: Mapping[str, Path], outside: Iterable[Path]) -> dict[str, Path]:
    places = [folder / name for name in (MASKS, LABELS) if (folder / name).is_dir()]
    if len(places) == 2:
        raise DataError(f"{folder}: there are both {MASKS}/ and {LABELS}/; take one of them away")
    if not places:
        return {}
    masks = _masks_in(places[0], outside)
    classes = {name.split("/")[0] for name in masks}
    if masks and not set(masks) & set(images) and all("/" in name for name in masks):
        if len(classes) > 1:
            raise DataError(
                f"{places[0]}: has masks of the classes {', '.join(sorted(classes)[:5])}; a fit marks one: "
                f"give the masks of one, or label maps in {LABELS}/ and a network of more classes"
            )
        masks = {name.partition("/")[2]: path for name, path in masks.items()}
    return masks


def _side_by_side(folder: Path, outside: Iterable[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    masks: dict[str, Path] = {}
    pictures: dict[str, list[Path]] = {}
    for path in _pictures(folder, outside):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if path.stem.endswith(MASK):
            put_mask(masks, name, path)
        else:
            pictures.setdefault(name, []).append(path)
    images: dict[str, Path] = {}
    for name, same in pictures.items():
        images[name], mask = image_and_mask(same, masks.get(name))
        if mask is not None:
            masks[name] = mask
    return images, masks


def _require_images(masks: Mapping[str, Path], images: Mapping[str, Path]) -> None:
    for name in sorted(set(masks) - set(images)):
        raise DataError(f"{masks[name]}: there is no image {name}.* for this mask")
