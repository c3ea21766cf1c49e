"""Metrics of several replicas: kept apart, seen from each, gone with their replica."""

from __future__ import annotations

import os
import time
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from metainit.errors import CheckpointError
from serving import snapshots
from serving.app import create_app
from serving.snapshots import KEPT, Snapshots, merged
from serving.store import Store
from tests.serving.inprocess import InProcess
from tests.serving.scraped import scraped
from tests.serving.shelf import Shelf


def metrics(asked: int) -> str:
    registry = CollectorRegistry()
    Counter("asked", "requests", ["route"], registry=registry).labels('/a"b').inc(asked)
    seconds = Histogram("seconds", "how long", registry=registry, buckets=(0.1, 1.0))
    for _ in range(asked):
        seconds.observe(0.5)
    return generate_latest(registry).decode()


def test_a_family_is_told_once_and_has_the_samples_of_all() -> None:
    text = merged({"one": metrics(2), "two": metrics(3)}).decode()
    assert text.count("# TYPE asked_total counter") == 1
    assert scraped(text, "asked_total", replica="one", route='/a"b') == 2
    assert scraped(text, "asked_total") == scraped(text, "seconds_count") == 5
    assert scraped(text, "seconds_bucket", replica="two", le="0.1") == 0
    assert scraped(text, "seconds_bucket", replica="two", le="+Inf") == 3


def test_each_shows_what_all_have_written(tmp_path: Path) -> None:
    first, second = (Snapshots(tmp_path / "metrics", lambda n=n: metrics(n)) for n in (2, 3))
    assert scraped(first.shown().decode(), "asked_total") == 2
    first.write()
    second.write()
    assert scraped(first.shown().decode(), "asked_total") == 5
    assert scraped(second.shown().decode(), "asked_total", replica=first.replica) == 2
    second.stop()
    assert scraped(first.shown().decode(), "asked_total") == 2


def test_a_replica_that_was_killed_goes_after_a_while(tmp_path: Path) -> None:
    killed, alive = Snapshots(tmp_path, lambda: metrics(2)), Snapshots(tmp_path, lambda: metrics(3))
    killed.write()
    long_ago = time.time() - 2 * KEPT
    os.utime(tmp_path / f"{killed.replica}.prom", (long_ago, long_ago))
    assert scraped(alive.shown().decode(), "asked_total") == 3
    alive.write()
    assert [path.stem for path in tmp_path.iterdir()] == [alive.replica]


def test_a_full_disk_costs_the_view_of_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise CheckpointError("no space left")

    monkeypatch.setattr(snapshots, "write_atomically", full)
    monkeypatch.setattr(snapshots, "EVERY", 0.01)
    one = Snapshots(tmp_path, lambda: metrics(2))
    one.start()
    until = time.monotonic() + 20
    while len(caplog.records) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert scraped(one.shown().decode(), "asked_total") == 2
    one.stop()
    assert len(caplog.records) >= 2 and "no space left" in caplog.text


def test_two_apps_over_one_store_answer_for_both(shelf: Shelf, tmp_path: Path) -> None:
    apps = [create_app(Store(shelf, tmp_path / "store", poll=60.0)) for _ in range(2)]
    with (
        InProcess(apps[0]) as one,
        InProcess(apps[1]) as other,
        httpx.Client(transport=one, base_url="http://e") as first,
        httpx.Client(transport=other, base_url="http://e") as second,
    ):
        for _ in range(3):
            second.get("/healthz")
        until = time.monotonic() + 20
        while first.get("/metrics").text.count("\nmetainit_inits{") < 2:
            assert time.monotonic() < until
            time.sleep(0.05)
        text = second.get("/metrics").text
        assert scraped(text, "metainit_requests_total", route="/healthz") == 3
        assert text.count("\nmetainit_inits{") == 2
