"""What takes long to import is imported behind the first answers, and not before them."""

from __future__ import annotations

import threading
from importlib import import_module

LATER = ("torch", "serving.derived", "serving.trying")
"""What an endpoint answers without, until somebody wants tensors."""


def warm(modules: tuple[str, ...] = LATER) -> threading.Thread:
    """Import modules in a thread, so that the first request that needs them finds them; return the thread."""

    def run() -> None:
        for name in modules:
            import_module(name)

    thread = threading.Thread(target=run, name="metainit-warm", daemon=True)
    thread.start()
    return thread
