"""How the suite is divided among parallel workers (what starts Ray in one of them, the rest by file), and the
empty store that tests copy."""

from __future__ import annotations

from pathlib import Path

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


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store with its tables and nothing in them."""
    from pipelines.connection import DATABASE, connect

    file = tmp_path_factory.mktemp("template") / DATABASE
    connect(f"sqlite:///{file.as_posix()}")
    return file
