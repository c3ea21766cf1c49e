"""The recipe of a prior: a network, the domain that it is learned on, and the rule that learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from metainit.card import Continuation, Spec
from metainit.domains.registry import PLACES, domain_config, without_places
from metainit.errors import RecipeError, suggestion
from metainit.initializers import INITIALIZERS
from metainit.meta.outer import AlgorithmConfig, OuterConfig
from metainit.networks.registry import build
from pipelines.recipe import EvidenceConfig, Recipe
from pipelines.settings import nested


class PriorEvidence(EvidenceConfig):
    """How a prior is measured: on how many held-out tasks, too."""

    tasks: int = Field(default=64, ge=1, le=100_000)


class PriorRecipe(Recipe):
    """Everything that learning a prior needs.

    In YAML, `network` and `domain` are flat: the name and beside it the arguments
    (``network: {name: siren, width: 64}``). The number of inputs and outputs of the network follows from the
    domain unless it is given. `start` fills the network before the first outer step. `continuation` takes
    over when a user goes on past the learned steps. `validation_tasks` are adapted every `validate_every`
    outer steps.

    Example:
        >>> PriorRecipe.model_validate({
        ...     'name': 'tiny', 'network': {'name': 'siren', 'width': 8}, 'domain': {'name': 'ct'},
        ... }).network.arguments
        {'width': 8}
    """

    SPECS = ("network", "domain")
    NOT_TRAINING = Recipe.NOT_TRAINING | {"validation_tasks"}

    # Left out of what is written: recipes and cards are older than the families.
    family: Literal["prior"] = Field(default="prior", exclude=True)
    network: Spec
    domain: Spec
    start: str = "siren"
    algorithm: AlgorithmConfig = AlgorithmConfig()
    outer: OuterConfig = OuterConfig()
    dtype: Literal["float32", "float64"] = "float32"
    validation_tasks: int = Field(default=8, ge=0)
    continuation: Continuation | None = None
    evidence: PriorEvidence = PriorEvidence()

    @field_validator(*SPECS, mode="before")
    @classmethod
    def _from_flat(cls, value: Any) -> Any:
        return nested(value) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _names_exist(self) -> PriorRecipe:
        if self.start not in INITIALIZERS:
            way_out = suggestion(self.start, INITIALIZERS)
            raise RecipeError(f"start: no start is called {self.start!r}; {way_out}")
        domain_config(self.domain)
        build(self.network)
        return self

    @property
    def method(self) -> str:
        """The rule."""
        return self.algorithm.rule

    @property
    def places(self) -> dict[str, Any]:
        """Where the domain's data lie."""
        given = self.domain.arguments
        return {f"domain.{key}": given[key] for key in PLACES if key in given}

    def recorded(self) -> dict[str, Any]:
        """Return what a card says of the recipe: no place on a machine."""
        return self.determining() | {"domain": without_places(self.domain).model_dump(mode="json")}
