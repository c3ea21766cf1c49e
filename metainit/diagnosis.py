"""What is wrong with a set-up: packages, folders, environment, registry, Ray and endpoint."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from metainit import settings
from metainit.errors import EndpointError, MetainitError, suggestion
from metainit.places import caches_folder, data_folder

ROOM_NEEDED = 2 << 30
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what was found, what was expected instead, and the way out."""

    level: Level
    subject: str
    found: str
    expected: str = ""
    remedy: str = ""

    @property
    def text(self) -> str:
        """All of it in a sentence."""
        expected = f"; expected {self.expected}" if self.expected else ""
        return f"{self.found}{expected}{': ' if self.remedy else ''}{self.remedy}"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON-ready values."""
        return asdict(self) | {"text": self.text}


def diagnose(server: str | None = None) -> list[Finding]:
    """Look at everything; `server` is an endpoint to ask too.

    Example:
        >>> [finding.text for finding in diagnose() if finding.level == 'error']    # doctest: +SKIP
        []
    """
    from metainit.installed import packages

    findings = [_python(), _torch(), *packages()]
    findings.append(_folder("data folder", "METAINIT_HOME", data_folder()))
    findings.append(_folder("cache folder", "METAINIT_CACHE", caches_folder()))
    findings += [_locks(caches_folder()), _memory_of_objects(), *environment()]
    if importlib.util.find_spec("mlflow") is not None:
        findings.append(_registry())
    if importlib.util.find_spec("ray") is not None:
        findings += _asked("ray")
    if server is not None:
        from metainit.endpoint_checks import examine

        findings += examine(server)
    return findings


def _python() -> Finding:
    return Finding("ok", "python", sys.version.split()[0])


def _torch() -> Finding:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return Finding("ok", "torch", f"{torch.__version__}, {torch.get_num_threads()} threads, {device}")


def _nearest(folder: Path) -> Path:
    """Return a folder, or the one in which it will be made."""
    while not os.path.exists(folder):
        folder = folder.parent
    return folder


def _folder(name: str, variable: str, folder: Path) -> Finding:
    nearest = _nearest(folder)
    remedy = f"choose another with {variable}"
    try:
        # Only writing tells: permissions do not know of read-only disks, nor do they bind every user.
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return Finding("error", name, f"{folder} cannot be written ({reason})", "a folder of yours", remedy)
    free = shutil.disk_usage(nearest).free
    if free < ROOM_NEEDED:
        found = f"{folder}: only {free >> 20} MiB are free"
        return Finding("warning", name, found, f"{ROOM_NEEDED >> 20} MiB", f"make room, or {remedy}")
    return Finding("ok", name, f"{folder}, {free >> 30} GiB free")


def _locks(folder: Path) -> Finding:
    """Whether a lock in the cache keeps others out: not every network disk does that."""
    from filelock import FileLock, Timeout

    subject = "cache locks"
    try:
        with tempfile.TemporaryDirectory(dir=_nearest(folder)) as inside:
            path = Path(inside) / "lock"
            with FileLock(path, thread_local=False):
                try:
                    FileLock(path, thread_local=False).acquire(blocking=False)
                except Timeout:
                    return Finding("ok", subject, "processes can share the cache")
    except OSError as error:
        return Finding("ok", subject, f"not tried, since nothing can be written there ({error.strerror})")
    return Finding(
        "warning",
        subject,
        f"two processes may hold one lock in {folder}",
        "locks that keep others out",
        "choose a folder on a local disk with METAINIT_CACHE",
    )


def _memory_of_objects() -> Finding:
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return Finding("ok", "shared memory", "no /dev/shm; Ray keeps objects in the temporary folder")
    free = shutil.disk_usage(shared).free
    if free < 256 << 20:
        return Finding("warning", "shared memory", f"/dev/shm has {free >> 20} MiB; Ray will be slow")
    return Finding("ok", "shared memory", f"{free >> 20} MiB in /dev/shm")


def environment() -> list[Finding]:
    """Look at the variables that metainit and its HTTP client read."""
    set_here = sorted(name for name in os.environ if name.startswith("METAINIT_"))
    known = [n for n in set_here if n in settings.VARIABLES or n.startswith(settings.PREFIXES)]
    findings = [Finding("ok", "environment", ", ".join(known) or "no METAINIT_ variable is set")]
    findings += [
        Finding("warning", n, "is set, and nothing reads it", "", suggestion(n, settings.VARIABLES))
        for n in set_here
        if n not in known
    ]
    return findings + list(_of_the_client())


def _of_the_client() -> Iterator[Finding]:
    try:
        if settings.offline():
            found = "1: the client answers from its cache alone"
            yield Finding("warning", "METAINIT_OFFLINE", found, "", "unset it to reach an endpoint")
    except EndpointError as error:
        yield Finding("error", "METAINIT_OFFLINE", str(error))
    if "METAINIT_KEY" in os.environ and settings.server() is None:
        remedy = "name the endpoint that it is for with METAINIT_SERVER"
        yield Finding(
            "warning", "METAINIT_KEY", "is set, and sent nowhere", "METAINIT_SERVER beside it", remedy
        )
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        path = os.environ.get(name)
        if path and not os.path.exists(path):
            yield Finding("error", name, f"names {path}, which does not exist", "", "correct it, or unset it")


def _registry() -> Finding:
    from metainit.initialization import extension

    try:
        names = extension("metainit.checks", "registry")()
    except MetainitError as error:
        return Finding("error", "registry", str(error))
    return Finding("ok", "registry", f"{names} names registered")


def _asked(name: str) -> list[Finding]:
    """Return what a room above finds, where it offers a check."""
    from importlib.metadata import entry_points

    found: list[Finding] = []
    for point in entry_points(group="metainit.checks", name=name):
        found += point.load()()
    return found
