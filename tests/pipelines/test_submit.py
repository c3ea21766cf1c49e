"""Jobs: what they bring along, what is refused, and one on a real cluster with token authentication."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from metainit.errors import MetainitError, RecipeError
from pipelines.recipe import load_recipe
from pipelines.submit import auth_headers, entrypoint, submit_job, write_job_folder

CT = "ct-phantoms-debug"
BIN = Path(sys.executable).parent


def test_a_job_brings_metainit_and_its_entry_points(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    write_job_folder(folder, load_recipe(CT, ["seed=5"]))
    assert load_recipe(folder / "recipe.yaml") == load_recipe(CT, ["seed=5"])
    code = (
        "import importlib.metadata as m, metainit, pipelines;"
        "print(metainit.__file__, pipelines.__file__, m.distribution('metainit').locate_file(''), sep='\\n');"
        "print(sorted(p.name for p in m.entry_points(group='metainit.commands')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    *places, commands = done.stdout.splitlines()
    assert all((folder / place).resolve().is_relative_to(folder.resolve()) for place in places)
    assert "'train'" in commands


def test_paths_must_be_absolute(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"domain.data is 'scans'.*absolute"):
        submit_job(load_recipe("image-folder-debug", ["domain.data=scans"]), "http://127.0.0.1:1")


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert auth_headers(None) == {}
    file = tmp_path / "token"
    file.write_text("abc\n")
    assert auth_headers(file) == {"Authorization": "Bearer abc"}
    monkeypatch.setenv("RAY_AUTH_TOKEN", "def")
    assert auth_headers(None) == {"Authorization": "Bearer def"}
    assert auth_headers(file) == {"Authorization": "Bearer abc"}
    with pytest.raises(MetainitError, match="cannot read the token file"):
        auth_headers(tmp_path / "missing")


def test_the_command_that_a_job_runs() -> None:
    assert entrypoint(None) == "python -m metainit.cli train recipe.yaml"


def test_an_address_where_nothing_answers_is_named() -> None:
    with pytest.raises(MetainitError, match=r"no Ray cluster answers at http://127\.0\.0\.1:1"):
        submit_job(load_recipe(CT), "http://127.0.0.1:1")


@pytest.fixture
def refusing() -> Iterator[str]:
    """A server that answers every request with 401."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()
            self.wfile.write(b"Unauthorized: Missing authentication token")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_refused_token_is_explained(refusing: str) -> None:
    with pytest.raises(MetainitError, match=r"refuses the token.*--token-file"):
        submit_job(load_recipe(CT), refusing)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A Ray head of our own with token authentication; gives its address and its token file."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(16))
    port, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "METAINIT_HOME": str(tmp_path / "home"),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--node-ip-address=127.0.0.1"]
    log = (tmp_path / "head.log").open("w")
    head = subprocess.Popen(
        command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=tmp_path
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        deadline = time.monotonic() + 120
        while not answers(dashboard):
            assert head.poll() is None and time.monotonic() < deadline, (tmp_path / "head.log").read_text()
            time.sleep(0.5)
        yield address, token
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(timeout=60)
        log.close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_on_a_real_cluster(cluster: tuple[str, Path], tmp_path: Path) -> None:
    address, token = cluster
    (tmp_path / "wrong").write_text("wrong")
    with pytest.raises(MetainitError, match="refuses the token"):
        submit_job(load_recipe(CT), address, token_file=tmp_path / "wrong")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [str(BIN / "metainit"), "submit", CT, "--address", address, "--token-file", str(token)]
    command += ["--out", str(tmp_path / "run"), "--set", "evidence.tasks=2", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["succeeded"] is True
    assert "step 12 of 12" in done.stderr
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()
    quick = subprocess.run(
        [*command, "--no-wait"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(quick.stdout)["job"].startswith("raysubmit_")
