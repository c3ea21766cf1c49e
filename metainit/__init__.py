"""Better initial weights than random ones: learned, predicted, generated and computed.

The names below are loaded when they are first used, so that `import metainit` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metainit.adaptation import Task as Task
    from metainit.async_client import AsyncClient as AsyncClient
    from metainit.card import AdaptationRoutine as AdaptationRoutine
    from metainit.card import Card as Card
    from metainit.client import Client as Client
    from metainit.errors import MetainitError as MetainitError
    from metainit.evidence.measuring import Evidence as Evidence
    from metainit.evidence.measuring import measure as measure
    from metainit.evidence.probing import ProbeReport as ProbeReport
    from metainit.evidence.probing import probe as probe
    from metainit.initialization import Initialization as Initialization
    from metainit.initialization import init_ as init_
    from metainit.initialization import load as load

__version__ = "0.1.0"

_HOMES = {
    "AdaptationRoutine": "metainit.card",
    "AsyncClient": "metainit.async_client",
    "Card": "metainit.card",
    "Client": "metainit.client",
    "Evidence": "metainit.evidence.measuring",
    "Initialization": "metainit.initialization",
    "MetainitError": "metainit.errors",
    "ProbeReport": "metainit.evidence.probing",
    "Task": "metainit.adaptation",
    "init_": "metainit.initialization",
    "load": "metainit.initialization",
    "measure": "metainit.evidence.measuring",
    "probe": "metainit.evidence.probing",
}

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'metainit' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
