"""The recipe of a graph hypernetwork: labelled images, a space of architectures, sizes, and training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_serializer, model_validator

from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.config import GhnConfig
from hypernets.ghn.training import TrainingConfig
from metainit.domains.digits import DIGITS
from metainit.domains.labelled_images import LabelledImagesConfig
from pipelines.recipe import EvidenceConfig, Recipe

OF_THE_IMAGES = ("channels", "size", "classes")
"""Settings of a space that follow from the images."""


class GhnEvidence(EvidenceConfig):
    """How a hypernetwork is measured: on `architectures` that were held out.

    The step sizes of fine-tuning are chosen on `choosing` others.
    """

    steps: tuple[int, ...] = Field(default=(0, 10, 50), min_length=1)
    architectures: int = Field(default=64, ge=1, le=100_000)
    choosing: int = Field(default=8, ge=1, le=100_000)


class GhnRecipe(Recipe):
    """Everything that training a hypernetwork needs.

    Channels, size and classes of the `space` are those of the images. `validation_architectures` are
    predicted and judged every `validate_every` steps.

    Example:
        >>> recipe = GhnRecipe.model_validate({
        ...     'family': 'ghn', 'name': 'tiny', 'hypernetwork': {'width': 16, 'heads': 2},
        ... })
        >>> recipe.hypernetwork.width, recipe.domain.data
        (16, 'digits')
    """

    NOT_TRAINING = Recipe.NOT_TRAINING | {"validation_architectures"}

    family: Literal["ghn"] = "ghn"
    domain: LabelledImagesConfig = LabelledImagesConfig()
    space: SpaceConfig = SpaceConfig()
    hypernetwork: GhnConfig = GhnConfig()
    training: TrainingConfig = TrainingConfig()
    validation_architectures: int = Field(default=16, ge=0)
    evidence: GhnEvidence = GhnEvidence()

    @model_validator(mode="before")
    @classmethod
    def _space_of_the_images(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("space", {}), Mapping):
            return value
        space, domain = dict(value.get("space", {})), value.get("domain")
        if given := [key for key in OF_THE_IMAGES if key in space]:
            raise ValueError(f"space.{given[0]} follows from the images: leave it out")
        if isinstance(domain, Mapping) and domain.get("size") is not None:
            space["size"] = domain["size"]
        return {**value, "space": space}

    @field_serializer("space")
    def _without_what_follows(self, space: SpaceConfig) -> dict[str, Any]:
        return space.model_dump(mode="json", exclude=set(OF_THE_IMAGES))

    @property
    def places(self) -> dict[str, Any]:
        """Where the images lie, unless they are bundled."""
        return {} if self.domain.data == DIGITS else {"domain.data": self.domain.data}

    def recorded(self) -> dict[str, Any]:
        """Return what a card says of the recipe: no place on a machine."""
        whole = self.determining()
        if not self.places:
            return whole
        return whole | {"domain": {k: v for k, v in whole["domain"].items() if k != "data"}}
