"""Which names the endpoint answers to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from serving import deployments
from serving.app import create_app
from serving.haproxy import free_port
from serving.hosts import guarded_by_name
from serving.settings import EndpointSettings
from serving.store import Store
from tests.serving.inprocess import InProcess


def asked(store: Store, settings: EndpointSettings, *hosts: str) -> list[int]:
    app = create_app(store, settings=settings)
    with InProcess(app) as transport, httpx.Client(transport=transport, base_url="http://e") as http:
        return [http.get("/v1/inits", headers={"host": host}).status_code for host in hosts]


def test_without_keys_a_loopback_endpoint_answers_to_this_machine_only(store: Store) -> None:
    settings = guarded_by_name(EndpointSettings(hosts=("Starts.example",)), "127.0.0.1")
    ours = ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "starts.example:8080"]
    others = [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "",
        "localhost.evil",
        "[::2]",
    ]
    assert asked(store, settings, *ours) == [200] * len(ours)
    assert asked(store, settings, *others) == [403] * len(others)


def test_the_refusal_is_a_problem_that_names_the_way_out(store: Store) -> None:
    app = create_app(store, settings=EndpointSettings(hosts=("localhost",)))
    with (
        InProcess(app) as transport,
        httpx.Client(transport=transport, base_url="http://evil.example") as http,
    ):
        answer = http.get("/v1/inits")
    assert answer.json()["type"] == "urn:metainit:problem:forbidden" and "`hosts`" in answer.json()["detail"]
    assert answer.headers["x-request-id"] and answer.headers["x-content-type-options"] == "nosniff"


def test_where_others_may_come_in_any_name_is_good(store: Store, tmp_path: Path) -> None:
    assert guarded_by_name(EndpointSettings(), "0.0.0.0").hosts == ()
    assert guarded_by_name(EndpointSettings(keys=tmp_path / "keys.json"), "127.0.0.1").hosts == ()
    assert "127.0.0.7" in guarded_by_name(EndpointSettings(), "127.0.0.7").hosts
    assert asked(store, EndpointSettings(), "any.example") == [200]


class _Stopped(Exception):
    pass


def test_a_start_on_loopback_is_told_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[EndpointSettings] = []

    def stop(settings: EndpointSettings) -> Any:
        came.append(settings)
        raise _Stopped

    monkeypatch.setattr(deployments, "check_certificate", stop)
    for host in ("127.0.0.1", "0.0.0.0"):
        with pytest.raises(_Stopped):
            deployments.start(host, port=free_port())
    assert [bool(settings.hosts) for settings in came] == [True, False]


@pytest.mark.parametrize("name", ["http://a", "a:80", "a b", ""])
def test_a_host_is_a_name_without_port(name: str) -> None:
    with pytest.raises(ValidationError):
        EndpointSettings(hosts=(name,))
