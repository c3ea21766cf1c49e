"""Split data by group, so that a patient (or a scene, a writer, ...) is never in two splits."""

from __future__ import annotations

from collections.abc import Sequence

from metainit.domains.base import Split
from metainit.domains.seeding import seed_of
from metainit.errors import DataError


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
