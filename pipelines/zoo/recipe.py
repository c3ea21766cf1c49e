"""The recipe of a zoo: the prior that all fits begin from, the tasks, and how they are fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from metainit.card import Record
from metainit.checkpoint import SUFFIX
from metainit.domains.registry import PLACES
from pipelines.recipe import Recipe

OF_TRAINING = ("checkpoint_every", "validate_every")


class FitConfig(Record):
    """How each task is fitted: an optimizer with its step size, or the prior's own routine.

    ``prior`` takes the learned steps, then the continuation that the prior's card names. `adapts`: the
    tensors that move, by name; all of them unless some are given. Only these are in the zoo.
    """

    optimizer: Literal["adam", "sgd", "prior"] = "adam"
    step_size: float | None = Field(default=None, gt=0)
    steps: int = Field(default=80, ge=1, le=1_000_000)
    weight_decay: float = Field(default=0.0, ge=0)
    adapts: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_source_of_step_sizes(self) -> FitConfig:
        own = self.optimizer == "prior"
        if own and (self.step_size is not None or self.weight_decay > 0):
            raise ValueError("step_size and weight_decay are the prior's own: leave them out")
        if not own and self.step_size is None:
            raise ValueError(f"the optimizer {self.optimizer} needs a step_size")
        return self


class HeldOut(Record):
    """How many fits of held-out tasks the zoo has, for choosing and for reporting.

    `validation`: a generator needs some; null for 32, or as many as there are.
    """

    validation: int | None = Field(default=None, ge=0, le=1_000_000)
    test: int = Field(default=0, ge=0, le=1_000_000)


class ZooRecipe(Recipe):
    """Everything that building a zoo needs.

    `prior`: a checkpoint file, ``models:/name@alias``, or a prior's recipe, whose champion is used and which
    is trained first where nothing is registered under its name. `domain`: arguments on top of those of the
    prior's domain, such as where the data lie. `members`: the most fits of training tasks, each of another
    task. `shard`: fits in one file; `batch`: how many of them are made at once. `outlier`: fits whose loss is
    more than so many robust deviations above the median are left out; null keeps them. `observations`: keep
    what each task shows beside its weights. `workers`: the most shards that are made at once.

    Example:
        >>> recipe = ZooRecipe.model_validate({
        ...     'family': 'zoo', 'name': 'tiny', 'prior': 'models:/faces', 'fit': {'step_size': 3e-3},
        ... })
        >>> recipe.fit.steps, recipe.shard
        (80, 256)
    """

    NOT_TRAINING = Recipe.NOT_TRAINING | {"workers"}

    family: Literal["zoo"] = "zoo"
    prior: str = Field(min_length=1, max_length=4096)
    domain: dict[str, Any] = Field(default_factory=dict)
    fit: FitConfig
    members: int = Field(default=2000, ge=2, le=10_000_000)
    held_out: HeldOut = HeldOut()
    shard: int = Field(default=256, ge=2, le=100_000)
    batch: int = Field(default=256, ge=1, le=100_000)
    execution: Literal["auto", "vmap", "loop"] = "auto"
    outlier: float | None = Field(default=6.0, gt=0)
    observations: bool = True
    workers: int = Field(default=64, ge=1, le=4096)
    # A zoo goes on from its shards, and nothing is validated on the way.
    checkpoint_every: int = Field(default=1, exclude=True)
    validate_every: int = Field(default=1, exclude=True)

    @model_validator(mode="before")
    @classmethod
    def _no_training(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and (given := [key for key in OF_TRAINING if key in value]):
            raise ValueError(f"{given[0]} is no key of a zoo: it goes on from its shards")
        return value

    @model_validator(mode="after")
    def _arguments_only(self) -> ZooRecipe:
        if "name" in self.domain:
            raise ValueError("domain.name is that of the prior: leave it out")
        return self

    @property
    def places(self) -> dict[str, Any]:
        """Where the data lie, and the prior where that is a file."""
        found = {f"domain.{key}": self.domain[key] for key in PLACES if key in self.domain}
        return found | ({"prior": self.prior} if self.prior.endswith(SUFFIX) else {})

    def recorded(self) -> dict[str, Any]:
        """Return what the zoo says of the recipe: no place on a machine."""
        whole = self.determining()
        domain = {key: value for key, value in self.domain.items() if key not in PLACES}
        return {key: value for key, value in whole.items() if key not in self.places} | {"domain": domain}
