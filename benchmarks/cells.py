"""Results that survive: each cell is written to JSON when it is done, and skipped when it is there."""

from __future__ import annotations

import json
import os
import platform
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from metainit.checkpoint import write_atomically

RESULTS = Path(__file__).parent / "results"
WEIGHTS = Path(__file__).parent / "weights"


class Cells:
    """The cells of one benchmark, by name, in one JSON file."""

    def __init__(self, name: str) -> None:
        self.path = RESULTS / f"{name}.json"
        self.values: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def cell(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a cell, computing and storing it first where it is not there yet."""
        if name not in self.values:
            print(f"computing {name}", flush=True)
            self.values[name] = compute()
            self.save()
        return self.values[name]

    def save(self) -> None:
        """Write all cells; another process's cells in the same file are kept."""
        if self.path.is_file():
            self.values = {**json.loads(self.path.read_text()), **self.values}
        text = json.dumps(self.values, indent=1, sort_keys=True)
        write_atomically(self.path, text.encode())


def cpu_seconds() -> float:
    """Return user plus system time of this process and of its finished children."""
    own, children = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def machine() -> dict[str, Any]:
    """Describe the machine: what a number is worth depends on it."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
    }


def data_set(name: str) -> Path:
    """Return the npz of a data set below METAINIT_DATA."""
    root = os.environ.get("METAINIT_DATA")
    if not root:
        raise SystemExit("set METAINIT_DATA to the folder that holds the data sets")
    return Path(root) / name / f"{name}.npz"
