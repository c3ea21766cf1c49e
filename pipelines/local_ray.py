"""Ray as a training run needs it: the cluster that RAY_ADDRESS names, or a small one on this machine."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from metainit.errors import MetainitError

OBJECT_STORE_BYTES = 256 << 20
"""Training moves nothing through the object store; Ray's default is a third of the memory."""

PROBE_SECONDS = 5.0
"""How long a cluster may take to accept a connection."""

# Each part that is left out saves a process, or seconds at the start and the end (docs/training.md).
SETTINGS: Mapping[str, str] = {
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    # Workers stay in the folder that a recipe's relative paths are meant for.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
LOCAL_SETTINGS: Mapping[str, str] = {
    # A machine of one's own is not taken away with a warning.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Workers are what the user waits for: at Ray's niceness of 15 a busy machine leaves them next to nothing.
    "RAY_worker_niceness": "0",
}


@contextmanager
def ray_cluster() -> Iterator[None]:
    """Use the Ray that runs in this process, else the one at RAY_ADDRESS, else start a local one.

    What this starts or connects to is left again at the end. Environment variables that the user has set
    stay as they are.

    Raises:
        MetainitError: nothing answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS")
    with environment(SETTINGS if address else {**SETTINGS, **LOCAL_SETTINGS}):
        import ray

        if ray.is_initialized():
            yield
            return
        with quiet_logger("ray"):
            try:
                if address:
                    _probe(address)
                    ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
                else:
                    ray.init(
                        address="local",
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        object_store_memory=OBJECT_STORE_BYTES,
                        _system_config={"prestart_worker_first_driver": False},
                    )
            except Exception as error:  # a machine too busy to start Ray in time gets a bare Exception
                raise MetainitError(_unreachable(address, error)) from error
            try:
                yield
            finally:
                ray.shutdown()


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for as long as this is open.

    Example:
        >>> with environment({'METAINIT_EXAMPLE': '1'}):
        ...     os.environ['METAINIT_EXAMPLE']
        '1'
        >>> 'METAINIT_EXAMPLE' in os.environ
        False
    """
    added = {k: v for k, v in settings.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def quiet_logger(*names: str) -> Iterator[None]:
    """Let loggers pass errors only, for as long as this is open."""
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def cpus_for_each(nodes: list[float], workers: int) -> float:
    """Return the most CPUs that every worker can have, given the CPUs of each node.

    Example:
        >>> cpus_for_each([8.0], 3), cpus_for_each([8.0, 4.0], 3), cpus_for_each([2.0], 4)
        (2, 4, 0.5)
    """
    for count in range(int(max(nodes, default=0)), 0, -1):
        if sum(int(cpus // count) for cpus in nodes) >= workers:
            return count
    return max(0.01, sum(nodes) / workers)


def worker_cpus(nodes: list[float], workers: int) -> float:
    """Return the CPUs that each worker asks of a Ray whose nodes have so many free.

    On one node that is its share. On several, one CPU at least, and at most what the others could still give
    if the largest of them were lost: what was asked for at the start is asked for again after a failure.

    Example:
        >>> worker_cpus([8.0], 3), worker_cpus([8.0, 8.0, 8.0], 2), worker_cpus([0.0, 1.0, 1.0], 2)
        (2, 8, 1)
    """
    if len(nodes) == 1:
        return cpus_for_each(nodes, workers)
    return max(1, cpus_for_each(sorted(nodes)[:-1], workers))


def free_cpus() -> list[float]:
    """Return the CPUs that are free on each node."""
    from ray._private.state import available_resources_per_node

    nodes: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return [float(node.get("CPU", 0)) for node in nodes.values()]


def _probe(address: str) -> None:
    """Knock at ``host:port``; Ray itself would wait for minutes where nobody answers."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS):
            pass


def _unreachable(address: str | None, error: Exception) -> str:
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if address:
        return f"no Ray cluster answers at RAY_ADDRESS={address}: {first}; start it, or unset RAY_ADDRESS"
    return (
        f"Ray cannot start on this machine: {first}; it may be too busy: try again when less is running, or "
        "set RAY_ADDRESS to a cluster that is up"
    )
