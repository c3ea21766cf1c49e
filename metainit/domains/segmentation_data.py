"""Labelled images of one size, and which classes and images of them each split may use."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metainit.domains.base import Split
from metainit.domains.images import with_channels
from metainit.domains.masks import Fit, LabelledImage, Unusable, fitted, fitted_mask
from metainit.domains.splits import carve, split_by_group
from metainit.errors import DataError, suggestion

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Collection:
    """Labelled images of one size; an image may have masks of several classes, which may overlap."""

    images: Tensor
    """``(images, channels, height, width)`` in [0, 1]; float16, which keeps 8 bits exactly enough."""
    names: tuple[str, ...]
    parts: tuple[int | None, ...]
    groups: tuple[str, ...]
    masks: Tensor
    """``(masks, height, width)`` uint8: 0, 1, or 255."""
    owners: tuple[int, ...]
    """The image of each mask."""
    classes: tuple[str, ...]
    """The class of each mask."""

    def digest(self) -> str:
        """Return the SHA-256 of images, masks and names."""
        total = hashlib.sha256("\x1f".join([*self.names, *self.classes, *self.groups]).encode())
        total.update(repr((self.parts, self.owners, tuple(self.images.shape))).encode())
        for values in (self.images.numpy(), self.masks.numpy()):
            total.update(np.ascontiguousarray(values).data)
        return total.hexdigest()


def collect(
    found: Iterable[LabelledImage], height: int, width: int, channels: int, fit: Fit, unusable: Unusable
) -> Collection:
    """Bring labelled images to one size and number of channels.

    A mask of which nothing is left at that size (a thin structure, or one outside of a crop) is left out
    without a word, as if nobody had marked the class in that image.

    Raises:
        DataError: nothing is left; or, where that is refused, an image has a number of channels without a
        rule.
    """
    images: list[Tensor] = []
    masks: list[Tensor] = []
    described: list[tuple[str, int | None, str]] = []
    owners: list[int] = []
    classes: list[str] = []
    for image in found:
        try:
            pixels = with_channels(image.pixels, channels, image.name)
        except DataError as error:
            unusable(image.name, error)
            continue
        small = {own: fitted_mask(mask, height, width, fit) for own, mask in image.masks.items()}
        small = {own: mask for own, mask in small.items() if (mask == 1).any()}
        if not small:
            continue
        images.append(torch.from_numpy(fitted(pixels, height, width, fit)).movedim(-1, 0).half())
        for own, mask in small.items():
            masks.append(torch.from_numpy(mask))
            owners.append(len(described))
            classes.append(own)
        described.append((image.name, image.part, image.name if image.group is None else image.group))
    if not images:
        reason = f": all {len(unusable.skipped)} were skipped" if unusable.skipped else ""
        raise DataError(f"there are no images with masks{reason}; expected some of each class")
    return Collection(
        torch.stack(images),
        tuple(name for name, _, _ in described),
        tuple(part for _, part, _ in described),
        tuple(group for _, _, group in described),
        torch.stack(masks),
        tuple(owners),
        tuple(classes),
    )


@dataclass(frozen=True)
class SplitRules:
    """How classes or images are divided.

    `by`: ``classes`` keeps the classes of the splits apart, ``images`` the images (or their groups), of which
    every class then has some in each split. `train`, `validation` and `test` name classes.
    """

    by: Literal["classes", "images"] = "classes"
    train: tuple[str, ...] | None = None
    validation: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None
    validation_share: float = 0.2
    test_share: float = 0.2
    least: int = 2
    """The number of images that a class needs, in each split it is in."""


Members = Mapping[str, tuple[int, ...]]
"""For each class, its masks by their number in the collection."""


def split(collection: Collection, rules: SplitRules, unusable: Unusable) -> dict[Split, Members]:
    """Return the classes of each split and which of their masks it may use.

    Raises:
        DataError: a class is named that is not there, or in two lists; a class has images of both sides of
        the
            split array; a split has no class; or, where that is refused, a class has too few images.
    """
    names = tuple(dict.fromkeys(sorted(collection.classes)))
    for own in (*(rules.train or ()), *(rules.validation or ()), *(rules.test or ())):
        if own not in names:
            raise DataError(f"there is no class {own!r} in the data; {suggestion(own, names)}")
    if rules.by == "images":
        found = _by_images(collection, names, rules)
    else:
        found = _by_classes(collection, names, rules)
    kept: dict[Split, Members] = {}
    for part, members in found.items():
        enough = {}
        for own, numbers in members.items():
            if len(numbers) >= rules.least:
                enough[own] = numbers
                continue
            unusable(
                f"{own} ({part})",
                DataError(
                    f"class {own!r} has {len(numbers)} usable images for {part}, expected at least "
                    f"{rules.least}, those of the support and of the query of one task: give more, or lower "
                    "shots and queries"
                ),
            )
        kept[part] = enough
    return kept


def _by_images(collection: Collection, names: Sequence[str], rules: SplitRules) -> dict[Split, Members]:
    wanted = set(rules.train or names)
    if all(part is not None for part in collection.parts):
        given: tuple[Split, ...] = tuple("test" if part else "train" for part in collection.parts)
        marks = carve(collection.groups, given, "validation", rules.validation_share, 0)
    else:
        marks = split_by_group(collection.groups, rules.validation_share, rules.test_share, 0)
    own = [name for name in names if name in wanted]
    return {
        part: _members(collection, own, {i for i, mark in enumerate(marks) if mark == part})
        for part in SPLITS
    }


def _by_classes(collection: Collection, names: Sequence[str], rules: SplitRules) -> dict[Split, Members]:
    marked = all(part is not None for part in collection.parts)
    listed = rules.train is not None or rules.test is not None
    if listed:
        test = rules.test if rules.test is not None else _without(names, rules.train, rules.validation)
        train = rules.train if rules.train is not None else _without(names, test, rules.validation)
    elif marked:
        train, test = _by_parts(collection, names)
    else:
        marks = split_by_group(names, 0.0, rules.test_share, 0)
        train = tuple(n for n, m in zip(names, marks, strict=True) if m == "train")
        test = _without(names, train)
    if rules.validation is not None:
        train, validation = _without(train, rules.validation), rules.validation
    else:
        validation = ()
        if train:
            every: tuple[Split, ...] = tuple("train" for _ in train)
            moved = carve(train, every, "validation", rules.validation_share, 0)
            validation = tuple(n for n, m in zip(train, moved, strict=True) if m == "validation")
            train = _without(train, validation)
    for a, b in ((train, test), (validation, test)):
        if both := sorted(set(a) & set(b)):
            raise DataError(f"classes {both[:5]} are in two lists of classes, expected each in one")

    def allowed(part: Split) -> Members:
        own = {"train": train, "validation": validation, "test": test}[part]
        # With lists of classes and a split array, neither class nor image is on both sides.
        images = {
            i for i, mark in enumerate(collection.parts)
            if not (listed and marked) or bool(mark) == (part == "test")
        }  # fmt: skip
        return _members(collection, own, images)

    return {part: allowed(part) for part in SPLITS}


def _by_parts(collection: Collection, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    sides: dict[str, set[bool]] = {own: set() for own in names}
    for own, image in zip(collection.classes, collection.owners, strict=True):
        sides[own].add(bool(collection.parts[image]))
    if torn := [own for own in names if len(sides[own]) > 1]:
        raise DataError(
            f"classes {torn[:5]} have images on both sides of the split array; set split to images, or name "
            "the classes of each split"
        )
    train = tuple(own for own in names if not any(sides[own]))
    return train, _without(names, train)


def _members(collection: Collection, names: Iterable[str], images: set[int]) -> Members:
    """Return the masks of some classes in some images."""
    found: dict[str, list[int]] = {own: [] for own in names}
    for number, (own, image) in enumerate(zip(collection.classes, collection.owners, strict=True)):
        if own in found and image in images:
            found[own].append(number)
    return {own: tuple(numbers) for own, numbers in found.items()}


def _without(names: Iterable[str], *others: Iterable[str] | None) -> tuple[str, ...]:
    left_out = {name for other in others if other is not None for name in other}
    return tuple(name for name in names if name not in left_out)
