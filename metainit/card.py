"""The card of a checkpoint: what the weights are, where they come from, and how to adapt them.

A card is one canonical JSON value (sorted keys, no white space, no clock time), so that the same run
writes the same bytes. It is versioned: `read_card` migrates older versions through `MIGRATIONS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from metainit.errors import CheckpointError

SCHEMA_VERSION = 1
MAX_CARD_CHARACTERS = 4_000_000
MAX_CARD_DEPTH = 32

Migration = Callable[[dict[str, Any]], dict[str, Any]]
MIGRATIONS: Mapping[int, Migration] = {}
"""Version n -> a function that turns a card of version n into one of version n + 1."""


class Record(BaseModel):
    """A frozen, closed record: unknown keys are refused, nothing changes after construction."""

    # Not "null", which would write a NaN in free-form arguments as None without a word.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, ser_json_inf_nan="constants")


class Spec(Record):
    """A name in a registry and the arguments that rebuild the thing it names.

    Example:
        >>> Spec(name='siren', arguments={'width': 64}).name
        'siren'
    """

    name: str = Field(max_length=200)
    arguments: dict[str, Any] = Field(default_factory=dict)


class Method(Record):
    """The algorithm that made the weights, and the paper that describes it."""

    name: str
    paper: str = ""


class Continuation(Record):
    """The optimizer that takes over once the learned steps are used up."""

    optimizer: Literal["adam", "sgd"] = "adam"
    step_size: float = Field(gt=0)


class AdaptationRoutine(Record):
    r"""Optimizer, step sizes and number of steps that a start was learned for.

    One step of ``sgd`` on tensor :math:`\theta_i` is
    :math:`\theta_i \leftarrow \theta_i - \alpha_{i,k} \odot \nabla_{\theta_i} L`, where the step size
    :math:`\alpha_{i,k}` is `step_size` unless a learned one is given for tensor i: in `per_tensor` (one
    number a step, the last repeats), or in the checkpoint as the tensor ``step_size.<name>`` of shape
    ``(steps, *shape of the tensor)`` where `per_parameter` is true.

    `weight_decay` :math:`\lambda` adds :math:`\lambda \theta_i` to every gradient (L2, before Adam's
    scaling). `augmentation` is the probability that an example of the support is augmented in a step, where
    the domain can do that. Both go on under the continuation.

    Example:
        >>> AdaptationRoutine(optimizer='sgd', steps=2, step_size=0.01).steps
        2
    """

    optimizer: Literal["sgd", "adam"] = "sgd"
    steps: int = Field(ge=0, le=1_000_000)
    step_size: float = Field(ge=0)
    per_tensor: dict[str, list[float]] = Field(default_factory=dict)
    per_parameter: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    augmentation: float = Field(default=0.0, ge=0, le=1)
    minibatch: int | None = Field(default=None, ge=1)
    adapts: tuple[str, ...] = ()
    continuation: Continuation | None = None

    @model_validator(mode="after")
    def _one_kind_of_learned_step_size(self) -> AdaptationRoutine:
        if self.per_parameter and self.per_tensor:
            raise ValueError("step sizes are learned per tensor or per parameter, not both")
        if any(len(sizes) == 0 for sizes in self.per_tensor.values()):
            raise ValueError("per_tensor needs at least one step size for each tensor it names")
        return self


class DataSource(Record):
    """What the weights were learned from."""

    description: str = ""
    fingerprint: str = ""
    licence: str = "not stated"


class Provenance(Record):
    """Everything that is needed to make the same weights again.

    `gradient_evaluations`: what that cost, in gradients of one task's loss; 0 where it is not known. Controls
    that are trained get as many.
    """

    recipe: dict[str, Any] = Field(default_factory=dict)
    seeds: list[int] = Field(default_factory=list)
    data: DataSource = DataSource()
    code_version: str = ""
    gradient_evaluations: int = Field(default=0, ge=0)


class Card(Record):
    """The description that travels in the header of a checkpoint.

    `digest` covers the tensors and the rest of the card; `metainit.checkpoint.save` fills it in.

    Example:
        >>> card = Card(kind='prior', name='faces', method=Method(name='reptile'))
        >>> read_card(card.canonical()) == card
        True
    """

    schema_version: Literal[1] = 1
    kind: str = Field(max_length=100)
    name: str = Field(max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    method: Method
    network: Spec | None = None
    graph: str | None = None
    domain: Spec | None = None
    routine: AdaptationRoutine | None = None
    provenance: Provenance = Provenance()
    skipped: dict[str, str] = Field(default_factory=dict)
    notes: str = ""
    digest: str = ""

    def canonical(self) -> str:
        """Return the card as canonical JSON: sorted keys, no white space, ASCII."""
        return canonical_json(self.model_dump(mode="json"))


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no white space; NaN and infinity are refused.

    Example:
        >>> canonical_json({'b': 1, 'a': [0.5]})
        '{"a":[0.5],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _depth(value: Any, level: int = 0) -> int:
    if level > MAX_CARD_DEPTH:
        return level
    if isinstance(value, dict):
        return max((_depth(v, level + 1) for v in value.values()), default=level + 1)
    if isinstance(value, list):
        return max((_depth(v, level + 1) for v in value), default=level + 1)
    return level


def read_card(text: str) -> Card:
    """Parse and validate a card, migrating it from an older schema version if need be.

    Raises:
        CheckpointError: the text is too long, too deep, not JSON, of an unknown version, or not a card.

    Example:
        >>> read_card('{"schema_version": 99}')
        Traceback (most recent call last):
        ...
        metainit.errors.CheckpointError: card schema version 99 is not known; this metainit reads versions \
1 to 1: upgrade metainit
    """
    if len(text) > MAX_CARD_CHARACTERS:
        raise CheckpointError(f"the card has {len(text)} characters, expected at most {MAX_CARD_CHARACTERS}")
    try:
        value = json.loads(text)
        canonical_json(value)  # refuses NaN and infinity, which `loads` takes
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the card is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"the card is a JSON {type(value).__name__}, expected an object")
    if _depth(value) > MAX_CARD_DEPTH:
        raise CheckpointError(f"the card is nested deeper than {MAX_CARD_DEPTH} levels")
    version: Any = value.get("schema_version")
    while version != SCHEMA_VERSION:
        if type(version) is not int or version not in MIGRATIONS:
            raise CheckpointError(
                f"card schema version {version!r} is not known; this metainit reads versions "
                f"{min([*MIGRATIONS, SCHEMA_VERSION])} to {SCHEMA_VERSION}: upgrade metainit"
            )
        try:
            value = MIGRATIONS[version](value)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"the card is not a valid one of version {version}: {error!r}") from error
        version = value.get("schema_version")
    try:
        return Card.model_validate(value)
    except ValidationError as error:
        raise CheckpointError(f"the card is not valid: {error}") from error
