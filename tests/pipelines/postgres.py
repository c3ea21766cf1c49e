"""A PostgreSQL of its own, from the binaries of the package pgserver, and an MLflow server over it.

Everything lies in one new folder and listens on a socket file there, or on the loopback device.
PostgreSQL refuses to run as root; then it runs as the user `nobody`.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300.0


def binaries() -> Path:
    """The folder of PostgreSQL's programs; the test is skipped where the package is not installed."""
    spec = importlib.util.find_spec("pgserver")
    if spec is None or spec.origin is None:
        pytest.skip("needs the package pgserver (dev extra)")
    return Path(spec.origin).parent / "pginstall" / "bin"


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the address of an empty PostgreSQL that ends with the block."""
    programs = binaries()
    root = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    os.chmod(root, 0o755)
    data, sockets = root / "data", root / "socket"
    options: dict[str, Any] = {"cwd": "/", "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}}
    for folder in (data, sockets):
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
    if os.geteuid() == 0:
        options |= {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []}
    try:
        made = [programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(made, check=True, capture_output=True, **options)
        command = [programs / "postgres", "-D", data, "-k", sockets]
        command += ["-c", "listen_addresses=", "-c", "fsync=off"]
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, **options)
        try:
            _wait_for_postgres(process, sockets, root / "log")
            yield f"postgresql+psycopg2://postgres@/postgres?host={sockets}"
        finally:
            process.send_signal(signal.SIGINT)  # the fast shutdown
            process.wait(30)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait_for_postgres(process: subprocess.Popen[bytes], sockets: Path, log: Path) -> None:
    import psycopg2

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            psycopg2.connect(host=str(sockets), user="postgres", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


@contextmanager
def mlflow_server(database: str, artifacts: Path, log: Path) -> Iterator[str]:
    """Yield the address of an MLflow server over a database, which serves the artifacts too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--serve-artifacts", "--backend-store-uri", database]
    command += ["--artifacts-destination", artifacts.as_uri()]
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
