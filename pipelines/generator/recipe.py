"""The recipe of a generator: a zoo, what the generator is told of a task, its sizes, and training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from hypernets.generator.config import GeneratorConfig, GeneratorTrainingConfig
from hypernets.generator.description import RECIPE
from hypernets.generator.text import text_encoders
from metainit.card import Record
from metainit.domains.registry import PLACES
from metainit.errors import RecipeError, suggestion
from pipelines.recipe import EvidenceConfig, Recipe


class Told(Record):
    """What the generator is told of a task: `kinds` of the zoo's conditions.

    `encoder` and `thumbnail`: how an observation is read (`hypernets.generator.config.ConditionConfig`);
    `text`: what reads descriptions, of `hypernets.generator.text.text_encoders`.
    """

    kinds: tuple[Literal["class", "observation", "text"], ...] = ("class",)
    encoder: Literal["flat", "examples"] = "flat"
    text: str = Field(default="ngrams", min_length=1, max_length=200)
    thumbnail: int = Field(default=0, ge=0, le=256)

    @field_validator("kinds")
    @classmethod
    def _each_once(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(kinds)) != len(kinds):
            raise ValueError(f"kinds are {kinds}, expected each once")
        return kinds

    @field_validator("text")
    @classmethod
    def _known(cls, text: str) -> str:
        if text not in (known := text_encoders()):
            raise ValueError(f"no text encoder is called {text!r}: {suggestion(text, known)}")
        return text


class GeneratorEvidence(EvidenceConfig):
    """How a generator is measured: on how many held-out tasks, with optimizers chosen on `tuning` others.

    `headline`: the number of steps that the gate looks at; those of the base's routine unless given.
    """

    tasks: int = Field(default=64, ge=1, le=100_000)
    tuning: int = Field(default=16, ge=1, le=100_000)
    headline: int | None = Field(default=None, ge=0)


class GeneratorRecipe(Recipe):
    """Everything that training a generator needs.

    `zoo`: a folder, or the name of a zoo of which the newest finished build is used; `zoo_digest`: the
    SHA-256 of its manifest, which a run fills in, and which no other one may have. `domain`: arguments on top
    of those of the zoo's domain, such as where the data lie. What the conditions of `generator` are
    follows from the zoo and from `told`. `start`: what a user gets who does not ask for anything else.
    `task_after`: the steps of the base's routine after which the task loss is taken, where
    `training.task_weight` is not zero.

    Example:
        >>> recipe = GeneratorRecipe.model_validate({
        ...     'family': 'generator', 'name': 'tiny', 'zoo': 'zoo-digits', 'generator': {'width': 32},
        ... })
        >>> recipe.told.kinds, recipe.generator.width
        (('class',), 32)
    """

    FOLLOWING = frozenset({RECIPE})
    LATER = frozenset({"zoo_digest", "told.text"})

    family: Literal["generator"] = "generator"
    zoo: str = Field(min_length=1, max_length=4096)
    zoo_digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    domain: dict[str, Any] = Field(default_factory=dict)
    told: Told = Told()
    generator: GeneratorConfig = GeneratorConfig()
    training: GeneratorTrainingConfig = GeneratorTrainingConfig()
    task_after: tuple[int, ...] = (0,)
    start: Literal["sample", "mean", "one_step"] = "sample"
    evidence: GeneratorEvidence = GeneratorEvidence()

    @model_validator(mode="before")
    @classmethod
    def _follows_from_the_zoo(cls, value: Any) -> Any:
        generator = value.get("generator") if isinstance(value, Mapping) else None
        if isinstance(generator, Mapping) and "conditions" in generator:
            raise ValueError("generator.conditions follow from the zoo and from told: leave them out")
        return value

    @field_serializer("generator")
    def _without_what_follows(self, generator: GeneratorConfig) -> dict[str, Any]:
        return generator.model_dump(mode="json", exclude={"conditions"})

    @model_validator(mode="after")
    def _has_what_it_gives(self) -> GeneratorRecipe:
        has = {"sample": True, "mean": self.generator.mean, "one_step": self.generator.one_step}
        if not has[self.start]:
            raise ValueError(f"start is {self.start!r}, but generator.{self.start} is false")
        if "name" in self.domain:
            raise ValueError("domain.name is that of the zoo: leave it out")
        return self

    def pinned(self) -> GeneratorRecipe:
        """Return the recipe with the digest of the zoo that it names.

        Raises:
            RecipeError: it has the digest of another zoo.
            RegistryError: no zoo has that name.
        """
        from pipelines.zoo.tracking import digest_of, find_zoo

        digest = digest_of(find_zoo(self.zoo))
        if self.zoo_digest not in ("", digest):
            raise RecipeError(
                f"zoo_digest: the zoo {self.zoo!r} has been built anew ({digest[:12]}…, expected "
                f"{self.zoo_digest[:12]}…): leave zoo_digest out to train on this one, in a folder of its own"
            )
        return self.model_copy(update={"zoo_digest": digest})

    @property
    def places(self) -> dict[str, Any]:
        """Where the data and the zoo lie, where that is a folder."""
        found = {f"domain.{key}": self.domain[key] for key in PLACES if key in self.domain}
        return found | ({"zoo": self.zoo} if "/" in self.zoo else {})

    def recorded(self) -> dict[str, Any]:
        """Return what a card says of the recipe: no place on a machine."""
        whole = {key: value for key, value in self.determining().items() if key not in self.places}
        return whole | {"domain": {k: v for k, v in self.domain.items() if k not in PLACES}}
