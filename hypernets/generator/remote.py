"""A generator behind an endpoint: weights are drawn there, and fill networks here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hypernets.generator.conditions import Condition, as_condition
from hypernets.generator.description import What, description_of
from metainit import checkpoint as files
from metainit.adaptation import Progress, Task
from metainit.card import AdaptationRoutine, Card, canonical_json, read_card
from metainit.checkpoint import Checkpoint
from metainit.client import Client
from metainit.fill import fill
from metainit.initialization import run_stored
from metainit.observed import observed
from metainit.references import parse_url

SEEDS = 2**53
"""Seeds are drawn below: every JSON reader has these integers."""


class RemoteGenerated:
    """A generator on an endpoint, as a start for the network that its base is of."""

    def __init__(self, connect: Callable[[], AbstractContextManager[Client]], reference: str) -> None:
        self._connect, self._reference = connect, reference
        self._drawn: Checkpoint | None = None

    @property
    def card(self) -> Card:
        """The generator's own card."""
        return read_card(canonical_json(self._shown["card"]))

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The generator's evidence."""
        found = self._shown.get("evidence")
        return found if isinstance(found, dict) else None

    @property
    def observed_shape(self) -> tuple[int, ...]:
        """The shape of an observation, empty where the generator takes none."""
        return description_of(self.card).config.conditions.observation

    @cached_property
    def _shown(self) -> dict[str, Any]:
        with self._connect() as client:
            return client.show(self._reference)

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
        condition: Condition = None,
        observation: Any = None,
        what: What | None = None,
    ) -> nn.Module:
        """Fill the network in place with a start of its own and return it.

        Raises:
            EndpointError: the endpoint cannot be reached, or has no such start; nothing is changed.
            MismatchError: the network is another one than the base's; nothing is changed.
        """
        (drawn,) = self.generate(1, seed, condition=condition, observation=observation, what=what)
        return fill(network, drawn.weights, f"generator {self._reference!r}")

    def generate(
        self,
        count: int,
        seed: int | None = None,
        *,
        condition: Condition = None,
        observation: Any = None,
        what: What | None = None,
    ) -> list[Checkpoint]:
        """Return starts under one condition, each a checkpoint of kind ``weights``, as `Generated` does.

        Raises:
            ConditionError: the condition or the observation is none.
            EndpointError: the endpoint cannot be reached, or has no such starts.
            CheckpointError: what it serves is no checkpoint.
        """
        first = int(torch.randint(SEEDS, ())) if seed is None else seed
        told: dict[str, Any] = {
            "condition": as_condition(condition),
            "observation": observed(observation),
            "what": what,
        }
        with self._connect() as client:
            drawn = [files.load(p) for p in client.generated(self._reference, count, seed=first, **told)]
        self._drawn = drawn[-1]
        return drawn

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place, with the routine of the base unless one is given.

        Learned step sizes come with what is generated; where nothing was yet, one network is.

        Raises:
            DivergenceError: the loss is not finite; the network keeps the weights it had.
            EndpointError: the endpoint cannot be reached.
            SourceError: neither the card nor the call has a routine.
        """
        if self._drawn is None:
            self.generate(1, seed=0)
        assert self._drawn is not None
        return run_stored(self._drawn, network, task, routine, progress)


def connected(client: Client | None, source: str) -> RemoteGenerated:
    """Return the generator at a reference of a client, or at an address where there is none."""
    if client is not None:
        return RemoteGenerated(lambda: nullcontext(client), source)
    base, reference = parse_url(source)
    return RemoteGenerated(lambda: Client(base), str(reference))
