"""What the card of a generator says of its parts, and how its tensors are called; none of them is touched."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from hypernets.generator.config import GeneratorConfig
from metainit.card import Card, Record
from metainit.errors import CheckpointError

RECIPE = "parts"
"""Where the recipe on a card keeps what a generator is made of."""
PREFIX, BASE = "generator.", "base."
"""What the names of the generator's own tensors begin with, and those of the base."""
What = Literal["sample", "mean", "one_step"]
Layers = tuple[tuple[str, ...], ...]
"""Names of parameters by the module that owns them, in the order of `named_parameters`."""


class Description(Record):
    """What has to be known beside the tensors: the generator's parts, and the base network's parameters.

    `layers`: their names by the module that owns them, in the order of the vector. `tied`: other names of a
    parameter in the state dict -> its own. `start`: what is given where nothing else is asked for.
    """

    config: GeneratorConfig
    layers: Layers
    tied: dict[str, str] = Field(default_factory=dict)
    start: What = "sample"


def description_of(card: Card) -> Description:
    """Return what a generator's card says of its parts.

    Raises:
        CheckpointError: it does not say it.
    """
    try:
        return Description.model_validate(card.provenance.recipe.get(RECIPE))
    except ValidationError as error:
        raise CheckpointError(
            f"the card of {card.name!r} does not say what its generator is: {error}"
        ) from error
