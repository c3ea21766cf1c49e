"""Controls of a generator in a run: each with the settings among which the best is searched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hypernets.generator.conditions import Conditions, conditions_of, described
from hypernets.generator.config import ConditionConfig
from hypernets.generator.controls import (
    Conditional,
    features_of,
    nearest_member,
    noised_member,
    ridge,
    zoo_mean,
)
from hypernets.generator.evidence import Given, Note
from hypernets.generator.model import Generator
from hypernets.generator.settings import Setting
from hypernets.generator.training import GeneratorTraining
from hypernets.generator.usable import known_conditions
from metainit.domains.base import Observing, TaskBatch
from metainit.domains.seeding import seed_of
from metainit.errors import ConditionError, RecipeError, suggestion
from pipelines.generator.preparation import CLASS, OBSERVATION, TEXT, PreparedGenerator, texts_of

RIDGES = tuple(10.0**k for k in range(-5, 4))
NOISES = (0.1, 0.3, 1.0)
STEP_SIZES, WEIGHT_DECAYS = (3e-4, 1e-3, 3e-3), (1e-2, 1.0)
"""Of regressors."""
CONTROLS = ("prior", "zoo_mean", "noised_member", "nearest_member", "ridge", "regressor")


@dataclass(frozen=True)
class Control:
    """A control by its setting: what it gives with one, and whether that depends on a seed.

    `grid`: where the search for a setting begins (`hypernets.generator.settings`); empty for the one setting
    ``()``. What `make` trains, it trains once for each setting, when it is first asked for.
    """

    make: Callable[[Setting], Given]
    seeded: bool
    grid: tuple[tuple[float, ...], ...] = ()


def controls_of(
    prepared: PreparedGenerator, generator: Generator, names: Sequence[str], say: Note
) -> dict[str, Control]:
    """Return controls that know as much of each task as the generator.

    Raises:
        RecipeError: there is no control of a name.
    """
    for name in names:
        if name not in CONTROLS:
            raise RecipeError(f"no control of generators is called {name!r}; {suggestion(name, CONTROLS)}")
    deltas = prepared.members.deltas.to(prepared.device)
    features, of = known_features(prepared, generator)
    still = of(zoo_mean(torch.zeros_like(deltas)))
    # With less and less noise a noised member becomes the nearest one, which is there in its own right.
    noised = cache(lambda setting: of(noised_member(features, deltas, *setting)))
    made: Mapping[str, Control] = {
        "prior": Control(lambda setting: still, seeded=False),
        "zoo_mean": Control(cache(lambda setting: of(zoo_mean(deltas))), seeded=False),
        "noised_member": Control(noised, seeded=True, grid=(NOISES,)),
        "nearest_member": Control(cache(lambda setting: of(nearest_member(features, deltas))), seeded=True),
        "ridge": Control(
            cache(lambda setting: of(ridge(features, deltas, *setting))), seeded=False, grid=(RIDGES,)
        ),
        "regressor": Control(
            cache(lambda setting: regressor(prepared, generator, setting, say)),
            seeded=False,
            grid=(STEP_SIZES, WEIGHT_DECAYS),
        ),
    }
    return {name: made[name] for name in names}


def conditions_for(prepared: PreparedGenerator, config: ConditionConfig, tasks: TaskBatch) -> Conditions:
    """Return what a generator is told of tasks.

    Raises:
        ConditionError: nothing of a kind is known of them.
    """
    domain, texts = prepared.domain, texts_of(tasks.conditions, prepared.domain)
    has = {
        CLASS: CLASS in tasks.conditions,
        TEXT: bool(texts),
        OBSERVATION: isinstance(domain, Observing),
    }
    if missing := [kind for kind in described(config) if not has[kind]]:
        raise ConditionError(
            f"the generator is told {' and '.join(missing)}, but the tasks of this domain have none: measure "
            "it on a domain that has, or train one that is told something else (told.kinds)"
        )
    seen = None
    if config.observation and isinstance(domain, Observing):
        seen = domain.observed(tasks.support, tasks.shared)
    return conditions_of(
        config,
        len(tasks),
        classes=tasks.conditions[CLASS] if config.classes else None,
        texts=texts if config.text else (),
        observations=seen,
    )


def known_features(
    prepared: PreparedGenerator, generator: Generator
) -> tuple[Tensor, Callable[[Conditional], Given]]:
    """Return the features of the members, and what makes a start of a control that reads such features.

    Raises:
        ConditionError: the members lack a kind that the generator is told.
    """
    config = generator.config.conditions
    known = known_conditions(generator, prepared.members)

    def seen(conditions: Conditions) -> Tensor:
        return features_of(conditions, config.classes, config.encoder == "examples").to(prepared.device)

    def of(conditional: Conditional) -> Given:
        return lambda tasks, seed: conditional(seen(conditions_for(prepared, config, tasks)), seed)

    return seen(known), of


def regressor(prepared: PreparedGenerator, generator: Generator, setting: Setting, say: Note) -> Given:
    """Return a regressor of the weights of the members, as large as the generator's own mean.

    It is the mean of a generator that is trained no further, without the task loss; the setting is a step
    size and a weight decay.
    """
    step_size, decay = setting
    say(f"training the control regressor: step size {step_size:.2g}, weight decay {decay:.2g}")
    recipe = prepared.recipe
    config = generator.config.model_copy(update={"mean": True, "one_step": False})
    training = recipe.training.model_copy(
        update={
            "mean_step_size": step_size,
            "weight_decay": decay,
            "steps": 0,
            "distillation_steps": 0,
            "folds": 1,
            "task_weight": 0.0,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed_of("regressor", recipe.seed))
        fresh = Generator(config, generator.layout, generator.layers, len(prepared.members))
    run = GeneratorTraining(
        training, fresh.to(prepared.device), prepared.members, prepared.held_out, recipe.seed
    )
    while run.step < run.total:
        run.apply(run.gradient())
    model = run.generator.eval()
    model.load_state_dict(run.result())

    def give(tasks: TaskBatch, seed: int) -> Tensor:
        conditions = conditions_for(prepared, model.config.conditions, tasks)
        return model.sample(conditions, [0] * len(tasks), "mean").deltas

    return give
