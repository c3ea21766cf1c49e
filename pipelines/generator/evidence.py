"""Evidence of a generator: its samples and its mean beside controls that know as much, on held-out tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hypernets.generator.checkpoints import Base, read_generator
from hypernets.generator.description import What, description_of
from hypernets.generator.evidence import (
    GivenStart,
    Note,
    best_setting,
    headline_of,
    measure_given,
    rendered,
)
from hypernets.generator.model import Generator
from hypernets.generator.task_loss import Ground
from metainit import checkpoint as files
from metainit.checkpoint import Checkpoint
from metainit.domains.base import TaskBatch
from metainit.domains.seeding import seed_of
from metainit.errors import CopyError
from metainit.evidence.measuring import Evidence, held_out
from metainit.networks import build, function_of
from pipelines.generator.controls import CONTROLS, conditions_for, controls_of
from pipelines.generator.preparation import PreparedGenerator

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
    tasks = told(held_out(prepared.domain, "test", min(8, prepared.recipe.evidence.tasks)), prepared)
    conditions = conditions_for(prepared, generator.config.conditions, tasks)
    drawn = generator.sample(conditions, list(range(len(tasks)))).deltas
    members = prepared.members.deltas.to(prepared.device)
    nearest = members[torch.cdist(generator.standardized(drawn), generator.standardized(members)).argmin(1)]
    starts = {"sample": drawn, "nearest member": nearest, "prior": torch.zeros_like(drawn)}
    if generator.mean is not None:
        starts["mean"] = generator.sample(conditions, [0] * len(tasks), "mean").deltas
    rows = {name: rendered(prepared.ground, deltas, tasks) for name, deltas in starts.items()}
    draw_samples(rows, prepared.domain, tasks, folder / SAMPLES_PICTURE)


def told(tasks: TaskBatch, prepared: PreparedGenerator) -> TaskBatch:
    """Return tasks where the networks lie."""
    return tasks.to(prepared.device, torch.float32)


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
    say = note or (lambda text: None)
    starts = []
    for start in own_starts(prepared, generator, description_of(stored.card).start, keep=True):
        try:
            for seed in seeds:
                for tasks in (tuning, test):
                    start.give(tasks, seed)
        except CopyError as error:
            if start.role == "candidate":
                raise CopyError(f"no evidence of {start.name!r}, because {error}") from error
            say(f"no evidence of {start.name!r}, because {error}")
        else:
            starts.append(start)
    at = headline_of(ground, steps, headline)
    for name, control in controls_of(prepared, generator, controls, say).items():
        say(f"making the control {name}")
        setting = best_setting(control.grid, control.make, ground, network, tuning, at, seeds[0], say)
        starts.append(GivenStart(name, "control", control.make(setting), control.seeded))
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
    prepared: PreparedGenerator, generator: Generator, default: What | None = None, *, keep: bool = False
) -> list[GivenStart]:
    """Return what a generator gives, each on its own; its default, or else the recipe's, is the candidate.

    `keep`: draw once for the same tasks and the same seed, and count the copies that were refused.
    """
    first = prepared.recipe.start if default is None else default
    has: list[What] = ["sample"]
    has += ["mean"] if generator.mean is not None else []
    has += ["one_step"] if generator.student is not None else []
    ordered: list[What] = [first, *(what for what in has if what != first)]

    def start_of(what: What) -> GivenStart:
        facts = {"refused_copies": 0} if keep and what != "mean" else {}
        given: dict[tuple[tuple[str, ...], int], Tensor] = {}

        def give(tasks: TaskBatch, seed: int) -> Tensor:
            if keep and (tasks.ids, seed) in given:
                return given[tasks.ids, seed]
            conditions = conditions_for(prepared, generator.config.conditions, tasks)
            own = [seed_of("evidence", seed, name) for name in tasks.ids]
            drawn = generator.sample(conditions, own, what)
            if keep:
                given[tasks.ids, seed] = drawn.deltas
                facts.update({name: count + int(drawn.refused.sum()) for name, count in facts.items()})
            return drawn.deltas

        return GivenStart(what, "candidate" if what == first else "source", give, what != "mean", facts)

    return [start_of(what) for what in ordered]
