"""Evidence of a generator: its samples and its mean beside controls that know as much, on held-out tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from hypernets.generator.checkpoints import Base, description_of, read_generator
from hypernets.generator.conditions import Conditions, conditions_of
from hypernets.generator.config import ConditionConfig
from hypernets.generator.controls import (
    Conditional,
    features_of,
    nearest_member,
    noised_member,
    ridge,
    zoo_mean,
)
from hypernets.generator.evidence import Given, GivenStart, Note, measure_given, rendered
from hypernets.generator.model import Generator, What
from hypernets.generator.task_loss import Ground
from hypernets.generator.training import GeneratorTraining
from metainit import checkpoint as files
from metainit.checkpoint import Checkpoint
from metainit.domains.base import Observing, TaskBatch
from metainit.domains.seeding import seed_of
from metainit.errors import RecipeError, suggestion
from metainit.evidence.measuring import Evidence, held_out
from metainit.networks import build, function_of
from pipelines.generator.preparation import PreparedGenerator, texts_of

RIDGES = tuple(10.0**k for k in range(-5, 4))
NOISES = (0.1, 0.3, 1.0)
REGRESSIONS = tuple(product((3e-4, 1e-3, 3e-3), (1e-2, 1.0)))
"""Step sizes and weight decays of regressors."""
CONTROLS = ("prior", "zoo_mean", "noised_member", "nearest_member", "ridge", "regressor")
SAMPLES_PICTURE = "samples.png"


def measure_generator(
    prepared: PreparedGenerator, checkpoint: Path, note: Note, controls: Sequence[str] | None = None
) -> Evidence:
    """Measure a generator beside its controls, as the recipe's evidence section says.

    Raises:
        RecipeError: there is no control of a name that is given.
    """
    settings = prepared.recipe.evidence
    wanted = CONTROLS if controls is None else controls
    test = told(held_out(prepared.domain, "test", settings.tasks), prepared)
    return _measured(
        prepared, checkpoint, wanted, test, settings.steps, settings.seeds, settings.headline, note
    )


def measure_again(prepared: PreparedGenerator, evidence: Evidence, champion: Path) -> Evidence:
    """Measure a champion on the held-out tasks of this run's evidence."""
    record = evidence.record
    test = told(held_out(prepared.domain, "test", len(record.task_ids)), prepared)
    headline = prepared.recipe.evidence.headline
    return _measured(prepared, champion, (), test, record.steps, record.seeds, headline, None)


def illustrate(prepared: PreparedGenerator, checkpoint: Path, evidence: Evidence, folder: Path) -> None:
    """Draw what samples are before any step, and the members that are nearest to them."""
    from hypernets.generator.picture import draw_samples

    generator = _generator(prepared, checkpoint)
    tasks = held_out(prepared.domain, "test", min(8, prepared.recipe.evidence.tasks))
    conditions = conditions_for(prepared, generator.config.conditions, tasks)
    drawn = generator.sample(conditions, list(range(len(tasks)))).deltas
    values, members = generator.standardized(drawn), generator.standardized(prepared.members.deltas)
    nearest = prepared.members.deltas[torch.cdist(values, members).argmin(1)]
    starts = {"sample": drawn, "nearest member": nearest, "base": torch.zeros_like(drawn)}
    if generator.mean is not None:
        starts["mean"] = generator.sample(conditions, [0] * len(tasks), "mean").deltas
    rows = {name: rendered(prepared.ground, deltas, tasks) for name, deltas in starts.items()}
    draw_samples(rows, prepared.domain, tasks, folder / SAMPLES_PICTURE)


def told(tasks: TaskBatch, prepared: PreparedGenerator) -> TaskBatch:
    """Return tasks where the networks lie."""
    return tasks.to(prepared.device, torch.float32)


def conditions_for(prepared: PreparedGenerator, config: ConditionConfig, tasks: TaskBatch) -> Conditions:
    """Return what a generator is told of tasks."""
    seen = None
    if config.observation:
        assert isinstance(prepared.domain, Observing)
        seen = prepared.domain.observed(tasks.support, tasks.shared)
    return conditions_of(
        config,
        len(tasks),
        classes=tasks.conditions["class"] if config.classes else None,
        texts=texts_of(tasks.conditions, prepared.domain) if config.text else (),
        observations=seen,
    )


def _generator(prepared: PreparedGenerator, checkpoint: Path) -> Generator:
    generator, _ = read_generator(files.load(checkpoint))
    return generator.to(prepared.device)


def _measured(
    prepared: PreparedGenerator,
    checkpoint: Path,
    controls: Sequence[str],
    test: TaskBatch,
    steps: Sequence[int],
    seeds: Sequence[int],
    headline: int | None,
    note: Note | None,
) -> Evidence:
    stored = files.load(checkpoint)
    generator, base = read_generator(stored)
    generator = generator.to(prepared.device)
    network, ground = _ground(prepared, stored, base)
    tuning = told(held_out(prepared.domain, "validation", prepared.recipe.evidence.tuning), prepared)
    starts = own_starts(prepared, generator, description_of(stored.card).start)
    starts += [
        GivenStart(name, "control", give, seeded)
        for name, give, seeded in controls_of(prepared, generator, controls, tuning, note)
    ]
    record = measure_given(
        starts,
        ground,
        network,
        tuning,
        test,
        steps=steps,
        headline=headline,
        seeds=seeds,
        domain=prepared.zoo.manifest.domain,
        spec=stored.card.network,
        candidate_digest=stored.card.digest,
        progress=note,
    )
    return Evidence(record)


def _ground(prepared: PreparedGenerator, stored: Checkpoint, base: Base) -> tuple[nn.Module, Ground]:
    """Return the network of a checkpoint at its own base, which a champion's need not share with this run."""
    card = stored.card
    network = build(prepared.zoo.manifest.network if card.network is None else card.network)
    network.load_state_dict(dict(base.state))
    network = network.to(prepared.device)
    begun = {name: value.detach() for name, value in network.named_parameters()}
    sizes = {name: value.to(prepared.device) for name, value in stored.step_sizes.items()}
    return network, Ground(prepared.domain, function_of(network), begun, base.layout, card.routine, sizes)


def own_starts(
    prepared: PreparedGenerator, generator: Generator, default: What | None = None
) -> list[GivenStart]:
    """Return what a generator gives, each on its own; its default, or else the recipe's, is the candidate."""
    first = prepared.recipe.start if default is None else default
    has: list[What] = ["sample"]
    has += ["mean"] if generator.mean is not None else []
    has += ["one_step"] if generator.student is not None else []
    ordered: list[What] = [first, *(what for what in has if what != first)]

    def giving(what: What) -> Given:
        def give(tasks: TaskBatch, seed: int) -> Tensor:
            conditions = conditions_for(prepared, generator.config.conditions, tasks)
            own = [seed_of("evidence", seed, name) for name in tasks.ids]
            return generator.sample(conditions, own, what).deltas

        return give

    return [
        GivenStart(what, "candidate" if what == first else "source", giving(what), what != "mean")
        for what in ordered
    ]


def controls_of(
    prepared: PreparedGenerator,
    generator: Generator,
    names: Sequence[str],
    tuning: TaskBatch,
    note: Note | None = None,
) -> list[tuple[str, Given, bool]]:
    """Return controls that know as much of each task, with settings that do best on `tuning` before a step.

    Of each its name, what it gives, and whether it depends on a seed.

    Raises:
        RecipeError: there is no control of a name.
    """
    for name in names:
        if name not in CONTROLS:
            raise RecipeError(f"no control of generators is called {name!r}; {suggestion(name, CONTROLS)}")
    say = note or (lambda text: None)
    deltas = prepared.members.deltas.to(prepared.device)
    features, of = known_features(prepared, generator.config.conditions)

    def judged(given: Given) -> float:
        """Return the mean metric before any step on the tuning tasks."""
        shown = rendered(prepared.ground, given(tuning, 0), tuning)
        values = [
            prepared.domain.metrics(one, {k: v[0] for k, v in task.query.items()}, [prepared.domain.metric])
            for one, task in zip(shown, tuning, strict=True)
        ]
        return sum(value[prepared.domain.metric] for value in values) / len(values)

    def best(candidates: Sequence[Given]) -> Given:
        return max(candidates, key=judged)

    makers: Mapping[str, Callable[[], tuple[Given, bool]]] = {
        "prior": lambda: (of(zoo_mean(torch.zeros_like(deltas))), False),
        "zoo_mean": lambda: (of(zoo_mean(deltas)), False),
        "noised_member": lambda: (
            best([of(noised_member(features, deltas, noise)) for noise in NOISES]),
            True,
        ),
        "nearest_member": lambda: (of(nearest_member(features, deltas)), True),
        "ridge": lambda: (best([of(ridge(features, deltas, strength)) for strength in RIDGES]), False),
        "regressor": lambda: (best(regressors(prepared, generator, say)), False),
    }
    found = []
    for name in names:
        say(f"making the control {name}")
        give, seeded = makers[name]()
        found.append((name, give, seeded))
    return found


def known_features(
    prepared: PreparedGenerator, config: ConditionConfig
) -> tuple[Tensor, Callable[[Conditional], Given]]:
    """Return the features of the members, and what makes a start of a control that reads such features."""
    members = prepared.members
    known = conditions_of(
        config,
        len(members),
        classes=members.conditions["class"] if config.classes else None,
        texts=members.texts if config.text else (),
        observations=members.conditions["observation"] if config.observation else None,
    )

    def seen(conditions: Conditions) -> Tensor:
        return features_of(conditions, config.classes, config.encoder == "examples").to(prepared.device)

    def of(conditional: Conditional) -> Given:
        return lambda tasks, seed: conditional(seen(conditions_for(prepared, config, tasks)), seed)

    return seen(known), of


def regressors(
    prepared: PreparedGenerator,
    generator: Generator,
    say: Note,
    settings: Sequence[tuple[float, float]] = REGRESSIONS,
) -> list[Given]:
    """Return regressors of the weights of the members, as large as the generator's own mean.

    Each is the mean of a generator that is trained no further, without the task loss; `settings` are step
    sizes and weight decays.
    """
    recipe = prepared.recipe
    config = generator.config.model_copy(update={"mean": True, "one_step": False})
    found: list[Given] = []
    for step_size, decay in settings:
        say(f"training the control regressor: step size {step_size:g}, weight decay {decay:g}")
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
        trained = run.generator.eval()
        trained.load_state_dict(run.result())

        def give(tasks: TaskBatch, seed: int, model: Generator = trained) -> Tensor:
            conditions = conditions_for(prepared, model.config.conditions, tasks)
            return model.sample(conditions, [0] * len(tasks), "mean").deltas

        found.append(give)
    return found
