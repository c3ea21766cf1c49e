"""From a prior's recipe to the things that training moves: the domain, the network, and its start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from metainit.card import DataSource, Spec
from metainit.domains.base import Domain, TaskBatch
from metainit.domains.registry import build_domain
from metainit.domains.seeding import seed_of
from metainit.errors import DataError, MismatchError, RecipeError
from metainit.initialization import load
from metainit.networks import build, fitted_spec
from pipelines.preparation import device_of
from pipelines.prior.recipe import PriorRecipe


@dataclass(frozen=True)
class PreparedPrior:
    """A prior's recipe with its domain built, its data read, and its network filled with the start."""

    recipe: PriorRecipe
    domain: Domain
    spec: Spec
    network: nn.Module
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return torch.float64 if self.recipe.dtype == "float64" else torch.float32

    @property
    def source(self) -> DataSource:
        """What the card says about the data."""
        note = self.recipe.data
        return DataSource(
            description=note.description or f"domain {self.recipe.domain.name}",
            fingerprint=self.domain.fingerprint(),
            licence=note.licence,
        )

    def moved(self, batch: TaskBatch) -> TaskBatch:
        """Return the batch on the device and in the type of the recipe."""
        return batch.to(self.device, self.dtype)


def prepare_prior(recipe: PriorRecipe, device: torch.device | None = None) -> PreparedPrior:
    """Build what a recipe names, on its device unless another is given.

    Raises:
        RecipeError: network, domain and start do not fit each other, or there is no GPU.
        DataError: the data cannot be used.
    """
    chosen = device_of(recipe, device)
    domain = build_domain(recipe.domain)
    for split in ("validation", "test"):
        if domain.size(split) == 0:
            raise DataError(
                f"the domain has no {split} tasks, which tuning and evidence need: give more data, or hold "
                "more of it out"
            )
    spec = fitted_spec(recipe.network, domain)
    network = build(spec, seed=seed_of("network", recipe.seed))
    try:
        load(recipe.start).init_(network, seed=seed_of("start", recipe.seed))
    except MismatchError as error:
        raise RecipeError(
            f"start: {recipe.start!r} cannot fill network {spec.name!r} before training: {error}"
        ) from error
    dtype = torch.float64 if recipe.dtype == "float64" else torch.float32
    return PreparedPrior(recipe, domain, spec, network.to(chosen, dtype), chosen)
