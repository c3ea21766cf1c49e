"""What training a hypernetwork moves: its weights, on one worker's share of each meta-batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import torch
from torch import Tensor

from hypernets.ghn import training
from hypernets.ghn.training import GhnTraining
from metainit.card import Card, Method, Provenance
from metainit.meta.engine import task_threads
from pipelines.ghn.preparation import PreparedGhn
from pipelines.learner import Gradient
from pipelines.world import World, share

VALIDATION_IMAGES = 500
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "tiled": Method(name="ghn", paper="Knyazev et al. 2023, arXiv:2303.04143"),
        "low_rank": Method(name="logah", paper="Zhou et al. 2024, arXiv:2405.16287"),
    }
)
"""Decoder -> the method, as it stands on the card."""


class GhnLearner:
    """One worker's part in training a hypernetwork.

    Every worker knows the architectures of each step, which follow from seed and step, and takes its share.
    """

    def __init__(self, prepared: PreparedGhn, world: World) -> None:
        """Begin with the weights that the hypernetwork was drawn with."""
        self.prepared = prepared
        self.recipe = recipe = prepared.recipe
        hypernetwork = copy.deepcopy(prepared.hypernetwork)
        self._training = GhnTraining(
            recipe.training, hypernetwork, prepared.space, prepared.images, recipe.seed
        )
        self._mine = share(recipe.training.meta_batch, world.rank, world.size)
        self._judged = min(VALIDATION_IMAGES, len(prepared.images.parts["validation"].labels))
        self._pool: ThreadPoolExecutor | None = None

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._training.step

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return self.recipe.training.steps

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have a thread for each of the networks of a step, on a CPU with several cores."""
        threads = min(torch.get_num_threads(), self._mine.stop - self._mine.start)
        threaded = threads > 1 and self.prepared.device.type == "cpu"
        with task_threads(threads) if threaded else nullcontext() as pool:
            self._pool = pool
            yield
        self._pool = None

    def gradient(self) -> Gradient:
        """Return the gradient summed over this worker's networks."""
        found = self._training.gradient(self._mine, self._pool)
        return Gradient(found.parameters, found.loss, found.networks)

    def apply(self, gradient: Gradient) -> float:
        """Take one step, and return the mean loss of the networks."""
        return self._training.apply(training.Gradient(gradient.tensors, gradient.loss, gradient.count))

    def validate(self) -> dict[str, float]:
        """Return the accuracy of networks that are not trained on."""
        return self._training.validate(self.recipe.validation_architectures, self._judged)

    def state(self) -> dict[str, Tensor]:
        """Return the state of training."""
        return self._training.state()

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self._training.restore(saved)

    def result(self, provenance: Provenance) -> tuple[dict[str, Tensor], Card]:
        """Return the averaged hypernetwork, whose sizes are those of the recipe on its card."""
        recipe = self.recipe
        card = Card(
            kind="ghn", name=recipe.name, method=METHODS[recipe.hypernetwork.decoder], provenance=provenance
        )
        return {k: v.cpu() for k, v in self._training.result().items()}, card
