"""From a recipe to the things that training moves: the domain, the network, and its start."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from metainit.card import DataSource, Spec
from metainit.domains.base import Domain
from metainit.domains.registry import build_domain
from metainit.domains.seeding import seed_of
from metainit.errors import DataError, MismatchError, RecipeError
from metainit.initialization import load
from metainit.networks import build, fitted_spec
from pipelines.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """A recipe with its domain built, its data read, and its network filled with the start."""

    recipe: Recipe
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


def prepare(recipe: Recipe, device: torch.device | None = None) -> Prepared:
    """Build what a recipe names; everything that can be wrong with it or its data shows here.

    `device` is the recipe's, unless it is given: a driver may have no GPU where its workers do.

    Raises:
        RecipeError: network, domain and start do not fit each other, or there is no GPU.
        DataError: the data cannot be used.

    Example:
        >>> from pipelines.recipe import load_recipe
        >>> prepare(load_recipe('ct-phantoms-debug')).spec.arguments['out_features']
        1
    """
    if device is None:
        device = torch.device("cuda" if recipe.gpu else "cpu")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError("gpu is set, but there is no CUDA device here: set gpu=false, or run on a cluster")
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
    return Prepared(recipe, domain, spec, network.to(device, dtype), device)
