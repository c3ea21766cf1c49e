"""From a hypernetwork's recipe to what training moves: the images, the space, and the hypernetwork."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import ValidationError

from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.ghn.model import Ghn
from metainit.card import DataSource
from metainit.domains.labelled_images import LabelledImages, read_labelled_images
from metainit.domains.seeding import seed_of
from metainit.errors import DataError, RecipeError
from pipelines.ghn.recipe import OF_THE_IMAGES, GhnRecipe
from pipelines.preparation import device_of


@dataclass(frozen=True)
class PreparedGhn:
    """A hypernetwork's recipe with its images read, the space that fits them, and the hypernetwork drawn."""

    recipe: GhnRecipe
    images: LabelledImages
    space: SpaceConfig
    hypernetwork: Ghn
    device: torch.device

    @property
    def source(self) -> DataSource:
        """What the card says about the data."""
        note = self.recipe.data
        return DataSource(
            description=note.description or f"images of {len(self.images.class_names)} classes",
            fingerprint=self.images.fingerprint(),
            licence=note.licence,
        )


def prepare_ghn(recipe: GhnRecipe, device: torch.device | None = None) -> PreparedGhn:
    """Build what a recipe names, on its device unless another is given.

    Raises:
        RecipeError: the space does not fit the images, or there is no GPU.
        DataError: the data cannot be used.
    """
    chosen = device_of(recipe, device)
    images = read_labelled_images(recipe.domain)
    for split in ("validation", "test"):
        if not len(images.parts[split].labels):
            raise DataError(
                f"{recipe.domain.data}: there are no images for {split}, which training and evidence need: "
                "give more, or hold more of them out"
            )
    if len(images.parts["train"].labels) < recipe.training.images:
        raise RecipeError(
            f"training.images is {recipe.training.images}, expected at most the "
            f"{len(images.parts['train'].labels)} images for training"
        )
    return PreparedGhn(recipe, images, _fitted(recipe.space, images), _drawn(recipe).to(chosen), chosen)


def _fitted(space: SpaceConfig, images: LabelledImages) -> SpaceConfig:
    """Return the space of networks for the images."""
    channels, side, _ = images.shape
    follows = dict(zip(OF_THE_IMAGES, (channels, side, len(images.class_names)), strict=True))
    try:
        return SpaceConfig.model_validate(space.model_dump() | follows)
    except ValidationError as error:
        said = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise RecipeError(f"space: it does not fit the images: {said}") from error


def _drawn(recipe: GhnRecipe) -> Ghn:
    """Return the hypernetwork with weights that are drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("hypernetwork", recipe.seed))
        return Ghn(recipe.hypernetwork)
