"""Jobs on a cluster of several nodes: side by side, through the loss of a node, left alone with Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from pipelines.folder import SCRATCH
from pipelines.journal import Reader
from pipelines.ray_train import JOB_VARIABLE, JOURNAL
from pipelines.recipe import load_recipe
from pipelines.registry import Registry
from pipelines.tracking import ListSink
from pipelines.train import train
from tests.pipelines.clusters import BIN, Cluster, Node, cluster, descendants, free_ports, wait_for

RECIPE = "digits-debug"
SMALL = ["evidence.tasks=2", "evidence.seeds=[0]", "cpus=1"]
SHARED = ["workers=2", "outer.steps=600", "checkpoint_every=20", "validate_every=300"]
PATIENCE = 600.0
"""How long a job may take on a machine that is busy with something else."""
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # Ray and MLflow bring warnings of their own
]


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    (port,) = free_ports(1)
    folder.mkdir()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    log = folder / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)
    address = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, log.read_text()
        try:
            return requests.get(f"{address}/health", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    try:
        wait_for(ready, PATIENCE, log.read_text)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def submit(on: Cluster, registry: str, out: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    """Call `metainit submit` as its user does; what it prints goes to `log`."""
    command = [str(BIN / "metainit"), "submit", RECIPE, "--address", on.address, "--out", str(out)]
    command += ["--token-file", str(on.token), "--json", *options]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with log.open("wb") as stream:
        return subprocess.Popen(
            command,
            env=environment | {"MLFLOW_TRACKING_URI": registry},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def settings(*all_of: str) -> list[str]:
    return [word for setting in all_of for word in ("--set", setting)]


def step_of(run: Path) -> int:
    lines = Reader(run / SCRATCH / JOURNAL).news()
    return max((int(line["progress"][0]) for line in lines if "progress" in line), default=0)


def nodes_of(job: str, on: Cluster) -> list[Node]:
    """Return the nodes that training workers of a job live on."""
    mark = f"{JOB_VARIABLE}={job}".encode()

    def works(node: Node) -> bool:
        for pid, line in descendants(node.process.pid).items():
            try:
                if "RayTrainWorker" in line and mark in Path(f"/proc/{pid}/environ").read_bytes():
                    return True
            except OSError:
                continue
        return False

    return [node for node in on.nodes[1:] if works(node)]


def answer_of(log: Path) -> dict[str, object]:
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    answer: dict[str, object] = json.loads(lines[-1])
    return answer


def job_of(log: Path) -> str:
    """Return the id of the job that a following `submit` has told first."""
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("job ")][:1]
    return line.split()[1]


def test_jobs_survive_a_lost_node_and_do_not_disturb_each_other(tmp_path: Path) -> None:
    with mlflow_server(tmp_path / "mlflow") as registry, cluster(tmp_path / "cluster", 3) as on:
        killed, other, left = (tmp_path / name for name in ("killed", "other", "left"))
        logs = {run: tmp_path / f"{run.name}.log" for run in (killed, other, left)}
        whole = settings(*SMALL, *SHARED)
        pulled = tmp_path / "pulled"

        # One whose node will be lost, on two nodes, and another one at the same time on the third.
        following = submit(on, registry, killed, logs[killed], *whole, "--pull", str(pulled))
        beside = submit(on, registry, other, logs[other], *settings(*SMALL, "seed=1"), "--no-wait")
        assert beside.wait(PATIENCE) == 0, logs[other].read_text()
        assert answer_of(logs[other])["job"] != "" and "succeeded" not in answer_of(logs[other])
        wait_for(lambda: step_of(killed) > 50, PATIENCE, logs[killed].read_text)
        where = nodes_of(job_of(logs[killed]), on)
        assert len(where) == 2
        where[0].kill()
        at_loss = step_of(killed)
        assert following.wait(PATIENCE) == 0, logs[killed].read_text()
        assert at_loss < 600

        # The log came whole, and what was registered lies here.
        text = logs[killed].read_text()
        assert "step 600 of 600" in text and text.count("reading the data and starting Ray") == 1
        answer = answer_of(logs[killed])
        assert answer["succeeded"] is True and answer["job"] == job_of(logs[killed])
        weights = (killed / "checkpoint.safetensors").read_bytes()
        assert (pulled / "checkpoint.safetensors").read_bytes() == weights
        assert (pulled / "evidence.json").is_file()
        versions = {str(v.reference): v for v in Registry(registry).versions(RECIPE)}
        run = Registry(registry).connection.client.get_run(versions[str(answer["reference"])].run_id or "")
        assert run.data.tags["metainit.job"] == answer["job"] and run.info.status == "FINISHED"

        # The other was not disturbed.
        wait_for((other / "done.json").is_file, PATIENCE, on.nodes[0].log.read_text)
        plain = train(load_recipe(RECIPE, [*SMALL, "seed=1"]), tmp_path / "plain", sink=ListSink())
        assert (other / "checkpoint.safetensors").read_bytes() == plain.checkpoint.read_bytes()
        assert len(versions) <= 2 and len(Registry(registry).versions(RECIPE)) == 2

        # The same run, never killed, and left alone by who follows it.
        leaving = submit(on, registry, left, logs[left], *whole)
        wait_for(lambda: "job " in logs[left].read_text(), PATIENCE, logs[left].read_text)
        time.sleep(2)
        leaving.send_signal(signal.SIGINT)
        assert leaving.wait(60) == 130
        assert f"the job goes on; see it with: ray job logs {job_of(logs[left])}" in logs[left].read_text()
        wait_for((left / "done.json").is_file, PATIENCE, on.nodes[0].log.read_text)
        assert (left / "checkpoint.safetensors").read_bytes() == weights
