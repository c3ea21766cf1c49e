"""What `metainit doctor` asks of this room."""

from __future__ import annotations


def registered_names() -> int:
    """Return how many names the registry holds.

    Raises:
        RegistryError: the registry cannot be reached.
    """
    from pipelines.registry import Registry

    return len(Registry().names())
