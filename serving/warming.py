"""What takes long to import is imported behind the first answers, and not before them."""

from __future__ import annotations

import logging
import threading
from importlib import import_module

LOGGER = logging.getLogger("metainit.serving")
LATER = ("torch", "serving.trying")
"""What an endpoint answers without, until somebody wants tensors. Whoever needs one of these before it is
there waits in a thread, so that the event loop goes on."""


def warm(modules: tuple[str, ...] = LATER) -> threading.Thread:
    """Import modules in a thread, so that the first request that needs them finds them; return the thread."""

    def run() -> None:
        for name in modules:
            try:
                import_module(name)
            except ImportError:
                LOGGER.exception("%s cannot be imported: requests that need it will fail", name)

    thread = threading.Thread(target=run, name="metainit-warm", daemon=True)
    thread.start()
    return thread
