"""How the suite is divided among parallel workers: what starts Ray in one of them, the rest by file."""

from __future__ import annotations

import pytest

SLOWEST = "ray"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every test a group that stays in one worker.

    Several local Rays at once would starve each other; tests of one file share its fixtures. What takes
    longest comes first, so that the workers end together.
    """
    for item in items:
        marked = item.get_closest_marker(SLOWEST) is not None
        item.add_marker(pytest.mark.xdist_group(SLOWEST if marked else str(item.path)))
    items.sort(key=lambda item: item.get_closest_marker(SLOWEST) is None)
