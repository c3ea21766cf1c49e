"""What computes, on Ray Serve: deployments of their own, which scale by themselves, and the way to them."""

from __future__ import annotations

import logging
import os
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException

from serving.generator import Draw, Generators
from serving.making import Busy
from serving.predictor import Hypernetworks, Order
from serving.store import NotReady
from serving.work import BATCH, Answers, Aside, Outcome

LOGGER = logging.getLogger("metainit.serving")
PREDICTOR, GENERATOR = "predictor", "generator"
WANTED_ONGOING = 4
"""Orders a replica beyond which another one is started."""
THREADS = 1
"""Of a replica."""
CPUS = 0.4
"""What a replica asks of Ray: a machine of two cores has room for all that it may start."""
IDLE_SECONDS = 600.0
BATCH_SECONDS = 0.005
"""How long a replica that is idle waits for more orders than the first."""


class Replica:
    """Computes in a process of its own, which starts with the first order and ends when none comes."""

    def __init__(self, product: str, threads: int, home: str | None, batch: int = BATCH) -> None:
        """Open nothing yet."""
        if home is not None:
            os.environ["METAINIT_HOME"] = home
        answers: Answers[Any] = Generators() if product == GENERATOR else Hypernetworks()
        self._aside: Aside[Any] = Aside(answers, threads)
        method: Any = self.answer
        method.set_max_batch_size(batch)

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_SECONDS)
    async def answer(self, orders: list[Any]) -> list[Outcome]:
        """Answer the orders that came together."""
        return await self._aside.answer(orders)


class _Sender:
    """Sends orders to the replicas of a deployment in the application that it is used in."""

    def __init__(self, name: str, application: str) -> None:
        """Look for nothing yet."""
        self._name, self._application = name, application

    async def send(self, order: Any) -> Outcome:
        """Answer one order.

        Raises:
            Busy: too many wait already.
            NotReady: the replica has ended, or none can be started.
        """
        handle: Any = serve.get_deployment_handle(self._name, self._application)
        try:
            outcome: Outcome = await handle.answer.remote(order)
        except BackPressureError as error:
            raise Busy("too many orders wait; ask again in a moment") from error
        except (RayError, RayServeException) as error:
            LOGGER.error("the %s has failed: %s", self._name, error)
            raise NotReady(f"the {self._name} has failed, and is started anew; ask again") from error
        return outcome


class RayPredictor:
    """Has hypernetworks predict in the deployment of the application that it is used in."""

    def __init__(self, application: str) -> None:
        """Look for nothing yet."""
        self._sender = _Sender(PREDICTOR, application)

    async def predict(self, order: Order) -> Outcome:
        """Answer one order.

        Raises:
            Busy: too many wait already.
            NotReady: the replica has ended, or none can be started.
        """
        return await self._sender.send(order)


class RayDrawer:
    """Has generators draw in the deployment of the application that it is used in."""

    def __init__(self, application: str) -> None:
        """Look for nothing yet."""
        self._sender = _Sender(GENERATOR, application)

    async def generate(self, draw: Draw) -> Outcome:
        """Answer one draw.

        Raises:
            Busy: too many wait already.
            NotReady: the replica has ended, or none can be started.
        """
        return await self._sender.send(draw)


def deployment(
    name: str, replicas: int, waiting: int, home: str | None, options: dict[str, Any], batch: int = BATCH
) -> Any:
    """Return a deployment, bound to its arguments: from no replica to `replicas`, as orders come.

    Args:
        name: `PREDICTOR` or `GENERATOR`.
        replicas: at most.
        waiting: orders that may wait.
        home: the folder of METAINIT_HOME in its processes.
        options: further ones of its actors.
        batch: orders that are answered together, at most.
    """
    made: Any = serve.deployment(
        Replica,
        name=name,
        max_ongoing_requests=2 * batch,
        max_queued_requests=waiting,
        autoscaling_config={
            "min_replicas": 0,
            "max_replicas": replicas,
            "target_ongoing_requests": WANTED_ONGOING,
            "upscale_delay_s": 2.0,
            "downscale_delay_s": IDLE_SECONDS,
        },
        graceful_shutdown_timeout_s=5,
        ray_actor_options={"num_cpus": CPUS, **options},
    )
    return made.bind(name, THREADS, home, batch)
