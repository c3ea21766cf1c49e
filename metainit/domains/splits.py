"""Split data: by group, so that a patient (or a scene, a writer, ...) is never in two splits, or in order."""

from __future__ import annotations

from collections.abc import Sequence

from metainit.domains.base import Split
from metainit.domains.seeding import seed_of
from metainit.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def split_by_group(
    groups: Sequence[str], validation: float = 0.2, test: float = 0.2, seed: int = 0
) -> tuple[Split, ...]:
    """Return a split for each member such that every group lies in one split only.

    Groups are ranked by a hash of their name and the seed, so the split does not depend on their
    order; shares are of groups, at least one where the share is positive.

    Args:
        groups: the group of each member.
        validation: share of the groups that `test` leaves.
        test: share of all groups.
        seed: of the ranking.

    Raises:
        DataError: there are too few groups for the splits that were asked for.

    Example:
        >>> split_by_group(['a', 'a', 'b', 'c'])
        ('train', 'train', 'test', 'validation')
    """
    everything: tuple[Split, ...] = tuple("train" for _ in groups)
    return carve(groups, carve(groups, everything, "test", test, seed), "validation", validation, seed)


def carve(
    groups: Sequence[str], splits: tuple[Split, ...], into: Split, share: float, seed: int
) -> tuple[Split, ...]:
    """Move a share of the groups in `train` to another split.

    Raises:
        DataError: no group would be left in `train`.

    Example:
        >>> carve(['a', 'b'], ('train', 'test'), 'validation', 0.0, seed=0)
        ('train', 'test')
    """
    if share == 0:
        return splits
    ranked = sorted(groups_of(groups, splits, "train"), key=lambda g: (seed_of(into, seed, g), g))
    count = max(1, round(share * len(ranked)))
    if count >= len(ranked):
        raise DataError(
            f"too few groups (patients): {len(ranked)} for training and {into} together, expected at "
            f"least {count + 1}; add data, or set {into} to 0"
        )
    chosen = set(ranked[:count])
    return tuple(
        into if own == "train" and group in chosen else own for own, group in zip(splits, groups, strict=True)
    )


def groups_of(groups: Sequence[str], splits: Sequence[Split], split: Split) -> set[str]:
    """Return the groups of one split.

    Example:
        >>> groups_of(['a', 'b'], ['train', 'test'], 'test')
        {'b'}
    """
    return {group for group, own in zip(groups, splits, strict=True) if own == split}


def as_marked(marks: Sequence[int | None]) -> tuple[Split, ...] | None:
    """Return the splits that a source numbers 0, 1 and 2; None where it does not mark all, or only marks 0.

    Example:
        >>> as_marked([0, 2, 1])
        ('train', 'test', 'validation')
        >>> as_marked([0, 0]) is None
        True
    """
    if not any(marks) or any(mark is None for mark in marks):
        return None
    return tuple(SPLITS[mark or 0] for mark in marks)


def from_the_end(marks: Sequence[int | None], validation: float, test: float) -> tuple[Split, ...]:
    """Return splits that are cut from the end: shares of all, or of what a source marks with 0.

    What it marks otherwise is for reporting only. The end, and not a random part: neighbours in a folder are
    often the same person or patient, and a contiguous part shares at most one of them with the rest.

    Args:
        marks: of each member, in the order of the names; None where the source has none.
        validation: share of the members, at least one.
        test: share of the members where the source marks none, at least one where it is positive.

    Raises:
        DataError: none is left to train on.

    Example:
        >>> from_the_end([None] * 4, validation=0.25, test=0.25)
        ('train', 'train', 'validation', 'test')
        >>> from_the_end([0, 1, 0, 2], validation=0.5, test=0.25)
        ('train', 'test', 'validation', 'test')
    """
    count = len(marks)
    if as_marked(marks) is not None:
        rest = [number for number, mark in enumerate(marks) if not mark]
        cut = max(1, round(len(rest) * validation))
    else:
        rest = list(range(count - (max(1, round(count * test)) if test > 0 else 0)))
        cut = max(1, round(count * validation))
    train = set(rest[:-cut])
    if count and not train:
        raise DataError(
            f"{count} image(s) leave none to train on after validation and test are held out: "
            "give more images, or lower validation_share and test_share"
        )
    held: set[int] = set(rest[-cut:])
    return tuple("train" if n in train else "validation" if n in held else "test" for n in range(count))
