"""How long the rest of a run takes, from how long its later half took."""

from __future__ import annotations

import math
import time


class Pace:
    """What is done, and when: the seconds left go by the later half, as what comes first warms up.

    Example:
        >>> pace = Pace()
        >>> pace.done(1, at=100.0), pace.left(9)  # of one nobody knows how long it took
        (None, nan)
        >>> pace.done(2, at=102.0), pace.left(9)
        (None, 14.0)
    """

    def __init__(self) -> None:
        self._marks: list[tuple[int, float]] = []

    def done(self, count: int, at: float | None = None) -> None:
        """Note how much is done by now, or at a time in seconds."""
        self._marks.append((count, time.monotonic() if at is None else at))

    def left(self, total: int) -> float:
        """Return the seconds until `total` is done; nan while nobody knows."""
        if len(self._marks) < 2:
            return math.nan
        (before, began), (count, ended) = self._marks[(len(self._marks) - 1) // 2], self._marks[-1]
        return (ended - began) / (count - before) * (total - count)
