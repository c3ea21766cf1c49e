"""Jobs: what they bring along, what is refused, and one on a real cluster with token authentication."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import typer
from aiohttp import web
from click.testing import Result
from typer.testing import CliRunner

from metainit.errors import MetainitError, RecipeError, RegistryError
from pipelines.job_result import pull_result, version_of
from pipelines.ray_train import JOB_VARIABLE, open_run
from pipelines.recipe import load_recipe
from pipelines.registry import Registry
from pipelines.submit import Job, auth_headers, entrypoint, job_environment, submit_job, write_job_folder
from pipelines.train_commands import submit
from tests.pipelines.clusters import BIN, cluster
from tests.pipelines.conftest import MakeFolder

CT = "ct-phantoms-debug"


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


def test_a_job_gets_what_the_registry_asks_for() -> None:
    access = {
        "MLFLOW_TRACKING_USERNAME": "anna",
        "MLFLOW_TRACKING_PASSWORD": "secret",
        "MLFLOW_TRACKING_TOKEN": "t",
    }
    server = {"MLFLOW_TRACKING_URI": "https://mlflow.example.org"}
    assert job_environment({**server, **access, "HOME": "/home/anna"}) == {**server, **access}
    assert job_environment({"MLFLOW_TRACKING_URI": "sqlite:///here.db", **access}) == {}
    assert job_environment(access) == {}


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


# --- what is refused, and what is found again


def submitting(*words: str) -> Result:
    app = typer.Typer()
    app.command()(submit)
    return CliRunner().invoke(app, [*words, "--address", "http://127.0.0.1:1"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["ct-phantom"], "no recipe is called 'ct-phantom'"),
        ([CT, "--set", "outer.stepz=1"], "outer.stepz is no key"),
        ([CT, "--pull", "there", "--no-wait"], "leave out --no-wait"),
        (["zoo-digits-debug", "--pull", "there"], "registers no version"),
        ([CT, "--pull", "there"], "set MLFLOW_TRACKING_URI"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_sent(
    words: list[str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = submitting(*words)
    assert result.exit_code == 2
    assert says in " ".join(result.output.replace("\u2502", " ").split())


def test_ctrl_c_leaves_the_job_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Job, echo: object) -> bool:
        raise KeyboardInterrupt

    with served(Dashboard(LOG, [None])) as address:
        job = following(address)
        monkeypatch.setattr(Job, "follow", interrupted)
        monkeypatch.setattr("pipelines.submit.submit_job", lambda *_, **__: job)
        result = submitting(CT)
    assert result.exit_code == 130
    assert "the job goes on" in result.output and "ray job stop job" in result.output


def test_the_version_of_a_job_is_found_by_its_runs_tag(
    home: Path, make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe = load_recipe(CT)
    registry = Registry()
    made = {}
    for number, job in enumerate(("first", "second")):
        monkeypatch.setenv(JOB_VARIABLE, job)
        (folder := tmp_path / job).mkdir()
        with open_run(recipe, folder) as sink:
            made[job] = registry.register(make_folder(number), CT, sink.run_id)
    for job, version in made.items():
        assert version_of(job, CT, registry).reference == version.reference
    pulled = pull_result("first", CT, tmp_path / "pulled")
    assert pulled.sha256 == made["first"].sha256 and (tmp_path / "pulled" / "recipe.yaml").is_file()
    with pytest.raises(
        RegistryError, match=r"no version of 'ct-phantoms-debug' from the job third.*MLFLOW_TRACK"
    ):
        version_of("third", CT, registry)


# --- following


class Dashboard:
    """A cluster's dashboard whose connections can break: it gives a job's log as far as each `cuts` says."""

    def __init__(self, log: str, cuts: list[int | None], status: str = "SUCCEEDED") -> None:
        self.log, self.cuts, self.status = log, cuts, status
        self.asked = 0

    def routes(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/version", self.version)
        app.router.add_get("/api/jobs/{job}/logs/tail", self.tail)
        app.router.add_get("/api/jobs/{job}", self.job)
        return app

    async def version(self, _: web.Request) -> web.Response:
        import ray

        names = {"version": "4", "ray_version": ray.__version__, "ray_commit": "", "session_name": ""}
        return web.json_response(names)

    async def tail(self, request: web.Request) -> web.WebSocketResponse:
        cut = self.cuts[min(self.asked, len(self.cuts) - 1)]
        self.asked += 1
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        text = self.log[:cut]
        for start in range(0, len(text), 7):
            await socket.send_str(text[start : start + 7])
        if cut is not None:
            assert request.transport is not None
            request.transport.close()  # no closing words: the line is dead
        return socket

    async def job(self, _: web.Request) -> web.Response:
        left = len(self.cuts) - self.asked
        status = self.status if left <= 0 else "RUNNING"
        return web.json_response(JOB | {"status": status})


@contextmanager
def served(dashboard: Dashboard) -> Iterator[str]:
    """Serve a dashboard from a thread of its own."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(dashboard.routes(), shutdown_timeout=0)
    loop.run_until_complete(runner.setup())
    site = web.TCPSite(runner, "127.0.0.1", 0)
    loop.run_until_complete(site.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def following(address: str) -> Job:
    from ray.job_submission import JobSubmissionClient

    return Job(JobSubmissionClient(address), address, "job")


JOB = {"type": "SUBMISSION", "submission_id": "job", "entrypoint": "true"}
# Ray's client gives aiohttp what aiohttp no longer wants.
rays_own_warning = pytest.mark.filterwarnings("ignore:ssl=None is deprecated:DeprecationWarning")
LOG = "".join(f"line {number}\n" for number in range(20))


@rays_own_warning
@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
@pytest.mark.parametrize("cuts", [[None], [25, None], [25, 25, 60, None], [0, None], [None, None]])
def test_a_log_comes_once_however_often_the_line_breaks(
    cuts: list[int | None], status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.submit.RETRY_SECONDS", 0.01)
    said: list[str] = []
    with served(Dashboard(LOG, cuts, status)) as address:
        assert following(address).follow(said.append) is (status == "SUCCEEDED")
    assert "".join(said) == LOG


@rays_own_warning
def test_a_cluster_that_stays_away_is_given_up_and_the_job_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.submit.RETRY_SECONDS", 0.01)
    with served(Dashboard(LOG, [None])) as address:
        job = following(address)
    way_out = r"the job goes on; see it with: ray job logs job --address .*; end it with: ray job stop job"
    with pytest.raises(MetainitError, match=way_out):
        job.follow(lambda text: None, patience=0.1)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_on_a_real_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path / "cluster", head_cpus=2) as on:
        run_a_job(on.address, on.token, tmp_path)


def run_a_job(address: str, token: Path, tmp_path: Path) -> None:
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
    assert json.loads(quick.stdout)["job"].startswith(f"{CT}-")
