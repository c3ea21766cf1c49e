"""Which files belong together by their names: an image and its mask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metainit.errors import DataError

MASK = "_mask"
"""What a mask's name ends in, after the name of its image."""


def name_of_image(name: str) -> str:
    """Return the name of the image that a mask of this name belongs to.

    Example:
        >>> name_of_image('sub/1_mask'), name_of_image('2')
        ('sub/1', '2')
    """
    return name.removesuffix(MASK)


def put_mask(masks: dict[str, Path], name: str, path: Path) -> None:
    """Note the mask of an image.

    Args:
        masks: those that are known, by the names of their images.
        name: the mask's own, with or without `MASK`.
        path: its file.

    Raises:
        DataError: the image has another mask already, which stays.

    Example:
        >>> masks = {'1': Path('masks/1.png')}
        >>> put_mask(masks, '2_mask', Path('masks/2_mask.png'))
        >>> sorted(masks)
        ['1', '2']
    """
    image = name_of_image(name)
    if image in masks:
        raise DataError(f"{path}: its image has another mask, {masks[image]}; take one of them away")
    masks[image] = path


def image_and_mask(same: Sequence[Path], marked: Path | None) -> tuple[Path, Path | None]:
    """Return the image among files of one name, and its mask where there is one.

    Args:
        same: the files of that name, not marked as masks.
        marked: the file that is marked as their mask, if any. Without one, a PNG beside a single file of
            another type is the mask.

    Raises:
        DataError: more than one file could be the image.

    Example:
        >>> image, mask = image_and_mask([Path('1.jpg'), Path('1.png')], None)
        >>> image.name, mask.name
        ('1.jpg', '1.png')
    """
    pngs = [path for path in same if path.suffix.lower() == ".png"]
    if marked is None and len(same) == 2 and len(pngs) == 1:
        return next(path for path in same if path not in pngs), pngs[0]
    if len(same) > 1:
        names = ", ".join(path.name for path in same)
        raise DataError(f"{same[0].parent}: which is the image, and which the mask, of {names}?")
    return same[0], marked
