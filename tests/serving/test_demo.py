"""The tour: `metainit demo` for real, shortened; and its parts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import skimage.io
import yaml

from metainit.errors import MetainitError
from metainit.evidence.measuring import Evidence
from metainit.evidence.record import EvidenceRecord
from pipelines.finish import Finished
from pipelines.folder import RECIPE
from pipelines.gate import Decision
from pipelines.recipe import load_recipe
from pipelines.version import Version
from serving.demo import NEEDED_DECIBELS, Laps, Tour, check_fetched, clear_earlier
from serving.haproxy import free_port

LIMIT_S = 420.0
"""A quarter of this on an idle machine with two cores; it ends what hangs, and measures nothing."""
RECORD = {
    "domain": None,
    "data_fingerprint": "x",
    "network": None,
    "metric": "psnr",
    "steps": [0, 2],
    "task_ids": ["a", "b"],
    "seeds": [0],
    "curves": [
        {
            "source": "prior", "role": "candidate", "routine": {},
            "values": [[[10.0, 20.0], [12.0, 24.0]]],
            "mean": [11.0, 22.0], "low": [10.0, 20.0], "high": [12.0, 24.0],
        }
    ],
    "comparisons": [],
}  # fmt: skip


@pytest.mark.ray
@pytest.mark.timeout(LIMIT_S + 60)
def test_the_shortened_demo_for_real(tmp_path: Path) -> None:
    """Meta-training on Ray, evidence, the registry, the endpoint, and the way back over HTTP."""
    places = {"METAINIT_HOME": str(tmp_path / "home"), "METAINIT_CACHE": str(tmp_path / "cache")}
    unwanted = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "RAY_ADDRESS")
    environment = {k: v for k, v in os.environ.items() if k not in unwanted} | places
    command = [sys.executable, "-m", "metainit.cli", "demo", "--quick", "--json"]
    began = time.monotonic()
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    took = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-4000:]
    answer = json.loads(done.stdout)  # nothing but JSON on stdout
    headline = answer["headline"]
    assert answer["convincing"] and headline["steps"] == 2
    assert headline["gain"] >= NEEDED_DECIBELS and headline["low"] > 0
    assert answer["version"] == "image-photos/1" and answer["aliases"] == ["champion"]
    assert answer["gate"].startswith(f"better than {headline['control']} by")
    assert 15 < answer["fetched"] < 60
    assert list(answer["seconds"]) == ["train", "evidence and registry", "endpoint", "fetch and adapt"]
    assert all(seconds > 0 for seconds in answer["seconds"].values())
    assert sum(answer["seconds"].values()) < took
    picture = Path(answer["picture"])
    assert picture.parent == tmp_path / "demo-out"
    for file in (picture, picture.with_name("evidence.png")):
        assert skimage.io.imread(file).std() > 10
    assert "step " in done.stderr and " left" in done.stderr
    # What is registered is there for the next command.
    shown = subprocess.run(
        [sys.executable, "-m", "metainit.cli", "show", "image-photos", "--json"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-4000:]
    assert json.dumps(headline["gain"]) in shown.stdout
    assert list((tmp_path / "cache").rglob("*.safetensors"))  # it did come over HTTP


def tour(fetched: float, gain: float = 7.0, low: float = 5.0) -> Tour:
    headline = {
        "metric": "psnr", "steps": 2, "value": 22.0, "control": "siren", "control_value": 22.0 - gain,
        "gain": gain, "low": low, "high": gain + 2, "tasks": 2, "seeds": 1,
    }  # fmt: skip
    evidence = Evidence(EvidenceRecord.model_validate({**RECORD, "headline": headline}))
    version = Version("demo", 1, (), "", 0, "prior", "meta_sgd", None, headline, None)
    finished = Finished(evidence, version, Decision("champion", ""), Path())
    return Tour(finished, Path(), fetched, {})


def test_fetched_weights_have_to_do_what_the_measured_ones_did() -> None:
    check_fetched(tour(22.004))
    with pytest.raises(MetainitError, match=r"reach 21\.950 dB on 2 crops, the measured ones 22\.000 dB"):
        check_fetched(tour(21.95))


@pytest.mark.parametrize(
    ("gain", "low", "convincing"), [(6.0, 0.1, True), (5.9, 5.0, False), (9.0, -0.1, False)]
)
def test_what_convinces(gain: float, low: float, convincing: bool) -> None:
    assert tour(22.0, gain, low).convincing is convincing


def test_laps_add_up_to_the_whole_time() -> None:
    laps, began = Laps(), time.monotonic()
    for name in ("one", "two"):
        time.sleep(0.12)
        laps.lap(name)
    assert list(laps.seconds) == ["one", "two"]
    assert all(seconds >= 0.1 for seconds in laps.seconds.values())
    assert sum(laps.seconds.values()) <= time.monotonic() - began + 0.1


def test_a_free_port_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))


def test_only_an_earlier_demo_is_cleared_away(tmp_path: Path) -> None:
    recipe, run = load_recipe("image-photos-debug"), tmp_path / "run"
    clear_earlier(run, recipe)
    run.mkdir()
    clear_earlier(run, recipe)
    (run / "thesis.txt").write_text("years of work")
    with pytest.raises(MetainitError, match="not an earlier demo's: choose another folder"):
        clear_earlier(run, recipe)
    other = load_recipe("ct-phantoms-debug")
    (run / RECIPE).write_text(yaml.safe_dump(other.dump()))
    with pytest.raises(MetainitError, match="not an earlier demo's"):
        clear_earlier(run, recipe)
    assert (run / "thesis.txt").read_text() == "years of work"
    (run / RECIPE).write_text(yaml.safe_dump(recipe.dump()))
    clear_earlier(run, recipe)
    assert not run.exists()
