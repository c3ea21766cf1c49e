"""The predictor on Ray Serve: a deployment of its own, which scales by itself, and the way to it."""

from __future__ import annotations

import asyncio
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from serving.prediction import Busy
from serving.predictor import Hypernetworks, Order, Outcome, limit_threads
from serving.store import NotReady

LOGGER = logging.getLogger("metainit.serving")
NAME = "predictor"
BATCH = 4
CPUS = 1
"""Threads of a replica, and what it asks of Ray."""
IDLE_SECONDS = 600.0


class Replica:
    """Predicts in a process of its own, which starts with the first order and ends when none comes."""

    def __init__(self, threads: int, home: str | None) -> None:
        """Open nothing yet."""
        if home is not None:
            os.environ["METAINIT_HOME"] = home
        self._hypernetworks = Hypernetworks()
        self._thread = ThreadPoolExecutor(1, NAME, initializer=limit_threads, initargs=(threads,))

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.002)
    async def predict(self, orders: list[Order]) -> list[Outcome]:
        """Answer the orders that came together."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._hypernetworks.answer, orders)


class RayPredictor:
    """Sends orders to the replicas of the deployment in the application that it is used in."""

    def __init__(self, application: str) -> None:
        """Look for nothing yet."""
        self._application = application

    async def predict(self, order: Order) -> Outcome:
        """Answer one order.

        Raises:
            Busy: too many wait already.
            NotReady: the replica has ended, or none can be started.
        """
        handle: Any = serve.get_deployment_handle(NAME, self._application)
        try:
            outcome: Outcome = await handle.predict.remote(order)
        except BackPressureError as error:
            raise Busy("too many predictions wait; ask again in a moment") from error
        except (RayError, RayServeException) as error:
            LOGGER.error("the predictor has failed: %s", error)
            raise NotReady("the predictor has failed, and is started anew; ask again") from error
        return outcome


def deployment(replicas: int, waiting: int, home: str | None, options: dict[str, Any]) -> Any:
    """Return the deployment, bound to its arguments: from no replica to `replicas`, as orders come."""
    made: Any = serve.deployment(
        Replica,
        name=NAME,
        max_ongoing_requests=2 * BATCH,
        max_queued_requests=waiting,
        autoscaling_config={
            "min_replicas": 0,
            "max_replicas": replicas,
            "target_ongoing_requests": BATCH,
            "upscale_delay_s": 2.0,
            "downscale_delay_s": IDLE_SECONDS,
        },
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": CPUS, **options},
    )
    return made.bind(CPUS, home)
