"""Make the picture of the page about generated weights: `python docs/make_generated_picture.py`.

Trains the recipe `digits`, builds the zoo `zoo-digits` from it and trains `gen-digits` told the class
alone, in this process and from digits that ship with scikit-learn. What an interrupted call has left is taken
up again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hypernets.generator.checkpoints import read_generator
from hypernets.generator.evidence import rendered, start_given
from hypernets.generator.generatability import chosen
from hypernets.generator.model import Generator
from hypernets.generator.picture import draw_samples
from metainit import checkpoint as files
from metainit.adaptation import trajectory
from metainit.domains.base import TaskBatch
from metainit.evidence.curves import Bench, best_routines
from metainit.evidence.measuring import held_out
from metainit.meta.state import TaskLosses
from pipelines.generator.evidence import own_starts
from pipelines.generator.preparation import PreparedGenerator, prepare_generator
from pipelines.generator.recipe import GeneratorRecipe
from pipelines.recipe import load_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.zoo.build import build_zoo
from pipelines.zoo.preparation import prepare_zoo
from pipelines.zoo.recipe import ZooRecipe

PICTURE = Path(__file__).parent / "pictures" / "generated-digits.png"
STEPS = (1, 2, 5, 10)
CLASSES, SEARCHED, TUNING = 10, 128, 16


def main() -> None:
    """Make the chain, and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("build/generated"), help="folder of the chain")
    given = parser.parse_args()
    torch.set_num_threads(1)
    prepared, checkpoint = chain(given.run)
    draw(prepared, checkpoint)


def chain(folder: Path) -> tuple[PreparedGenerator, Path]:
    """Return the generator's recipe with its parts, and its file."""
    prior = train(load_recipe("digits"), folder / "prior", sink=ListSink(), progress=_tell).checkpoint
    recipe = load_recipe("zoo-digits", [f"prior={prior}"])
    assert isinstance(recipe, ZooRecipe)
    build_zoo(prepare_zoo(recipe, prior), prior, folder / "zoo", note=_note)
    place = f"zoo={(folder / 'zoo').as_posix()}"
    generator = load_recipe("gen-digits", [place, "told={kinds: [class]}"])
    assert isinstance(generator, GeneratorRecipe)
    prepared = prepare_generator(generator)
    trained = train(generator, folder / "gen", sink=ListSink(), prepared=prepared, progress=_tell)
    return prepared, trained.checkpoint


def draw(prepared: PreparedGenerator, checkpoint: Path) -> None:
    """Write the picture: one column a class, one row a start and a number of steps."""
    generator, _ = read_generator(files.load(checkpoint))
    tasks = one_of_each(held_out(prepared.domain, "test", SEARCHED))
    tuning = held_out(prepared.domain, "validation", TUNING)
    sample, mean = (
        {start.name: start.give for start in own_starts(prepared, generator)}[name]
        for name in ("sample", "mean")
    )
    rows: dict[str, Tensor] = {}
    drawn = sample(tasks, 0)
    rows |= _named(prepared, tasks, "sample", rendered(prepared.ground, drawn, tasks))
    rows["nearest member"] = rendered(prepared.ground, nearest(generator, prepared, drawn), tasks)
    rows |= fits(prepared, tasks, tuning, "sample", sample)
    rows |= _named(prepared, tasks, "mean", rendered(prepared.ground, mean(tasks, 0), tasks))
    rows |= fits(prepared, tasks, tuning, "mean", mean)
    still = torch.zeros_like(drawn)
    rows |= _named(prepared, tasks, "prior", rendered(prepared.ground, still, tasks))
    rows |= fits(prepared, tasks, tuning, "prior", lambda some, seed: still[:1].expand(len(some), -1))
    draw_samples(rows, prepared.domain, tasks, PICTURE)


def one_of_each(tasks: TaskBatch) -> TaskBatch:
    """Return the first task of each class."""
    classes = tasks.conditions["class"].tolist()
    return chosen(tasks, [classes.index(number) for number in range(CLASSES)])


def nearest(generator: Generator, prepared: PreparedGenerator, drawn: Tensor) -> Tensor:
    """Return the member that is nearest to each draw in standardized weights."""
    members = prepared.members.deltas
    apart = torch.cdist(generator.standardized(drawn), generator.standardized(members))
    return members[apart.argmin(1)]


def fits(
    prepared: PreparedGenerator,
    tasks: TaskBatch,
    tuning: TaskBatch,
    name: str,
    give: Callable[[TaskBatch, int], Tensor],
) -> dict[str, Tensor]:
    """Return what a start has become after each number of steps, with what is best for it on `tuning`."""
    ground, rows = prepared.ground, {}
    begun = start_given(name, ground, tuning, give(tuning, 0))
    routines = best_routines(Bench(prepared.network, prepared.domain), [begun], tuning, STEPS)
    starts = ground.moved(give(tasks, 0))
    for steps, routine in routines.items():
        _note(f"{name}: {steps} steps of {routine.optimizer}, step size {routine.step_size:.2g}")
        shown = []
        for number, task in enumerate(tasks):
            losses = TaskLosses(prepared.domain, ground.function, task, batched=False)
            own = {key: value[number] for key, value in starts.items()}
            *_, end = trajectory(losses, own, routine, {}, steps)
            query = {key: value[0] for key, value in task.query.items()}
            with torch.no_grad():
                shown.append(prepared.domain.render(ground.function(end), query, task.shared))
        rows |= _named(
            prepared, tasks, f"{name}, {steps} step{'' if steps == 1 else 's'}", torch.stack(shown)
        )
    return rows


def _named(prepared: PreparedGenerator, tasks: TaskBatch, name: str, shown: Tensor) -> dict[str, Tensor]:
    """Return a row under its name with the mean of the metric."""
    domain, total = prepared.domain, 0.0
    for one, task in zip(shown, tasks, strict=True):
        query = {key: value[0] for key, value in task.query.items()}
        total += domain.metrics(one, query, [domain.metric])[domain.metric] / len(tasks)
    _note(f"{name}: {total:.2f} dB")
    return {f"{name}\n{total:.1f} dB": shown}


def _tell(step: int, steps: int, loss: float, seconds_left: float) -> None:
    if step % 100 == 0:
        _note(f"step {step} of {steps}, loss {loss:.4g}, {seconds_left:.0f} s left")


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
