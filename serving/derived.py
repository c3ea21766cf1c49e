"""Weights in another type, or some of the tensors: a checkpoint of its own, made at the first request."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio
from anyio import CapacityLimiter

from metainit.card import canonical_json
from metainit.checkpoint import METADATA_KEY, STEP_SIZE_PREFIX
from metainit.errors import CheckpointError, EndpointError, MetainitError, suggestion
from metainit.headers import read_header
from metainit.variants import DTYPES, FLOATING, Dtype
from metainit.versions import code_version
from serving.cache import Entry
from serving.making import Making, Terms, TooLarge
from serving.predictions import Kept, Predictions
from serving.store import NotReady
from serving.work import FAILURES, Fault, Outcome, delivered, failed

if TYPE_CHECKING:
    from torch import Tensor

CASTABLE = ("prior", "weights")
"""Kinds whose tensors are weights of a user's network; others are computed with as they are."""
FAULTS: Mapping[Fault, type[MetainitError]] = MappingProxyType(
    {"question": EndpointError, "source": CheckpointError, "worker": NotReady}
)


class NoSuchPart(EndpointError):
    """A checkpoint has no such tensors, or is not given in such a type."""


@dataclass(frozen=True)
class DerivationLimits:
    """What may be derived: bytes of it, how many are under way, and seconds of one."""

    bytes: int = 2 << 30
    waiting: int = 16
    seconds: float = 120.0


@dataclass(frozen=True)
class Derivation:
    """A part of a version's checkpoint that is wanted; `names` is empty where all tensors are."""

    reference: str
    sha256: str
    file: str
    dtype: Dtype | None
    names: tuple[str, ...]
    folder: str = ""


class Deriving:
    """Derives checkpoints from those that are served, one at a time, and keeps them."""

    def __init__(self, kept: Predictions, limits: DerivationLimits | None = None) -> None:
        """Keep what is derived in `kept`."""
        self.limits = limits or DerivationLimits()
        self._kept = kept
        terms = Terms(self.limits.waiting, self.limits.seconds, "derived checkpoint", FAULTS)
        self._making = Making(self._run, kept, terms)
        self._one: CapacityLimiter | None = None

    async def derived(self, entry: Entry, dtype: Dtype | None, names: tuple[str, ...]) -> Kept | None:
        """Return the derived checkpoint, or None where it would be the version's own.

        Raises:
            NoSuchPart: the version has no tensor of such a name, or is not given in such a type.
            TooLarge: it is larger than the limit.
            Busy: too many are under way.
            NotReady: it took too long, or the disk is full.
            CheckpointError: the version's file is damaged.
        """
        facts = entry.facts
        changes, size = await anyio.to_thread.run_sync(_looked, entry, dtype, names)
        if not changes:
            return None
        if size > self.limits.bytes:
            raise TooLarge(
                f"what is asked for of {facts.reference} has {size} bytes, expected at most "
                f"{self.limits.bytes}: fetch the whole file, or name fewer tensors"
            )
        chosen = tuple(sorted(set(names)))
        origin = (facts.reference, facts.sha256, str(entry.blob))
        order = Derivation(*origin, dtype, chosen, self._kept.inbox())
        code = await anyio.to_thread.run_sync(code_version)
        value = ["derived", order.sha256, dtype, list(chosen), code]
        key = hashlib.sha256(canonical_json(value).encode()).hexdigest()
        return (await self._making.made({key: order}))[key].kept

    async def _run(self, order: Derivation) -> Outcome:
        self._one = self._one or CapacityLimiter(1)  # it belongs to the loop that is running now
        return await anyio.to_thread.run_sync(_derive, order, limiter=self._one)


def named(tensors: str | None, tensor: list[str]) -> tuple[str, ...]:
    """Return the names in the two parameters of a request: with commas between them, and one by one.

    Raises:
        NoSuchPart: there are parameters, and no name.

    Example:
        >>> named('a,b', ['c']), named(None, [])
        (('a', 'b', 'c'), ())
    """
    found = tuple(name for name in [*(tensors or "").split(","), *tensor] if name)
    if not found and (tensors is not None or tensor):
        raise NoSuchPart("no tensor is named: leave the parameter out for all of them")
    return found


def _looked(entry: Entry, dtype: Dtype | None, names: tuple[str, ...]) -> tuple[bool, int]:
    """Return whether a part is anything else than the whole, and an upper bound of its bytes."""
    facts, held = entry.facts, read_header(entry.blob)
    if missing := [name for name in names if name not in held]:
        raise NoSuchPart(
            f"{facts.reference} has no tensor {missing[0]!r}; {suggestion(missing[0], held)[:2000]}"
        )
    if dtype is not None and facts.kind not in CASTABLE:
        raise NoSuchPart(
            f"{facts.reference} is a {facts.kind}, which is computed with as it is: leave dtype out (kinds "
            f"{' and '.join(CASTABLE)} are given in other types)"
        )
    chosen = {name: held[name] for name in names} if names else held
    casts = dtype is not None and any(
        info.dtype in FLOATING and info.dtype != DTYPES[dtype] and not name.startswith(STEP_SIZE_PREFIX)
        for name, info in chosen.items()
    )
    return casts or len(chosen) < len(held), sum(8 * prod(info.shape) for info in chosen.values())


def _derive(order: Derivation) -> Outcome:
    try:
        return delivered(_part(order), order.folder)
    except FAILURES as error:
        return failed(error, order.reference)


def _part(order: Derivation) -> bytes:
    """Return a part of a checkpoint that was verified before as one of its own, which says what it is of."""
    from safetensors import SafetensorError, safe_open

    from metainit import checkpoint
    from metainit.card import read_card

    try:
        with safe_open(order.file, framework="pt") as held:
            card = read_card(held.metadata()[METADATA_KEY])
            names = order.names or tuple(held.keys())
            tensors = {name: _cast(name, held.get_tensor(name), order.dtype) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the file of {order.reference}: {error}") from error
    source: dict[str, object] = {"digest": card.digest, "sha256": order.sha256}
    if order.dtype is not None:
        source["dtype"] = order.dtype
    if order.names:
        source["tensors"] = list(order.names)
    recipe = {**card.provenance.recipe, "derived_from": source}
    provenance = card.provenance.model_copy(update={"recipe": recipe})
    return checkpoint.to_bytes(tensors, card.model_copy(update={"provenance": provenance}))


def _cast(name: str, tensor: Tensor, dtype: Dtype | None) -> Tensor:
    """Return a tensor in a type; step sizes are no weights, and integers no numbers to round."""
    import torch

    if dtype is None or not tensor.is_floating_point() or name.startswith(STEP_SIZE_PREFIX):
        return tensor
    return tensor.to(getattr(torch, dtype))
