"""A generator and its base in one checkpoint, and the checkpoints of what it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hypernets.generator.config import GeneratorConfig
from hypernets.generator.description import (
    BASE,
    PREFIX,
    RECIPE,
    Description,
    Layers,
    What,
    description_of,
)
from hypernets.generator.flat import FlatLayout
from hypernets.generator.model import Generator, generator_from
from hypernets.generator.tokens import owned
from metainit.card import Card, Provenance
from metainit.checkpoint import STEP_SIZE_PREFIX, Checkpoint
from metainit.errors import CheckpointError, MismatchError
from metainit.versions import code_version


@dataclass(frozen=True)
class Base:
    """A network's state that deltas start from, the order of its parameters, and which are tied."""

    state: Mapping[str, Tensor]
    layers: Layers
    tied: Mapping[str, str]

    @classmethod
    def of(cls, network: nn.Module) -> Base:
        """Return the base that a network's weights are."""
        own = {id(value): name for name, value in network.named_parameters()}
        every = network.named_parameters(remove_duplicate=False)
        tied = {name: own[id(value)] for name, value in every if own[id(value)] != name}
        state = {k: v.detach().cpu().clone() for k, v in network.state_dict().items()}
        return cls(state, owned(network), tied)

    @property
    def layout(self) -> FlatLayout:
        """The parameters as they lie in a vector."""
        return FlatLayout.of({name: self.state[name] for layer in self.layers for name in layer})

    def plus(self, delta: Tensor) -> dict[str, Tensor]:
        """Return the whole state with a delta (D) added to the parameters, each in its own type."""
        moved = {
            name: self.state[name] + change.to(self.state[name].dtype)
            for name, change in self.layout.unflatten(delta.cpu()).items()
        }
        return {**self.state, **moved, **{alias: moved[name] for alias, name in self.tied.items()}}


def generator_tensors(
    state: Mapping[str, Tensor], base: Base, step_sizes: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return what the checkpoint of a generator holds: its own state, the base, and the base's step sizes.

    Args:
        state: the generator's, such as `GeneratorTraining.result` gives.
        base: what its deltas start from.
        step_sizes: learned ones of the base's routine, by the name of their parameter.
    """
    found = {f"{PREFIX}{k}": v for k, v in state.items()} | {f"{BASE}{k}": v for k, v in base.state.items()}
    return found | {f"{STEP_SIZE_PREFIX}{k}": v for k, v in (step_sizes or {}).items()}


def described_card(card: Card, config: GeneratorConfig, base: Base, start: What = "sample") -> Card:
    """Return a card of kind ``generator`` that says how to put the tensors together again."""
    said: Any = Description(config=config, layers=base.layers, tied=dict(base.tied), start=start)
    said = said.model_dump(mode="json")
    provenance = card.provenance.model_copy(update={"recipe": {**card.provenance.recipe, RECIPE: said}})
    return card.model_copy(update={"kind": "generator", "provenance": provenance})


def read_generator(stored: Checkpoint) -> tuple[Generator, Base]:
    """Return the generator and the base that a checkpoint holds.

    Raises:
        CheckpointError: the card does not say what it is made of, or the tensors are not those.
    """
    name = stored.card.name
    said = description_of(stored.card)
    state = {k[len(BASE) :]: v for k, v in stored.tensors.items() if k.startswith(BASE)}
    own = {k[len(PREFIX) :]: v for k, v in stored.tensors.items() if k.startswith(PREFIX)}
    named = {name for layer in said.layers for name in layer} | set(said.tied)
    if missing := sorted(named - state.keys()):
        raise CheckpointError(f"the checkpoint of {name!r} lacks the base's {', '.join(missing)}")
    base = Base(state, said.layers, said.tied)
    try:
        return generator_from(said.config, base.layout, base.layers, own), base
    except MismatchError as error:
        raise CheckpointError(f"the tensors of {name!r} are not those of its generator: {error}") from error


def drawn_checkpoint(
    source: Checkpoint, base: Base, delta: Tensor, seed: int, how: Mapping[str, Any]
) -> Checkpoint:
    """Return one drawn start as a checkpoint of kind ``weights``, with the base's buffers and routine.

    Args:
        source: the generator's.
        base: what the delta (D) starts from.
        delta: what was drawn.
        seed: which it was drawn with.
        how: how it was drawn, in JSON; goes onto the card.
    """
    card = source.card
    recipe = {"generator": card.name, "digest": card.digest, **how}
    drawn = Card(
        kind="weights",
        name=card.name,
        method=card.method,
        network=card.network,
        domain=card.domain,
        routine=card.routine,
        provenance=Provenance(
            recipe=recipe,
            seeds=[seed],
            data=card.provenance.data,
            code_version=code_version(),
        ),
    )
    sizes = {f"{STEP_SIZE_PREFIX}{k}": v for k, v in source.step_sizes.items()}
    return Checkpoint(base.plus(delta) | sizes, drawn)
