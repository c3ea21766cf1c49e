"""The endpoint as an application of Ray Serve, for whoever starts Serve: `serve run`, a config file, KubeRay.

`import_path: serving.application:app`, with the arguments of `Arguments`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metainit.errors import EndpointError
from serving.deployments import REPLICA_CPUS, build, default_cache
from serving.peers import Door
from serving.settings import EndpointSettings

SPARE = 64
"""Requests that a replica takes from Ray above its own limit, to refuse them itself or to answer probes."""

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application


class Arguments(BaseModel):
    """What is served and by how many processes.

    Example:
        >>> Arguments(registry='http://mlflow:5000', settings={'replicas': 2}).settings.replicas
        2
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str | None = Field(None, description="address of the registry; default: the configured one")
    cache: Path | None = Field(None, description="folder of verified copies; default: in METAINIT_HOME")
    poll: float = Field(2.0, gt=0, description="seconds between looks at the registry")
    predictors: int = Field(2, ge=1, description="processes that predict weights, at most")
    settings: EndpointSettings = Field(
        EndpointSettings(), description="keys, limits, and how many replicas share the folder of copies"
    )


def app(args: dict[str, Any]) -> Application:
    """Return the endpoint, bound; Serve calls this with the arguments of its config.

    Raises:
        EndpointError: an argument is unknown, or not what it has to be.
    """
    try:
        arguments = Arguments.model_validate(args)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'arguments'}: {p['msg']}" for p in error.errors())
        known = ", ".join(Arguments.model_fields)
        raise EndpointError(f"the arguments of the endpoint are not valid: {said}; known: {known}") from error
    return bound(arguments, {})


def bound(arguments: Arguments, options: Mapping[str, Any], door: Door | None = None) -> Application:
    """Return the endpoint's deployments; `options` go to every actor of theirs, beside its own.

    `door`: the proxy that every request has to come through, if there is one.
    """
    from ray import serve

    from serving import ray_predictor

    home = os.environ.get("METAINIT_HOME")
    cache = str((arguments.cache or default_cache()).absolute())
    registry, poll, settings = arguments.registry, arguments.poll, arguments.settings

    def make() -> FastAPI:
        return build(registry, home, cache, poll, settings, door)

    deployment: Any = serve.deployment(
        serve.ingress(make)(),
        name="endpoint",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.in_flight + SPARE,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=5,
        ray_actor_options={"num_cpus": REPLICA_CPUS, **options},
    )
    predictor = ray_predictor.deployment(arguments.predictors, settings.queue, home, dict(options))
    made: Application = deployment.bind(predictor)
    return made
