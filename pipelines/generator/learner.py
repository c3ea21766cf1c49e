"""What training a generator moves, with one worker's share of each batch of members."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType

from torch import Tensor

from hypernets.generator import training
from hypernets.generator.checkpoints import Base, described_card, generator_tensors
from hypernets.generator.training import GeneratorTraining
from metainit.card import Card, Method, Provenance
from pipelines.generator.preparation import PreparedGenerator
from pipelines.learner import Gradient
from pipelines.world import World, share

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        "sample": Method(name="weight diffusion", paper="Peebles et al. 2022, arXiv:2209.12892"),
        "velocity": Method(name="weight diffusion", paper="Peebles et al. 2022, arXiv:2209.12892"),
        "flow": Method(name="weight flow", paper="Gupta et al. 2026, arXiv:2601.05052"),
    }
)
"""Prediction -> the method, as it stands on the card."""


class GeneratorLearner:
    """One worker's part in training a generator; every worker knows all members, and takes its share."""

    def __init__(self, prepared: PreparedGenerator, world: World) -> None:
        """Begin with the weights that the generator was drawn with."""
        self.prepared = prepared
        recipe = prepared.recipe
        self._training = GeneratorTraining(
            recipe.training,
            copy.deepcopy(prepared.generator),
            prepared.members,
            prepared.held_out,
            recipe.seed,
            prepared.task_loss(),
        )
        self._mine = share(recipe.training.batch, world.rank, world.size)

    @property
    def step(self) -> int:
        """How many steps have been taken."""
        return self._training.step

    @property
    def steps(self) -> int:
        """How many steps there are, of all phases."""
        return self._training.total

    def working(self) -> AbstractContextManager[object]:
        """Need nothing open."""
        return nullcontext()

    def gradient(self) -> Gradient:
        """Return the gradient summed over this worker's members."""
        found = self._training.gradient(self._mine)
        return Gradient(found.parameters, found.loss, found.members)

    def apply(self, gradient: Gradient) -> float:
        """Take one step, and return the mean loss of the members."""
        return self._training.apply(training.Gradient(gradient.tensors, gradient.loss, gradient.count))

    def validate(self) -> dict[str, float]:
        """Return how well held-out fits are predicted."""
        return self._training.validate()

    def state(self) -> dict[str, Tensor]:
        """Return the state of training."""
        return self._training.state()

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go on from a state."""
        self._training.restore(saved)

    def result(self, provenance: Provenance) -> tuple[dict[str, Tensor], Card]:
        """Return the averaged generator with the base that its deltas are added to."""
        prepared, recipe = self.prepared, self.prepared.recipe
        base = Base.of(prepared.network)
        state = {k: v.cpu() for k, v in self._training.result().items()}
        manifest, begun = prepared.zoo.manifest, prepared.zoo.base
        card = Card(
            kind="generator",
            name=recipe.name,
            method=METHODS[recipe.generator.prediction],
            network=manifest.network,
            domain=manifest.domain,
            routine=begun.card.routine,
            provenance=provenance,
        )
        described = described_card(card, prepared.generator.config, base, recipe.start)
        return generator_tensors(state, base, begun.step_sizes), described
