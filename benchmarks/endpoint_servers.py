"""The servers that the endpoint is measured beside, each over the same files, and a look at its processes.

python -m benchmarks.endpoint_servers PORT FILE...     plain uvicorn
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
REPLICA = "ray::ServeReplica:metainit:endpoint"
CONTROLLER = "ray::ServeController"
PATIENCE = 400.0
"""Seconds that a server may take to start: the machine may be busy."""
_NGINX = """{user}
daemon off;
master_process on;
worker_processes {workers};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  tcp_nodelay on;
  keepalive_requests 1000000;
  default_type application/octet-stream;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {folder}/root;
  }}
  server {{
    listen 127.0.0.1:{blobs_port};
    location ~ "^/v1/blobs/(?<sha256>[0-9a-f]{{64}})$" {{
      root {blobs};
      try_files /$sha256.safetensors =404;
      types {{ }}
      etag off;
      add_header ETag '"$sha256"';
    }}
  }}
}}
"""


def uvicorn_file_response(port: int, files: Sequence[Path]) -> None:
    """Serve files with FastAPI's FileResponse under uvicorn, as its documentation shows."""
    import uvicorn
    from fastapi import FastAPI
    from fastapi.responses import FileResponse

    app = FastAPI()

    @app.get("/{number}")
    def file(number: int) -> FileResponse:
        return FileResponse(files[number])

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


@contextmanager
def running(command: Sequence[str], log: Path, url: str, patience: float = PATIENCE) -> Iterator[int]:
    """Run a server in a session of its own until the block ends; give its process id once it answers.

    Raises:
        RuntimeError: it ended, or did not answer in time; the text is the end of its log.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("ab") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        wait_for(url, process, log, patience)
        yield process.pid
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, patience: float) -> None:
    """Wait until an address answers, whatever it says.

    Raises:
        RuntimeError: the process ended, or the time is up.
    """
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} did not come up: {log.read_text()[-2000:]}")


@contextmanager
def uvicorn_server(folder: Path, port: int, files: Sequence[Path]) -> Iterator[list[str]]:
    """Run plain uvicorn; give the path of each file on it."""
    command = [sys.executable, "-m", "benchmarks.endpoint_servers", str(port), *map(str, files)]
    with running(command, folder / "uvicorn.log", f"http://127.0.0.1:{port}/docs"):
        yield [f"/{number}" for number in range(len(files))]


@contextmanager
def nginx_server(
    folder: Path, port: int, files: Sequence[Path], blobs_port: int, blobs: Path
) -> Iterator[list[str]]:
    """Run nginx, which sends with `sendfile`; give the path of each file on it.

    On `blobs_port` it sends the endpoint's blobs from their folder, as docs/blobs-from-nginx.md has it.
    """
    root = folder / "nginx" / "root"
    root.mkdir(parents=True)
    for number, file in enumerate(files):
        os.link(file, root / str(number))
    configuration = root.parent / "nginx.conf"
    workers = os.cpu_count() or 1
    places = {"folder": root.parent, "port": port, "blobs_port": blobs_port, "blobs": blobs}
    configuration.write_text(_NGINX.format(workers=workers, user=_own_user(), **places))
    command = [nginx_program(), "-c", str(configuration), "-p", str(root.parent)]
    with running(command, folder / "nginx.log", f"http://127.0.0.1:{port}/none"):
        yield [f"/{number}" for number in range(len(files))]


def _own_user() -> str:
    """Let nginx's workers be who started them: root would make them another, who may not read the files."""
    return "user root;" if os.getuid() == 0 else ""


def nginx_program() -> str:
    """Return the nginx program.

    Raises:
        RuntimeError: there is none.
    """
    for place in ("/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"):
        if os.access(place, os.X_OK):
            return place
    raise RuntimeError("no nginx here; install the package of that name")


@contextmanager
def mlflow_server(folder: Path, port: int, workers: int | None = None) -> Iterator[int]:
    """Run an MLflow server that also passes artifacts on; give its process id.

    Its tables are in ``mlflow.db`` and its artifacts in ``artifacts`` of `folder`. `workers` is MLflow's
    own number where it is None.
    """
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    if workers is not None:
        command += ["--workers", str(workers)]
    with running(command, folder / "mlflow.log", f"http://127.0.0.1:{port}/health") as pid:
        yield pid


def processes(title: str) -> list[psutil.Process]:
    """Return the processes of this session's Ray whose command line starts with a title.

    They are descendants of this process, or of the raylet that it started.
    """
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def programs(name: str) -> list[psutil.Process]:
    """Return the descendants of this process that run a program of that name."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if Path(process.exe()).name == name:
                found.append(process)
        except psutil.Error:  # it has ended, or is about to
            continue
    return found


def memory(process: psutil.Process) -> dict[str, float]:
    """Return resident megabytes now, and at most since `forget_peak`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    values: Mapping[str, Any] = dict(line.split(":", 1) for line in lines)
    return {
        "now": int(values["VmRSS"].split()[0]) / 1024,
        "peak": int(values["VmHWM"].split()[0]) / 1024,
    }


def forget_peak(process: psutil.Process) -> None:
    """Set a process's peak of resident memory back to what it is now."""
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


if __name__ == "__main__":
    uvicorn_file_response(int(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
