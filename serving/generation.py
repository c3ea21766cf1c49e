"""Generating for whoever asks: which versions can, within which limits, and what names an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Annotated, Any

import anyio
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError, model_validator

from hypernets.generator.description import BASE, What, description_of
from metainit.card import Card, canonical_json
from metainit.errors import CheckpointError, ConditionError, CopyError, EndpointError, MetainitError
from metainit.headers import read_header
from metainit.versions import code_version
from serving.cache import Entry
from serving.generator import Draw, Drawer, Seen
from serving.making import Made, Making, Terms, TooLarge
from serving.predictions import Predictions
from serving.store import NotReady
from serving.work import Fault

GENERATING = "generator"
"""The kind of checkpoints that generate."""


class NoGenerator(EndpointError):
    """The initialization exists, but generates nothing."""


class Ungenerated(EndpointError):
    """The generator has nothing usable for the question."""


FAULTS: Mapping[Fault, type[MetainitError]] = MappingProxyType(
    {
        "question": Ungenerated,
        "condition": ConditionError,
        "copies": CopyError,
        "source": CheckpointError,
        "worker": NotReady,
    }
)
"""What a draw failed by -> the error that says so."""


@dataclass(frozen=True)
class GenerationLimits:
    """What a request may cost: bytes of its body, networks, numbers of all of them; seconds of a draw.

    `waiting`: networks that are under way, of all requests together.
    """

    body_bytes: int = 4 << 20
    count: int = 64
    elements: int = 100_000_000
    waiting: int = 256
    seconds: float = 120.0


class Observation(BaseModel):
    """What is seen of a task, as a flat list of numbers and their shape."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    shape: list[Annotated[int, Field(ge=1, le=1_000_000)]] = Field(max_length=8)
    values: list[float] = Field(description="in the order of the last dimension first, as C has it")

    @model_validator(mode="after")
    def _as_many_as_the_shape_says(self) -> Observation:
        if prod(self.shape) != len(self.values):
            raise ValueError(
                f"the shape {self.shape} is of {prod(self.shape)} values, got {len(self.values)}"
            )
        return self

    def seen(self) -> Seen:
        """Return it as the numbers that a generator reads."""
        import numpy as np

        with np.errstate(over="ignore"):  # what float32 cannot hold is refused with a condition's own words
            return Seen(tuple(self.shape), np.asarray(self.values, dtype="<f4").tobytes())


class GenerationQuestion(BaseModel):
    """The body of a request for generated weights."""

    model_config = ConfigDict(extra="forbid")

    condition: StrictInt | Annotated[StrictStr, Field(max_length=10_000)] | None = Field(
        None, description="a class by its number or its name, or a description; what the card says is taken"
    )
    observation: Observation | None = Field(None, description="of the task")
    seed: int = Field(0, ge=0, lt=2**62, description="of the first network; those that follow count on")
    count: int = Field(1, ge=1, description="networks")
    what: What | None = Field(None, description="a sample, the mean, or one step; unless given, the card's")


@dataclass(frozen=True)
class Drawn:
    """One network that was drawn, and the seed that it follows from."""

    seed: int
    made: Made


@dataclass(frozen=True)
class GenerationAnswer:
    """What was generated for a question."""

    what: What
    drawn: tuple[Drawn, ...]

    @property
    def made_before(self) -> bool:
        """Whether nothing had to be drawn."""
        return all(one.made.before for one in self.drawn)


class Generating:
    """Answers questions with what draws, from what is kept where it can: each network is kept by itself."""

    def __init__(self, drawer: Drawer, kept: Predictions, limits: GenerationLimits | None = None) -> None:
        """Keep networks in `kept`."""
        self.limits = limits or GenerationLimits()
        terms = Terms(self.limits.waiting, self.limits.seconds, "generated network", FAULTS)
        self._kept = kept
        self._making = Making(drawer.generate, kept, terms)

    @property
    def under_way(self) -> int:
        """How many networks are being drawn or wait for it."""
        return self._making.under_way

    async def answer(self, entry: Entry, question: GenerationQuestion) -> GenerationAnswer:
        """Generate with a version.

        Raises:
            NoGenerator: the version is no generator.
            TooLarge: more networks, or more numbers in them, than the limits.
            ConditionError: it does not take such a condition or observation.
            CopyError: it gives copies of what it was trained on.
            Busy: too many wait already.
            NotReady: nothing can generate, it took too long, or the disk is full.
            Ungenerated: it has no such part, or gives nothing usable.
            CheckpointError: the version does not hold a generator.
        """
        if entry.facts.kind != GENERATING:
            raise NoGenerator(
                f"{entry.facts.reference} is a {entry.facts.kind}, which generates nothing: fetch its "
                f"weights, or name a generator (kind {GENERATING})"
            )
        what, elements = await anyio.to_thread.run_sync(_known, entry)
        self._require_small(question.count, elements)
        chosen = question.what or what
        seen = None if question.observation is None else question.observation.seen()
        facts, folder = entry.facts, self._kept.inbox()
        origin = (facts.reference, facts.sha256, str(entry.blob))
        first = Draw(*origin, chosen, question.seed, question.condition, seen, folder)
        code = await anyio.to_thread.run_sync(code_version)
        orders: dict[str, Draw] = {}
        for seed in range(question.seed, question.seed + question.count):
            draw = replace(first, seed=seed)
            orders[_key(draw, code)] = draw
        made = await self._making.made(orders)
        return GenerationAnswer(chosen, tuple(Drawn(draw.seed, made[key]) for key, draw in orders.items()))

    def _require_small(self, count: int, elements: int) -> None:
        if count > self.limits.count:
            raise TooLarge(
                f"{count} networks were asked for, expected at most {self.limits.count}: ask for the others "
                "with later seeds"
            )
        if count * elements > self.limits.elements:
            raise TooLarge(
                f"{count} networks of {elements} numbers are more than the limit of {self.limits.elements}: "
                "ask for fewer at once"
            )


def _known(entry: Entry) -> tuple[What, int]:
    """Return what a generator gives unless asked otherwise, and the numbers of one of its networks.

    Raises:
        CheckpointError: the version does not hold a generator.
    """
    try:
        card = Card.model_validate(dict(entry.card))
    except ValidationError as error:
        raise CheckpointError(f"the card of {entry.facts.reference} is not valid: {error}") from error
    held = read_header(entry.blob)
    base = sum(prod(info.shape) for name, info in held.items() if name.startswith(BASE))
    return description_of(card).start, base


def _key(draw: Draw, code: str) -> str:
    """Return what the bytes of a drawn network follow from; `code` is its version."""
    seen = draw.observation
    value: list[Any] = ["generate", draw.sha256, draw.what, draw.seed, draw.condition, code]
    if seen is not None:
        value += [list(seen.shape), hashlib.sha256(seen.content).hexdigest()]
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
