"""Ray Train for real: a run that is logged, and one whose worker is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from metainit import errors
from metainit.errors import DivergenceError, MetainitError, RecipeError
from pipelines import ray_train
from pipelines.folder import SCRATCH, RunFolder
from pipelines.journal import Journal, Reader
from pipelines.local_ray import cpus_for_each, environment, ray_cluster, worker_cpus
from pipelines.preparation import prepare
from pipelines.ray_train import DRIVER, JOURNAL, _answer, _shared, recorded_run, run_on_ray
from pipelines.recipe import load_recipe
from pipelines.tracking import ListSink, MlflowSink
from pipelines.train import train
from tests.pipelines.clusters import descendants

CT = "ct-phantoms-debug"
# Ray Data, which Ray Train imports, warns about its own settings.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.*")


def test_a_machine_that_is_too_busy_for_ray_gets_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late(*_: object, **__: object) -> None:
        raise Exception("The current node timed out during startup")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", late)
    says = "timed out during startup; .*try again.*, or set RAY_ADDRESS"
    with pytest.raises(MetainitError, match=says), ray_cluster():
        raise AssertionError("there is no Ray")


def test_a_journal_survives_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / JOURNAL
    reader, sink = Reader(path), ListSink()
    assert list(reader.news()) == []
    first = Journal(path)
    first.log_metrics({"loss": 3.0}, step=1)
    first.log_metrics({"loss": 2.0}, step=2)
    first.close()
    with path.open("a") as stream:
        stream.write('{"step": 3, "metr')
    for line in reader.news():
        reader.forward(line, sink)
    second = Journal(path)  # goes on from the state of step 1
    second.log_metrics({"loss": 2.0}, step=2)
    second.log_metrics({"loss": 1.0}, step=3)
    second.progress(3, 4, 1.0, 0.5)
    second.close()
    news = list(reader.news())
    assert [line["progress"] for line in news if "progress" in line] == [[3, 4, 1.0, 0.5]]
    for line in news:
        if "metrics" in line:
            reader.forward(line, sink)
    assert sink.metrics == [(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 1.0})]


def test_errors_of_a_worker_come_back_as_they_were(tmp_path: Path) -> None:
    recipe = load_recipe(CT)
    run = RunFolder(tmp_path, recipe, prepare(recipe).source)
    with pytest.raises(DivergenceError, match="outer step 3"):
        _answer({"error": "DivergenceError", "text": "outer step 3: too far"}, run)
    with pytest.raises(MetainitError, match="share"):
        _answer({"metrics": {}}, run)
    with pytest.raises(MetainitError, match="returned None"):
        _answer(None, run)
    assert issubclass(errors.DivergenceError, MetainitError)


def test_what_is_wrong_is_said_before_ray_starts(tmp_path: Path) -> None:
    train(load_recipe(CT), tmp_path, sink=ListSink())
    with pytest.raises(RecipeError, match="another recipe"):
        run_on_ray(load_recipe(CT, ["seed=1"]), tmp_path, open_sink=ListSink)
    outcome = run_on_ray(load_recipe(CT), tmp_path, open_sink=ListSink)
    assert not outcome.trained and outcome.checkpoint.is_file()


def test_an_address_where_nothing_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(MetainitError, match=r"RAY_ADDRESS=127\.0\.0\.1:1"), ray_cluster():
        pass


def test_settings_of_the_user_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "1")
    with environment({"RAY_CHDIR_TO_TRIAL_DIR": "0", "METAINIT_TEST": "1"}):
        assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "1" and os.environ["METAINIT_TEST"] == "1"
    assert os.environ["RAY_CHDIR_TO_TRIAL_DIR"] == "1" and "METAINIT_TEST" not in os.environ


@pytest.mark.parametrize(
    "nodes", [[8.0, 8.0], [0.0, 4.0, 4.0, 4.0], [16.0, 2.0, 2.0], [64.0] * 5, [1.0, 1.0, 1.0]]
)
@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_workers_still_fit_when_a_node_is_lost(nodes: list[float], workers: int) -> None:
    cpus = worker_cpus(nodes, workers)
    for lost in range(len(nodes)):
        rest = nodes[:lost] + nodes[lost + 1 :]
        room = sum(int(node // cpus) for node in rest)
        assert room >= workers or cpus == 1
    assert cpus <= max(1, cpus_for_each(nodes, workers))


def test_one_node_is_shared_whole() -> None:
    assert worker_cpus([8.0], 1) == 8 and worker_cpus([2.0], 4) == 0.5


def test_a_folder_that_is_not_the_drivers_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_train, "SHARED_SECONDS", 0.3)
    file = tmp_path / DRIVER
    assert not _shared(file, "mine")
    file.write_text("another driver's")
    assert not _shared(file, "mine")
    threading.Timer(0.1, file.write_text, ["mine"]).start()
    assert _shared(file, "mine")


@pytest.mark.ray
def test_a_run_on_ray_is_the_plain_run(tmp_path: Path, home: Path) -> None:
    recipe = load_recipe(CT)
    seen: list[int] = []
    outcome = run_on_ray(recipe, tmp_path / "ray", progress=lambda step, *_: seen.append(step))
    assert isinstance(outcome.sink, MlflowSink)
    outcome.sink.close()
    assert outcome.trained and seen == list(range(1, 13))
    assert recorded_run(tmp_path / "ray") == outcome.sink.run_id
    history = outcome.sink.connection.client.get_metric_history(outcome.sink.run_id, "loss")
    assert [metric.step for metric in history] == list(range(1, 13))
    run = outcome.sink.connection.client.get_run(outcome.sink.run_id)
    assert run.data.params["outer.steps"] == "12" and run.info.status == "FINISHED"
    assert not (tmp_path / "ray" / SCRATCH).exists()
    plain = train(recipe, tmp_path / "plain", sink=ListSink())
    assert outcome.checkpoint.read_bytes() == plain.checkpoint.read_bytes()
    assert outcome.metrics == plain.metrics


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_says_how_it_goes_on(tmp_path: Path, home: Path) -> None:
    settings = ["outer.steps=100000", "checkpoint_every=5"]
    command = [sys.executable, "-m", "metainit.cli", "train", CT, "--out", str(tmp_path / "run")]
    command += [part for setting in settings for part in ("--set", setting)]
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        scratch = tmp_path / "run" / SCRATCH
        until = time.monotonic() + 120
        while not list(scratch.glob("step-*.safetensors")):
            assert time.monotonic() < until and process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130, (tmp_path / "said").read_text()
    assert "interrupted: the same command goes on" in (tmp_path / "said").read_text()
    assert "Traceback" not in (tmp_path / "said").read_text()
    recipe = load_recipe(CT, settings)
    assert (RunFolder(tmp_path / "run", recipe, prepare(recipe).source).saved_step() or 0) >= 5


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_that_goes_on_says_where_and_shows_nothing_of_before(tmp_path: Path) -> None:
    recipe = load_recipe(CT)
    run = RunFolder(tmp_path, recipe, prepare(recipe).source)
    assert run.saved_step() is None
    train(recipe, tmp_path, sink=ListSink())
    run.checkpoint.unlink()  # as if it had been killed in its last step
    first = max(run.scratch.glob("step-*"))
    first.rename(first.with_name("step-0000000009.part"))
    began = run.saved_step()
    assert began is not None and began < 12
    journal = Journal(run.scratch / JOURNAL)
    for step in range(1, 12):
        journal.progress(step, 12, 1.0, 0.1)
    journal.close()
    seen: list[int] = []
    notes: list[str] = []
    run_on_ray(
        recipe,
        tmp_path,
        progress=lambda step, *_: seen.append(step),
        open_sink=ListSink,
        note=notes.append,
    )
    assert seen == list(range(began + 1, 13))
    assert any(f"after step {began}" in note for note in notes)


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_resumes(tmp_path: Path) -> None:
    recipe = load_recipe(CT, ["workers=2", "outer.steps=300", "checkpoint_every=20", "dtype=float64"])
    killed: list[int] = []

    def kill() -> None:
        journal = Reader(tmp_path / "ray" / SCRATCH / JOURNAL)
        while not any(line.get("progress", [0])[0] > 50 for line in journal.news()):
            time.sleep(0.05)
        workers = [pid for pid, line in descendants(os.getpid()).items() if "RayTrainWorker" in line]
        os.kill(workers[0], signal.SIGKILL)
        killed.append(workers[0])

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    seen: list[int] = []
    outcome = run_on_ray(
        recipe, tmp_path / "ray", progress=lambda step, *_: seen.append(step), open_sink=ListSink
    )
    assert killed and isinstance(outcome.sink, ListSink)
    restarted = [after for before, after in zip(seen, seen[1:], strict=False) if after <= before]
    assert len(restarted) == 1 and (restarted[0] - 1) % 20 == 0 and restarted[0] > 20
    assert [step for step, metrics in outcome.sink.metrics if "loss" in metrics] == list(range(1, 301))
    whole = run_on_ray(recipe, tmp_path / "whole", open_sink=ListSink)
    assert outcome.checkpoint.read_bytes() == whole.checkpoint.read_bytes()


@pytest.mark.ray
@pytest.mark.slow
def test_divergence_on_ray_is_not_tried_again(tmp_path: Path) -> None:
    settings = [
        "network={name: siren, width: 12, depth: 3}",
        "start=siren",
        "algorithm={rule: meta_sgd, inner_step_size: 1e30}",
    ]
    sinks: list[ListSink] = []

    def open_sink() -> ListSink:
        sinks.append(ListSink())
        return sinks[0]

    with pytest.raises(DivergenceError, match="outer step 0"):
        run_on_ray(load_recipe(CT, settings), tmp_path, open_sink=open_sink)
    assert sinks[0].closed == "failed"
