"""Tracking against a real embedded store, and the whole registry against a real server."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from metainit.errors import RegistryError
from metainit.places import data_folder
from pipelines import tracking
from pipelines.collecting import collect
from pipelines.connection import connect
from pipelines.gate import admit
from pipelines.registry import Registry, load_source
from pipelines.tracking import ListSink, MlflowSink, Sink
from tests.pipelines.conftest import MakeFolder, make_evidence

if TYPE_CHECKING:
    from mlflow.entities import Metric

RECIPE = {"name": "faces", "network": {"name": "siren", "width": 64}, "tags": [1, 2]}


def test_importing_the_room_is_light() -> None:
    code = (
        "import sys, pipelines.registry, pipelines.tracking, pipelines.gate\n"
        "heavy = {'mlflow', 'torch', 'ray', 'pandas', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_holds_recipe_metrics_and_artifacts(home: Path, make_folder: MakeFolder) -> None:
    with MlflowSink("faces", RECIPE, tags={"host": "here"}) as sink:
        for step in range(3):
            sink.log_metrics({"loss": 1.0 / (step + 1), "psnr": math.nan}, step)
        sink.log_artifacts(make_folder(1), "final")
    client = connect().client
    run = client.get_run(sink.run_id)
    assert run.info.status == "FINISHED" and run.info.run_name == "faces"
    assert run.data.params["network.width"] == "64" and run.data.params["tags"] == "[1, 2]"
    assert run.data.tags["host"] == "here"
    history = client.get_metric_history(sink.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert math.isnan(run.data.metrics["psnr"])
    assert (home / "artifacts" / sink.run_id / "artifacts/final/checkpoint.safetensors").is_file()


def test_metrics_travel_in_batches(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MlflowSink("faces")
    calls: list[int] = []
    send = sink.connection.client.log_batch

    def counted(run_id: str, metrics: list[Metric]) -> None:
        calls.append(len(metrics))
        send(run_id, metrics=metrics)

    monkeypatch.setattr(sink.connection.client, "log_batch", counted)
    for step in range(1500):
        sink.log_metrics({"loss": 0.1}, step)
    sink.close()
    assert sum(calls) == 1500 and len(calls) <= 4


def test_a_run_that_goes_on_records_each_step_once(home: Path) -> None:
    first = MlflowSink("faces", RECIPE)
    for step in range(10):
        first.log_metrics({"loss": float(step)}, step)
    first.flush()  # killed here
    second = MlflowSink("faces", RECIPE, tags={"resumed": "1"}, run_id=first.run_id)
    assert connect().client.get_run(first.run_id).info.status == "RUNNING"
    for step in range(5, 15):
        second.log_metrics({"loss": float(step)}, step)
    second.close()
    history = connect().client.get_metric_history(first.run_id, "loss")
    assert [m.step for m in history] == list(range(15))


def test_a_changed_setting_of_a_resumed_run_is_refused(home: Path) -> None:
    first = MlflowSink("faces", {"steps": 1})
    with pytest.raises(RegistryError, match="record the parameters"):
        MlflowSink("faces", {"steps": 2}, run_id=first.run_id)
    with pytest.raises(RegistryError, match="go on with the run"):
        MlflowSink("faces", run_id="0" * 32)


def test_a_failed_run_says_so(home: Path) -> None:
    sink = MlflowSink("faces")
    with pytest.raises(ZeroDivisionError), sink:
        sink.log_metrics({"loss": 1 / 0}, 0)
    assert connect().client.get_run(sink.run_id).info.status == "FAILED"


def test_metrics_wait_while_the_store_is_away(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MlflowSink("faces")

    def away(*_: object, **__: object) -> None:
        raise ConnectionError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(sink.connection.client, "log_batch", away)
        sink.log_metrics({"loss": 1.0}, 0)
        sink.flush()
        assert "1 metrics wait" in caplog.text
        with pytest.raises(RegistryError, match="cannot be reached"):
            sink.close()
    sink.close()
    assert [m.value for m in connect().client.get_metric_history(sink.run_id, "loss")] == [1.0]


def test_the_list_sink_keeps_what_it_is_told(make_folder: MakeFolder) -> None:
    sink = ListSink()
    told: Sink = sink
    told.log_params(RECIPE)
    told.log_metrics({"loss": 0.5}, step=3)
    told.log_artifacts(make_folder(1), "final")
    told.flush()
    told.close(failed=True)
    assert sink.params["network.name"] == "siren"
    assert sink.metrics == [(3, {"loss": 0.5})]
    where, names = sink.artifacts[0]
    assert where == "final" and "checkpoint.safetensors" in names
    assert (sink.flushes, sink.closed) == (1, "failed")


def test_the_default_place_is_told_from_here_too(home: Path) -> None:
    assert data_folder() == home
    assert tracking.store_uri() == f"sqlite:///{home}/mlflow.db"


@pytest.fixture
def server(home: Path, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on the loopback device, which also stores the artifacts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1", "--serve-artifacts"]
    command += ["--backend-store-uri", f"sqlite:///{home}/mlflow.db"]
    command += ["--artifacts-destination", str(tmp_path / "destination")]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        give_up = time.monotonic() + 90
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                assert time.monotonic() < give_up, "the server did not come up"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_tracking_server_does_the_same(
    server: str, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with MlflowSink("faces", RECIPE) as sink:
        sink.log_metrics({"loss": 0.5}, 0)
        registry = Registry()
        version = registry.register(make_folder(1, make_evidence(30)), "faces", sink.run_id)
    assert admit(registry, version).alias == "champion"
    better = registry.register(make_folder(2, make_evidence(31, seed=3)), "faces")
    assert admit(registry, better).alias == "champion"
    assert registry.aliases("faces") == {"champion": 2, "previous": 1}
    assert registry.names() == ["faces"]
    path = load_source("models:/faces@previous")
    assert path.read_bytes() == (make_folder(1) / "checkpoint.safetensors").read_bytes()
    assert (path.parent / "pictures" / "curve.png").is_file()
    assert (tmp_path / "destination").is_dir() and registry.evidence(better) is not None
    assert registry.rollback("faces").version == 1
    third = registry.register(make_folder(3), "faces")
    assert collect(registry, delete=True, older_than=0).goes == ()
    registry.delete(third.reference)
    assert [v.version for v in registry.versions("faces")] == [2, 1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning", "ignore::DeprecationWarning")
def test_mlflow_itself_loads_a_version(home: Path, make_folder: MakeFolder) -> None:
    registry = Registry()
    registry.promote(registry.register(make_folder(1), "faces").reference)
    code = (
        "import mlflow, sys\n"
        "mlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/faces@champion')\n"
        "assert set(model.predict(None)) == {'w', 'b'}\n"
        "assert model.predict(['w'])['w'].shape == (4, 4)\n"
    )
    subprocess.run([sys.executable, "-c", code, registry.uri], check=True)
