"""The endpoint as an application of Ray Serve, bound without a Ray."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from metainit.errors import EndpointError
from serving import key_file, keys
from serving.application import SPARE, app
from serving.arguments import Arguments
from serving.deployments import APPLICATION
from serving.generation import GenerationLimits
from serving.ray_predictor import GENERATOR, PREDICTOR

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray brings warnings of its own


def bound(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **args: Any) -> dict[str, Any]:
    """Return the deployments of the application by name."""
    from ray.serve._private.build_app import build_app

    monkeypatch.setenv("METAINIT_HOME", str(tmp_path))
    built = build_app(app({"public": True, **args}), name=APPLICATION)
    return {deployment.name: deployment for deployment in built.deployments}


def test_serve_builds_the_endpoint_and_its_predictor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = bound(monkeypatch, tmp_path, settings={"replicas": 3}, predictors=5, registry="http://mlflow:5000")
    assert set(made) == {"endpoint", PREDICTOR, GENERATOR}
    assert made["endpoint"].num_replicas == 3
    assert made[PREDICTOR]._deployment_config.autoscaling_config.max_replicas == 5


def test_the_builder_is_one_that_serve_takes() -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    assert list(inspect.signature(app).parameters) == ["args"]
    application: Any = app
    build(application, {"cache": "/var/cache/metainit", "public": True})


def test_without_keys_it_has_to_be_said_that_everybody_may_come_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAINIT_HOME", str(tmp_path))
    with pytest.raises(EndpointError, match="no keys.*METAINIT_SERVE_KEYS.*public: true"):
        app({})
    monkeypatch.setenv("METAINIT_SERVE_KEYS", str(tmp_path / "keys.json"))
    for args in ({}, {"public": True}):
        with pytest.raises(EndpointError, match="there are no keys at"):
            app(args)
    made = keys.make(["read"], datetime.now(UTC)).key
    key_file.change(tmp_path / "keys.json", lambda _: ((made,), None))
    assert set(bound(monkeypatch, tmp_path, public=False)) == {"endpoint", PREDICTOR, GENERATOR}


def test_a_request_for_as_many_networks_as_allowed_has_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = bound(monkeypatch, tmp_path, settings={"queue": 5})
    limits = GenerationLimits()
    assert made[GENERATOR]._deployment_config.max_queued_requests == limits.waiting >= limits.count
    assert made[PREDICTOR]._deployment_config.max_queued_requests == 5


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            {"replica": 2},
            r"replica: Extra inputs.*known: registry, cache, poll, predictors, generators, public, settings",
        ),
        ({"settings": {"replicas": 0}}, "settings.replicas: Input should be greater than or equal to 1"),
        ({"poll": "often"}, "poll: Input should be a valid number"),
    ],
)
def test_wrong_arguments_are_named(args: dict[str, Any], says: str) -> None:
    with pytest.raises(EndpointError, match=says):
        app(args)


def test_the_arguments_are_those_of_the_guide() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text()
    assert all(f"\n| `{name}` |" in page for name in Arguments.model_fields)


def test_what_the_arguments_leave_open_is_the_environments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METAINIT_SERVE_REPLICAS", "4")
    monkeypatch.setenv("METAINIT_SERVE_IN_FLIGHT", "10")
    made = bound(monkeypatch, tmp_path, settings={"replicas": 3})["endpoint"]
    assert made.num_replicas == 3
    assert made._deployment_config.max_ongoing_requests == 10 + SPARE
