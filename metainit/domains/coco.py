"""Read instance annotations in the format of COCO: all instances of a category become one mask an image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metainit.domains.labelled_folder import FolderRules
from metainit.domains.masks import LabelledImage, Mask, Unusable, read_pixels
from metainit.domains.rle import coco_mask
from metainit.domains.segmentation_loss import IGNORE
from metainit.errors import DataError

MAX_BYTES = 2_000_000_000


def read_coco(
    path: Path, images: Path | None, rules: FolderRules, unusable: Unusable
) -> Iterator[LabelledImage]:
    """Yield the annotated images of a COCO file, in the order of their file names.

    Crowds (``iscrowd``) become pixels whose class is not known. Images without an annotation are passed over.

    Args:
        path: the JSON file.
        images: folder of the images, relative to the JSON file; None looks beside it, in ``images`` beside
        it,
            and in ``images`` beside its folder.
        rules: how large a file may be.
        unusable: what to do with images and annotations that cannot be used.

    Raises:
        DataError: the file is no such JSON; or, where that is refused, an image is missing or has another
        size
            than the file says, or an annotation cannot be decoded or is empty.
    """
    content = _load(path)
    names = {int(c["id"]): str(c["name"]) for c in content["categories"]}
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        by_image[int(annotation["image_id"])].append(annotation)
    for image in sorted(content["images"], key=lambda entry: str(entry["file_name"])):
        annotations = by_image[int(image["id"])]
        if not annotations:
            continue
        file_name = str(image["file_name"])
        try:
            place = _find(path, images, file_name)
            pixels = read_pixels(place, rules.max_pixels)
            size = (int(image.get("height", pixels.shape[0])), int(image.get("width", pixels.shape[1])))
            if size != pixels.shape[:2]:
                raise DataError(f"{place}: has {pixels.shape[:2]} pixels, {path} says {size}")
        except DataError as error:
            unusable(file_name, error)
            continue
        masks = _masks(annotations, names, size, f"{path}: {file_name}", unusable)
        if masks:
            yield LabelledImage(file_name, pixels, masks)


def _masks(
    annotations: list[Mapping[str, Any]],
    names: Mapping[int, str],
    size: tuple[int, int],
    name: str,
    unusable: Unusable,
) -> dict[str, Mask]:
    masks: dict[str, Mask] = {}
    crowds: dict[str, Mask] = {}
    for annotation in annotations:
        where = f"{name}, annotation {annotation.get('id')}"
        try:
            category = int(annotation["category_id"])
            if category not in names:
                raise DataError(f"{where}: category {category} is not in categories")
            mask = coco_mask(annotation.get("segmentation"), *size)
            if not mask.any():
                raise DataError(f"{where}: the mask is empty")
        except DataError as error:
            unusable(where, error if str(error).startswith(where) else DataError(f"{where}: {error}"))
            continue
        kind = crowds if annotation.get("iscrowd") else masks
        own = names[category]
        kind[own] = np.maximum(kind[own], mask) if own in kind else mask
    for own, crowd in crowds.items():
        if own in masks:
            masks[own] = np.where((crowd == 1) & (masks[own] == 0), IGNORE, masks[own]).astype(np.uint8)
    return masks


def _load(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: has more than {MAX_BYTES} bytes; split it")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    needed = {
        "images": {"id", "file_name"},
        "annotations": {"image_id", "category_id"},
        "categories": {"id", "name"},
    }
    for key, fields in needed.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and fields <= set(e) for e in entries
        ):
            raise DataError(
                f"{path}: expected instance annotations of COCO: {key!r} a list of objects with "
                f"{', '.join(sorted(fields))}"
            )
    return dict(content)


def _find(path: Path, images: Path | None, file_name: str) -> Path:
    folder = path.parent
    places = (
        [folder / images] if images is not None else [folder, folder / "images", folder.parent / "images"]
    )
    for place in places:
        if (place / file_name).is_file():
            return place / file_name
    raise DataError(
        f"{file_name}: is in none of {', '.join(map(str, places))}; say where the images lie (coco_images, "
        "relative to the JSON file)"
    )
