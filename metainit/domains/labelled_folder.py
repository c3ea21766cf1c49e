"""Read a folder of images and masks; which files belong together follows from their places and names.

Three layouts are known, and told apart by the folders there are:

``images/`` and ``masks/``
    ``masks/CLASS/NAME.png`` is the mask of CLASS in ``images/NAME.*``; masks that lie directly in ``masks/``
    are of a class called `foreground`.
``images/`` and ``labels/``
    ``labels/NAME.png`` is the label map of ``images/NAME.*``; line n of ``classes.txt``, if there is one,
    names class n, from 0, the background, on.
class folders
    ``CLASS/NAME.*`` is an image and ``CLASS/NAME_mask.*``, or else ``CLASS/NAME.png`` beside an image of
    another type, its mask, as in FSS-1000. A folder without subfolders is one such class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from metainit.domains.images import SUFFIXES
from metainit.domains.masks import (
    LabelledImage,
    Mask,
    Unusable,
    as_mask,
    masks_of,
    read_labels,
    read_pixels,
)
from metainit.domains.pairing import MASK, image_and_mask, put_mask
from metainit.errors import DataError

FOREGROUND = "foreground"


@dataclass(frozen=True)
class FolderRules:
    """How files are read: the label of unknown pixels, and how large a file may be."""

    ignore: int = 255
    max_pixels: int = 50_000_000


def read_labelled_folder(folder: Path, rules: FolderRules, unusable: Unusable) -> Iterator[LabelledImage]:
    """Yield the labelled images of a folder in the order of their names.

    Raises:
        DataError: the folder is missing or has two layouts at once, or two classes have one name; or, where
            that is refused, a file cannot be read, has no partner, two partners, or another size than its
            partner, or a mask is empty.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    images, masks, labels = (folder / name for name in ("images", "masks", "labels"))
    if images.is_dir() and masks.is_dir() and labels.is_dir():
        raise DataError(f"{folder}: there are both {masks.name}/ and {labels.name}/; take one of them away")
    if images.is_dir() and masks.is_dir():
        yield from _with_masks(images, masks, rules, unusable)
    elif images.is_dir() and labels.is_dir():
        yield from _with_labels(images, labels, folder / "classes.txt", rules, unusable)
    else:
        for own in _class_folders(folder) or [folder]:
            yield from _class_folder(own, rules, unusable)


def _with_masks(images: Path, masks: Path, rules: FolderRules, unusable: Unusable) -> Iterator[LabelledImage]:
    of_class: dict[str, dict[str, Path]] = defaultdict(dict)
    for own in _class_folders(masks):
        _put_masks(of_class[own.name], _by_stem(own, unusable), unusable)
    _put_masks(of_class[FOREGROUND], _by_stem(masks, unusable, deep=False), unusable)
    marked: dict[str, dict[str, Path]] = defaultdict(dict)
    for own_name, paths in of_class.items():
        for stem, path in paths.items():
            marked[stem][own_name] = path
    pictures = _by_stem(images, unusable)
    for stem in sorted(marked.keys() - pictures.keys()):
        path = next(iter(marked[stem].values()))
        unusable(str(path), DataError(f"{path}: there is no image {images / stem}.* for this mask"))
    for stem, path in pictures.items():
        if stem not in marked:
            unusable(
                str(path), DataError(f"{path}: there is no mask {masks}/CLASS/{stem}.png for this image")
            )
            continue
        yield from _pair(path, marked[stem], stem, rules, unusable)


def _class_folder(folder: Path, rules: FolderRules, unusable: Unusable) -> Iterator[LabelledImage]:
    files = _pictures(folder, deep=False)
    masks: dict[str, Path] = {}
    for path in (p for p in files if p.stem.endswith(MASK)):
        _put_masks(masks, {path.stem: path}, unusable)
    rest: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if not path.stem.endswith(MASK):
            rest[path.stem].append(path)
    for stem in sorted(masks.keys() - rest.keys()):
        unusable(str(masks[stem]), DataError(f"{masks[stem]}: there is no image {stem}.* beside this mask"))
    for stem, same in rest.items():
        try:
            image, mask = image_and_mask(same, masks.get(stem))
        except DataError as error:
            unusable(str(same[0]), error)
            continue
        if mask is None:
            unusable(
                str(image),
                DataError(
                    f"{image}: there is no mask beside this image; expected {stem}{MASK}.png, or "
                    f"{stem}.png beside an image of another type"
                ),
            )
            continue
        yield from _pair(image, {folder.name: mask}, f"{folder.name}/{stem}", rules, unusable)


def _pair(
    path: Path, marked: dict[str, Path], name: str, rules: FolderRules, unusable: Unusable
) -> Iterator[LabelledImage]:
    """Yield an image with those of its masks that can be used, if there are any."""
    try:
        pixels = read_pixels(path, rules.max_pixels)
    except DataError as error:
        unusable(str(path), error)
        return
    masks: dict[str, Mask] = {}
    for own, place in marked.items():
        try:
            mask = as_mask(read_labels(place, rules.max_pixels), str(place))
            _check(mask.shape, pixels.shape[:2], place, path)
            if not (mask == 1).any():
                raise DataError(
                    f"{place}: the mask is empty; take it away where the class is not in the image"
                )
        except DataError as error:
            unusable(str(place), error)
        else:
            masks[own] = mask
    if masks:
        yield LabelledImage(name, pixels, masks)


def _with_labels(
    images: Path, labels: Path, classes: Path, rules: FolderRules, unusable: Unusable
) -> Iterator[LabelledImage]:
    names = _class_names(classes) if classes.is_file() else None
    maps = _by_stem(labels, unusable)
    pictures = _by_stem(images, unusable)
    for stem in sorted(maps.keys() ^ pictures.keys()):
        path, missing = (maps[stem], images) if stem in maps else (pictures[stem], labels)
        unusable(str(path), DataError(f"{path}: there is no {missing / stem}.* for this file"))
    for stem, path in pictures.items():
        if stem not in maps:
            continue
        try:
            pixels = read_pixels(path, rules.max_pixels)
            values = read_labels(maps[stem], rules.max_pixels)
            _check(values.shape, pixels.shape[:2], maps[stem], path)
            masks = masks_of(values, names, rules.ignore, str(maps[stem]))
        except DataError as error:
            unusable(str(path), error)
        else:
            yield LabelledImage(stem, pixels, masks)


def _class_names(path: Path) -> dict[int, str]:
    """Return the names of classes by their numbers; line 0 is the background's."""
    names: dict[int, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        name = line.strip()
        if number == 0 or not name:
            continue
        if name in names.values():
            earlier = next(n for n, other in names.items() if other == name)
            raise DataError(f"{path}: classes {earlier} and {number} are both called {name!r}; rename one")
        names[number] = name
    return names


def _put_masks(masks: dict[str, Path], found: Mapping[str, Path], unusable: Unusable) -> None:
    for name, path in found.items():
        try:
            put_mask(masks, name, path)
        except DataError as error:
            unusable(str(path), error)


def _by_stem(folder: Path, unusable: Unusable, deep: bool = True) -> dict[str, Path]:
    """Return the picture files below a folder by their path without suffix."""
    found: dict[str, Path] = {}
    for path in _pictures(folder, deep):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            unusable(str(path), DataError(f"{path}: has the same name as {found[stem].name}; rename one"))
        else:
            found[stem] = path
    return found


def _pictures(folder: Path, deep: bool) -> list[Path]:
    """Return the picture files in or below a folder; hidden ones are other programs' own."""
    return [
        path
        for path in sorted(folder.rglob("*") if deep else folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    ]


def _class_folders(folder: Path) -> list[Path]:
    return [f for f in sorted(folder.iterdir()) if f.is_dir() and not f.name.startswith(".")]


def _check(have: tuple[int, ...], want: tuple[int, ...], mask: Path, image: Path) -> None:
    if have != want:
        raise DataError(f"{mask}: has {have} pixels, its image {image} has {want}; they have to be equal")
