"""From a zoo's recipe and its base to what fits are made with: domain, network, routine, and the shards."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hypernets.generator.flat import FlatLayout
from hypernets.generator.shards import MAX_SHARD_BYTES, Belonging
from hypernets.generator.zoo import MAX_BYTES, FitRoutine
from metainit import checkpoint as files
from metainit.card import AdaptationRoutine, Card, DataSource, Spec, canonical_json
from metainit.checkpoint import Checkpoint
from metainit.domains.base import Domain, Predict, Split
from metainit.domains.registry import PLACES, build_domain, without_places
from metainit.errors import DataError, MetainitError, RecipeError, suggestion
from metainit.initialization import Prior
from metainit.meta.state import Parameters
from metainit.networks import build, function_of
from pipelines.preparation import device_of
from pipelines.zoo.recipe import FitConfig, ZooRecipe

OF_FITS = ("fit", "seed", "shard", "batch", "execution", "observations", "gpu")
"""What of the recipe the bytes of a fit follow from, beside base, domain and data."""
VALIDATION = 32
"""Fits that are held out for choosing, where the recipe says nothing and there are as many tasks."""


@dataclass(frozen=True)
class ShardPlan:
    """One shard: the tasks of its split from `index` times the recipe's `shard` on."""

    number: int
    split: Split
    index: int
    count: int


@dataclass(frozen=True)
class PreparedZoo:
    """A zoo's recipe with its base read and its domain built.

    `earlier`: shards are known as by earlier versions, which put the whole recipe into their key.
    """

    recipe: ZooRecipe
    base: Checkpoint
    spec: Spec
    domain: Domain
    domain_spec: Spec
    function: Callable[[Mapping[str, Tensor]], Predict]
    start: Parameters
    fit: FitRoutine
    device: torch.device
    earlier: bool = False

    @property
    def layout(self) -> FlatLayout:
        """What the fits move."""
        adapts = self.fit.routine.adapts
        return FlatLayout.of({k: v for k, v in self.start.items() if not adapts or k in adapts})

    @property
    def step_sizes(self) -> dict[str, Tensor]:
        """The prior's learned step sizes of what the fits move, where its routine is used."""
        if not self.fit.routine.per_parameter:
            return {}
        moved = self.layout.names
        return {k: v.to(self.device) for k, v in self.base.step_sizes.items() if k in moved}

    @property
    def source(self) -> DataSource:
        """What the manifest says about the data."""
        note = self.recipe.data
        prior = self.base.card.provenance.data
        fingerprint = self.domain.fingerprint()
        same = prior.fingerprint == fingerprint
        return DataSource(
            description=note.description
            or (prior.description if same else f"domain {self.domain_spec.name}"),
            fingerprint=fingerprint,
            licence=prior.licence if same and note.licence == "not stated" else note.licence,
        )

    @property
    def belonging(self) -> Belonging:
        """What the shards have in common: nothing else determines their fits.

        What they are called, which of them are members, and how many there are is no part of it.
        """
        recorded = self.recipe.recorded()
        known = recorded if self.earlier else {key: recorded[key] for key in OF_FITS}
        value = [known, self.source.fingerprint, self.domain_spec.model_dump(mode="json")]
        key = hashlib.sha256(canonical_json(value).encode()).hexdigest()
        return Belonging.of(key, self.base.card.digest, self.layout)

    def plans(self) -> list[ShardPlan]:
        """Return all shards: those of the train split first.

        Raises:
            DataError: a split has fewer tasks than the recipe holds out, or its weights are more than a zoo
                can hold.
        """
        recipe, size = self.recipe, self.domain.size("train")
        validation, few = recipe.held_out.validation, self.domain.size("validation")
        if validation is None:
            validation = VALIDATION if few is None else min(VALIDATION, few)
        wanted: dict[Split, int] = {
            "train": recipe.members if size is None else min(recipe.members, size),
            "validation": validation,
            "test": recipe.held_out.test,
        }
        plans: list[ShardPlan] = []
        for split, count in wanted.items():
            there = self.domain.size(split)
            if there is not None and count > there:
                raise DataError(
                    f"held_out.{split} is {count}, but the domain has {there} such tasks: hold out fewer"
                )
            require_size(self.layout.size, recipe.shard, split, count)
            for index, begin in enumerate(range(0, count, recipe.shard)):
                plans.append(ShardPlan(len(plans), split, index, min(recipe.shard, count - begin)))
        return plans


def require_size(size: int, shard: int, split: Split, count: int) -> None:
    """Raise unless fits of `size` numbers can be written in shards and read back.

    Raises:
        DataError: a shard, or a split, has more bytes than may be read.
    """
    each = 4 * size
    if (bytes_ := min(shard, count) * each) > MAX_SHARD_BYTES:
        raise DataError(
            f"a shard of {min(shard, count)} fits has {bytes_ >> 20} MiB of weights, at most "
            f"{MAX_SHARD_BYTES >> 20} are read: set shard to {max(1, MAX_SHARD_BYTES // each // 2)}"
        )
    if (bytes_ := count * each) > MAX_BYTES:
        raise DataError(
            f"{count} fits of the {split} split have {bytes_ >> 20} MiB of weights, at most "
            f"{MAX_BYTES >> 20} are read: fit {MAX_BYTES // each} tasks, or fewer tensors (fit.adapts)"
        )


def prepare_zoo(recipe: ZooRecipe, base: Path, device: torch.device | None = None) -> PreparedZoo:
    """Build what a recipe and the checkpoint of its prior name; all that can be wrong shows here.

    Raises:
        CheckpointError: the checkpoint is damaged.
        RecipeError: it is no prior, or the recipe asks for what the prior does not have.
        DataError: the data cannot be used.
    """
    chosen = device_of(recipe, device)
    stored = files.load(base)
    card = stored.card
    if card.network is None or card.domain is None:
        raise RecipeError(
            f"prior: the card of {card.name!r} names no {'network' if card.network is None else 'domain'}: a "
            "zoo needs a prior that was trained on a domain"
        )
    spec = Spec(name=card.domain.name, arguments={**card.domain.arguments, **recipe.domain})
    told = any(place in recipe.domain for place in PLACES)
    own = None if told else _own_domain(card, card.domain)
    domain = build_domain(spec) if own is None or recipe.domain else own
    network = Prior(stored).init_(build(card.network)).to(chosen)
    start = {name: value.detach() for name, value in network.named_parameters()}
    routine = fit_routine(recipe.fit, card.routine, start)
    return PreparedZoo(
        recipe=recipe,
        base=stored,
        spec=card.network,
        domain=domain,
        domain_spec=without_places(spec),
        function=function_of(network),
        start=start,
        fit=FitRoutine(routine=routine, steps=recipe.fit.steps),
        device=chosen,
    )


def _own_domain(card: Card, spec: Spec) -> Domain:
    """Return the prior's domain as it is without being told where its data lie.

    A card does not say where that is, and what a domain takes by itself may be something else.

    Raises:
        DataError: the data are others than the prior's, or do not fit the domain.
    """
    way_out = f"point domain.data at the data that {card.name!r} was trained on, or at others of their kind"
    try:
        own = build_domain(spec)
    except MetainitError as error:
        raise DataError(
            f"domain: the card of the prior {card.name!r} does not say where its data lie, and without that "
            f"the domain cannot be built ({error}): {way_out}"
        ) from error
    found, expected = own.fingerprint(), card.provenance.data.fingerprint
    if expected and found != expected:
        raise DataError(
            f"domain: these are not the data of the prior {card.name!r} (fingerprint {found[:12]}…, expected "
            f"{expected[:12]}…): {way_out}"
        )
    return own


def fit_routine(
    config: FitConfig, own: AdaptationRoutine | None, parameters: Mapping[str, Tensor]
) -> AdaptationRoutine:
    """Return the routine of the fits: the recipe's optimizer, or what the prior was learned for.

    Raises:
        RecipeError: the prior has no routine, or no tensor of a name in `adapts`.
    """
    for name in config.adapts:
        if name not in parameters:
            raise RecipeError(f"fit.adapts: the prior has no {name!r}; {suggestion(name, parameters)}")
    if config.optimizer != "prior":
        assert config.step_size is not None
        return AdaptationRoutine(
            optimizer=config.optimizer,
            steps=config.steps,
            step_size=config.step_size,
            weight_decay=config.weight_decay,
            adapts=config.adapts,
        )
    if own is None:
        raise RecipeError("fit.optimizer: the prior has no routine of its own; name adam or sgd")
    return own.model_copy(update={"adapts": config.adapts}) if config.adapts else own
