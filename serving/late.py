"""A registry that the first question opens, so that an outage at start-up is an outage only."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.catalog import Registry


class LateRegistry:
    """Passes questions to a registry that `opened` makes; opening is tried again after a failure."""

    def __init__(self, opened: Callable[[], Registry]) -> None:
        """Open nothing yet."""
        self._open = opened
        self._lock = threading.Lock()
        self._registry: Registry | None = None

    def _get(self) -> Registry:
        with self._lock:
            if self._registry is None:
                self._registry = self._open()
            return self._registry

    def names(self) -> list[str]:
        """Return every registered name."""
        return self._get().names()

    def versions(self, name: str) -> list[Any]:
        """Return the versions of a name, newest first."""
        return self._get().versions(name)

    def resolve(self, reference: str) -> Any:
        """Return the version that a reference means."""
        return self._get().resolve(reference)

    def download(self, version: Any, folder: Path) -> Path:
        """Bring a version's artifact folder under `folder` and return where it is."""
        return self._get().download(version, folder)
