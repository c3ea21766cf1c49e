"""From a generator's recipe to what training moves: the zoo, its domain, the generator, and the task loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hypernets.generator.config import ConditionConfig
from hypernets.generator.flat import FlatLayout
from hypernets.generator.generatability import chosen
from hypernets.generator.mean import TaskLoss
from hypernets.generator.members import Members
from hypernets.generator.model import Generator
from hypernets.generator.task_loss import Ground, task_loss_of
from hypernets.generator.tokens import owned
from hypernets.generator.zoo import Zoo, read_zoo
from metainit.card import DataSource, Spec
from metainit.domains.base import Domain, Standardizing, TaskBatch
from metainit.domains.registry import build_domain
from metainit.domains.seeding import seed_of
from metainit.errors import DataError, RecipeError
from metainit.initialization import Prior
from metainit.networks import build, function_of
from pipelines.generator.recipe import GeneratorRecipe, Told
from pipelines.preparation import device_of
from pipelines.zoo.fits import shard_tasks
from pipelines.zoo.tracking import find_zoo

CLASS, OBSERVATION, TEXT = "class", "observation", "text"


@dataclass(frozen=True)
class PreparedGenerator:
    """A generator's recipe with its zoo read, its domain built, and the generator drawn."""

    recipe: GeneratorRecipe
    zoo: Zoo
    members: Members
    held_out: Members
    domain: Domain
    network: nn.Module
    ground: Ground
    generator: Generator
    device: torch.device

    @property
    def source(self) -> DataSource:
        """What the card says about the data: those of the zoo."""
        data = self.zoo.manifest.data
        note = self.recipe.data
        return DataSource(
            description=note.description or data.description,
            fingerprint=data.fingerprint,
            licence=data.licence if note.licence == "not stated" else note.licence,
        )

    def task_loss(self) -> TaskLoss | None:
        """Return the loss on the members' tasks, where training uses it.

        Raises:
            DataError: the zoo does not say what the tasks of the members are, or the domain has none such.
            RecipeError: it is taken after steps that the base's routine does not have.
        """
        if not self.recipe.training.task_weight:
            return None
        tasks = tasks_of(self.zoo, self.members, self.domain).to(self.device, torch.float32)
        return task_loss_of(self.ground, tasks, self.recipe.task_after)


def prepare_generator(recipe: GeneratorRecipe, device: torch.device | None = None) -> PreparedGenerator:
    """Build what a recipe names, on its device unless another is given.

    Raises:
        CheckpointError: the zoo is damaged.
        RecipeError: the zoo is another one than that whose digest the recipe has, or lacks a condition; or
            there is no GPU.
        DataError: the data are not those of the zoo, or cannot be used.
    """
    chosen = device_of(recipe, device)
    recipe = recipe.pinned()
    zoo = read_zoo(find_zoo(recipe.zoo))
    manifest = zoo.manifest
    domain = build_domain(
        Spec(name=manifest.domain.name, arguments={**manifest.domain.arguments, **recipe.domain})
    )
    if domain.fingerprint() != manifest.data.fingerprint:
        raise DataError(
            f"domain: these are not the data of the zoo {manifest.name!r} (fingerprint "
            f"{domain.fingerprint()[:12]}…, expected {manifest.data.fingerprint[:12]}…): point domain.data "
            "to those that it was built from"
        )
    network = Prior(zoo.base).init_(build(manifest.network)).to(chosen)
    base = {name: value.detach() for name, value in network.named_parameters()}
    sizes = {k: v.to(chosen) for k, v in zoo.base.step_sizes.items()}
    layout, moved = FlatLayout.of(base), zoo.layout.names
    members, held_out = (
        replace(
            some,
            deltas=layout.widened(some.deltas, moved),
            texts=some.texts or texts_of(some.conditions, domain),
        )
        for some in (zoo.members("train"), zoo.members("validation"))
    )
    ground = Ground(domain, function_of(network), base, layout, zoo.base.card.routine, sizes)
    config = recipe.generator.model_copy(
        update={
            "conditions": conditions_config(recipe.told, members, domain),
            # Where only some tensors were fitted, the others have nothing to learn from.
            "parameters": recipe.generator.parameters or (moved if moved != layout.names else ()),
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("generator", recipe.seed))
        generator = Generator(config, layout, owned(network), len(members)).to(chosen)
    return PreparedGenerator(recipe, zoo, members, held_out, domain, network, ground, generator, chosen)


def conditions_config(told: Told, members: Members, domain: Domain) -> ConditionConfig:
    """Return what the generator takes: of what the zoo knows, what it is to be told.

    Raises:
        RecipeError: the zoo does not know it.
    """
    known = {*members.conditions, *([TEXT] if members.texts else [])}
    if missing := sorted(set(told.kinds) - known):
        raise RecipeError(
            f"told.kinds: the zoo has no {' and no '.join(missing)}; it has "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    names: tuple[str, ...] = tuple(getattr(domain, "class_names", ()))
    classes = 0
    if CLASS in told.kinds:
        classes = max(len(names), int(members.conditions[CLASS].max()) + 1)
    seen = OBSERVATION in told.kinds
    given = domain.standardization if seen and isinstance(domain, Standardizing) else ((), ())
    mean, deviation = (tuple(map(float, part)) for part in given)
    return ConditionConfig(
        classes=classes,
        class_names=names if len(names) == classes else (),
        text=told.text if TEXT in told.kinds else "",
        observation=tuple(members.conditions[OBSERVATION].shape[1:]) if seen else (),
        encoder=told.encoder,
        thumbnail=told.thumbnail if seen else 0,
        observation_mean=mean,
        observation_deviation=deviation,
        observation_range=_range_of(members.conditions[OBSERVATION], mean, deviation) if seen else None,
    )


def _range_of(seen: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> tuple[float, float]:
    """Return the smallest and the largest number of observations, before they are standardized."""
    if mean:
        shift, scale = (torch.tensor(value)[:, None, None] for value in (mean, deviation))
        seen = seen * scale + shift
    return float(seen.min()), float(seen.max())


def texts_of(conditions: Mapping[str, Tensor], domain: Domain) -> tuple[str, ...]:
    """Return the names of tasks' classes, which describe them where nothing else does; none without names."""
    names: tuple[str, ...] = tuple(getattr(domain, "class_names", ()))
    if CLASS not in conditions or not names:
        return ()
    return tuple(names[number] for number in conditions[CLASS].tolist())


def tasks_of(zoo: Zoo, members: Members, domain: Domain) -> TaskBatch:
    """Return the tasks of a zoo's training members, in their order, as they were drawn for the fits.

    Raises:
        DataError: the zoo does not say how they were drawn, or the domain has none of some name.
    """
    recipe, name = zoo.manifest.recipe, zoo.manifest.name
    if not all(isinstance(recipe.get(key), int) for key in ("seed", "shard")):
        raise DataError(
            f"the zoo {name!r} does not say how its tasks were drawn, which the task loss needs: set "
            "training.task_weight to 0"
        )
    wanted = set(members.ids)
    place: dict[str, int] = {}
    parts: list[TaskBatch] = []
    for index in range(sum(entry.split == "train" for entry in zoo.manifest.shards)):
        part = shard_tasks(domain, "train", index, recipe["shard"], recipe["seed"])
        rows = []
        for row, task in enumerate(part.ids):
            if task in wanted:
                wanted.remove(task)
                place[task] = len(place)
                rows.append(row)
        parts.append(chosen(part, rows))
    if wanted:
        raise DataError(
            f"the domain has no training task {min(wanted)!r}, which the zoo {name!r} has: build the zoo anew"
        )
    order = torch.tensor([place[task] for task in members.ids])
    support = {k: torch.cat([p.support[k] for p in parts])[order] for k in parts[0].support}
    query = {k: torch.cat([p.query[k] for p in parts])[order] for k in parts[0].query}
    return TaskBatch(support, query, parts[0].shared, members.ids)
