"""The endpoint as an application of Ray Serve, for whoever starts Serve: `serve run`, a config file, KubeRay.

`import_path: serving.application:app`, with the arguments of `serving.arguments.Arguments`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from metainit.errors import EndpointError
from serving.arguments import Arguments
from serving.deployments import REPLICA_CPUS, build, default_cache
from serving.generation import GenerationLimits
from serving.key_file import read
from serving.peers import Door
from serving.settings import load_settings

SPARE = 64
"""Requests that a replica takes from Ray above its own limit, to refuse them itself or to answer probes."""

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application


def app(args: dict[str, Any]) -> Application:
    """Return the endpoint, bound; Serve calls this with the arguments of its config.

    Settings that the arguments leave open are those of the environment (METAINIT_SERVE_...).

    Raises:
        EndpointError: an argument is unknown, or not what it has to be; the keys cannot be read; or there
            are none, and nothing says that everybody may come in.
        RecipeError: the same of a setting.
    """
    try:
        arguments = Arguments.model_validate(args)
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'arguments'}: {p['msg']}" for p in error.errors())
        known = ", ".join(Arguments.model_fields)
        raise EndpointError(f"the arguments of the endpoint are not valid: {said}; known: {known}") from error
    settings = load_settings(options=arguments.settings.model_dump(exclude_unset=True))
    if settings.keys is not None:
        read(settings.keys)
    elif not arguments.public:
        raise EndpointError(
            "this endpoint has no keys, and whoever reaches its address could read what it serves; make one "
            "(metainit keys make) and name the file in METAINIT_SERVE_KEYS or settings: {keys: ...}, or give "
            "the argument public: true if open to all is what you want"
        )
    return bound(arguments.model_copy(update={"settings": settings}), {})


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
        health_check_period_s=1,  # how long a dead replica goes unnoticed
        ray_actor_options={"num_cpus": REPLICA_CPUS, **options},
    )
    workers = [
        ray_predictor.deployment(name, most, waiting, home, dict(options))
        for name, most, waiting in (
            (ray_predictor.PREDICTOR, arguments.predictors, settings.queue),
            # A single request sends as many draws as it has networks.
            (ray_predictor.GENERATOR, arguments.generators, GenerationLimits().waiting),
        )
    ]
    made: Application = deployment.bind(*workers)
    return made
