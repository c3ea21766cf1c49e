"""Generated starts beside controls that know as much: numbers 1 to 4 of the family.

    METAINIT_DATA=... python -m benchmarks.generated images | observation | tasks | sampling --seed 0
    METAINIT_DATA=... python -m benchmarks.generated table

`images`: samples of a class (are they of it, do they differ, are they copies). `observation`: steps to 25 dB
for one signal that the generator has seen, under Adam and under the prior's own routine. `tasks`:
classification tasks that nothing was trained on. `sampling`: few steps, and many networks at once. Each seed
has a prior, a zoo and a generator of its own (`benchmarks.generated_starts`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import Cells, cpu_seconds, machine
from benchmarks.generated_fitting import NEVER, Fitting, Search, crossings
from benchmarks.generated_judge import judge_of
from benchmarks.generated_starts import SEEDS, Made, made
from hypernets.generator.checkpoints import read_generator
from hypernets.generator.conditions import conditions_of
from hypernets.generator.controls import nearest_member, noised_member, ridge, zoo_mean
from hypernets.generator.copies import copy_test
from hypernets.generator.evidence import Given, rendered
from hypernets.generator.model import Generator
from metainit import checkpoint as files
from metainit import init_
from metainit.domains.base import TaskBatch
from metainit.domains.seeding import seed_of
from metainit.evidence.measuring import held_out
from metainit.evidence.statistics import Values
from metainit.networks import build
from pipelines.generator.evidence import (
    NOISES,
    REGRESSIONS,
    RIDGES,
    known_features,
    own_starts,
    regressors,
)
from pipelines.generator.preparation import PreparedGenerator

TARGET = 25.0
TUNING, REPORTED = 64, 256
STEPS = {"given": 60, "ordinary": 250}
PER_CLASS = 64
FEW = (1, 2, 4, 10, 25)
MANY = 256
TASK_STEPS = (0, 10, 50)


def loaded(chain: Made, kind: str) -> tuple[PreparedGenerator, Generator]:
    """Return a generator with its parts."""
    return chain.prepared(kind), read_generator(files.load(chain.generators[kind]))[0]


def psnr(predict: Callable[[Tensor], Tensor], query: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
    """Return the PSNR of one signal in dB, of values cut to [0, 1]."""
    shown = predict(shared["query_coordinates"]).clamp(0, 1)
    return -10 * torch.log10((shown - query["values"]).square().mean().clamp_min(1e-10))


def right(predict: Callable[[Tensor], Tensor], query: dict[str, Tensor], shared: dict[str, Tensor]) -> Tensor:
    """Return the share of one task's queries that are classified rightly."""
    return (predict(query["images"]).argmax(-1) == query["labels"]).float().mean()


def candidates(
    prepared: PreparedGenerator, generator: Generator, regressions: Sequence[tuple[float, float]]
) -> dict[str, tuple[list[Given], bool]]:
    """Return every start by name: its settings to choose among, and whether it depends on a seed."""
    deltas = prepared.members.deltas
    features, of = known_features(prepared, generator.config.conditions)
    found: dict[str, tuple[list[Given], bool]] = {
        start.name: ([start.give], start.seeded) for start in own_starts(prepared, generator)
    }
    found["prior"] = ([of(zoo_mean(torch.zeros_like(deltas)))], False)
    found["zoo_mean"] = ([of(zoo_mean(deltas))], False)
    found["noised_member"] = ([of(noised_member(features, deltas, noise)) for noise in NOISES], True)
    found["nearest_member"] = ([of(nearest_member(features, deltas))], True)
    found["ridge"] = ([of(ridge(features, deltas, strength)) for strength in RIDGES], False)
    if regressions:
        found["regressor"] = (regressors(prepared, generator, print, regressions), False)
    return found


def ordinary(prepared: PreparedGenerator) -> Given:
    """Return the framework-independent start of a SIREN, drawn for each task, as a delta from the prior."""
    ground = prepared.ground
    base = ground.layout.flatten({name: ground.base[name] for name in ground.layout.names})

    def give(tasks: TaskBatch, seed: int) -> Tensor:
        rows = []
        for name in tasks.ids:
            network = init_(
                build(prepared.zoo.manifest.network), "siren", seed=seed_of("ordinary", seed, name)
            )
            parameters = dict(network.named_parameters())
            rows.append(
                ground.layout.flatten({n: parameters[n].detach() for n in ground.layout.names}) - base
            )
        return torch.stack(rows)

    return give


def observation(cells: Cells, seed: int) -> None:
    """Measure steps to the target for signals that were observed."""
    chain = made("images", seed, ["observation"])
    prepared, generator = loaded(chain, "observation")
    domain = prepared.domain
    tuning, test = held_out(domain, "validation", TUNING), held_out(domain, "test", REPORTED)
    starts = candidates(prepared, generator, _regressions(cells, "observation", seed))
    starts["ordinary"] = ([ordinary(prepared)], True)

    def compute(name: str) -> dict[str, Any]:
        choices, _ = starts[name]
        steps = STEPS["ordinary" if name == "ordinary" else "given"]
        fit = Fitting(prepared.ground, tuning, psnr, steps)
        best: tuple[float, int, float, dict[str, float]] = (-NEVER, 0, 0.0, {})
        for number, give in enumerate(choices):
            deltas, search = give(tuning, seed), Search()
            rate = search.best(lambda r, d=deltas: -float(crossings(fit.adam(d, r), TARGET).mean()))
            if search.scores[rate] > best[0]:
                best = (search.scores[rate], number, rate, {f"{k:g}": v for k, v in search.scores.items()})
        _, number, rate, tried = best
        deltas = choices[number](test, seed)
        whole = replace(fit, tasks=test)
        began = time.perf_counter()
        curves = whole.adam(deltas, rate)
        seconds = time.perf_counter() - began
        own = whole.routine(deltas)
        return {
            "setting": number,
            "settings": len(choices),
            "step_size": rate,
            "tried": tried,
            "crossings": crossings(curves, TARGET).round(3).tolist(),
            "curve": _mean(curves),
            "routine": own[:, -1].round(3).tolist(),
            "routine_curve": _mean(own),
            "seconds_per_step": round(seconds / steps, 5),
            "machine": machine(),
        }

    for name in starts:
        cells.cell(f"observation/{name}/{seed}", lambda n=name: compute(n))
    cells.cell(f"observation/facts/{seed}", lambda: chain.facts)

    def wall() -> dict[str, float]:
        """Time the whole way of 256 signals to the target's mean crossing, sampling included."""
        found: dict[str, float] = {}
        for name in ("mean", "ordinary"):
            cell = cells.values[f"observation/{name}/{seed}"]
            count = int(np.ceil(np.quantile(cell["crossings"], 0.5)))
            choices, _ = starts[name]
            fit = Fitting(prepared.ground, test, psnr, max(1, count))
            runs = []
            for _ in range(3):
                began = time.perf_counter()
                # An ordinary start costs nothing worth counting where it is drawn for all at once.
                deltas = choices[cell["setting"]](test, seed)
                if name == "ordinary":
                    began = time.perf_counter()
                fit.adam(deltas, cell["step_size"])
                runs.append(time.perf_counter() - began)
            found[name], found[f"{name}_steps"] = round(min(runs), 4), count
        return found

    cells.cell(f"observation/wall/{seed}", wall)


def tasks(cells: Cells, seed: int) -> None:
    """Measure accuracy on classification tasks that nothing was trained on."""
    chain = made("classes", seed)
    prepared, generator = loaded(chain, "observation")
    domain = prepared.domain
    tuning, test = held_out(domain, "validation", TUNING), held_out(domain, "test", REPORTED)
    starts = candidates(prepared, generator, _regressions(cells, "tasks", seed))

    def compute(name: str) -> dict[str, Any]:
        choices, _ = starts[name]
        fit = Fitting(prepared.ground, tuning, right, max(TASK_STEPS), at_once=64)
        chosen: dict[int, tuple[float, int, float]] = {}
        for number, give in enumerate(choices):
            deltas, kept = give(tuning, seed), {}

            def curve(rate: float, d: Tensor = deltas, kept: dict[float, Values] = kept) -> Values:
                if rate not in kept:
                    kept[rate] = fit.adam(d, rate)
                return kept[rate]

            for steps in TASK_STEPS:
                rate = 0.0 if steps == 0 else Search().best(lambda r, s=steps: float(curve(r)[:, s].mean()))
                score = float(curve(rate or 1e-3)[:, steps].mean())
                if steps not in chosen or score > chosen[steps][0]:
                    chosen[steps] = (score, number, rate)
        found: dict[str, Any] = {
            "settings": len(choices),
            "chosen": {str(s): c[1:] for s, c in chosen.items()},
        }
        for steps, (_, number, rate) in chosen.items():
            whole = replace(fit, tasks=test, steps=steps)
            found[f"accuracy@{steps}"] = (
                whole.adam(choices[number](test, seed), rate)[:, -1].round(4).tolist()
            )
        own = replace(fit, tasks=test).routine(choices[chosen[0][1]](test, seed))
        return found | {"routine": own[:, -1].round(4).tolist(), "machine": machine()}

    for name in starts:
        cells.cell(f"tasks/{name}/{seed}", lambda n=name: compute(n))
    cells.cell(f"tasks/facts/{seed}", lambda: chain.facts)


def images(cells: Cells, seed: int) -> None:
    """Measure samples of each class: whether they are of it, how they vary, and whether they are copies."""
    chain = made("images", seed, ["class"])
    prepared, generator = loaded(chain, "class")
    judge = judge_of(prepared.domain)
    zoo = prepared.zoo
    members, validation, test = (zoo.members(split) for split in ("train", "validation", "test"))
    classes = generator.config.conditions.classes
    labels = torch.arange(classes).repeat_interleave(PER_CLASS)
    conditions = conditions_of(generator.config.conditions, len(labels), classes=labels)
    seeds = [seed_of("images", seed, i) for i in range(len(labels))]
    tasks = prepared.domain.tasks(0, 0, 1, "test")

    def described(deltas: Tensor, refused: Tensor | None = None) -> dict[str, Any]:
        values = generator.standardized(deltas)
        own = torch.stack([values[labels == c].var(0) for c in range(classes)]).mean(0)
        known = generator.standardized(members.deltas)
        real = members.conditions["class"]
        theirs = torch.stack([known[real == c].var(0) for c in range(classes)]).mean(0)
        held = generator.standardized(torch.cat([validation.deltas, test.deltas]))
        repeated = _repeated(tasks, len(deltas))
        shown = rendered(prepared.ground, deltas, repeated)
        found = copy_test(values, held, known)
        return {
            "right": judge.share(shown.movedim(-1, 1), labels),
            "variance": round(float(own.mean() / theirs.mean()), 4),
            "variance_per_number": round(float((own / theirs.clamp_min(1e-12)).clamp_max(10).mean()), 4),
            "picture_variance": round(_spread(shown, labels, classes), 5),
            "copies": {k: round(v, 5) for k, v in vars(found).items()},
            "refused": 0 if refused is None else int(refused.sum()),
        }

    def drawn(**how: Any) -> dict[str, Any]:
        began = time.perf_counter()
        result = generator.sample(conditions, seeds, **how)
        seconds = time.perf_counter() - began
        return described(result.deltas, result.refused) | {"seconds": round(seconds, 3)}

    for steps in FEW:
        cells.cell(f"images/sample@{steps}/{seed}", lambda s=steps: drawn(steps=s))
    cells.cell(f"images/one_step/{seed}", lambda: drawn(what="one_step"))
    cells.cell(f"images/mean/{seed}", lambda: drawn(what="mean"))
    cells.cell(f"images/guided/{seed}", lambda: drawn(steps=25, guidance=1.5))

    def of_the_zoo() -> dict[str, Any]:
        rows = []
        for c in range(classes):
            own = (test.conditions["class"] == c).nonzero().flatten()
            rows.append(test.deltas[own[torch.arange(PER_CLASS) % len(own)]])
        return described(torch.cat(rows))

    cells.cell(f"images/held-out fits/{seed}", of_the_zoo)
    for noise in NOISES:
        features = torch.nn.functional.one_hot(members.conditions["class"], classes).float()
        asked = torch.nn.functional.one_hot(labels, classes).float()
        noised = noised_member(features, members.deltas, noise)(asked, seed)
        cells.cell(f"images/noised@{noise:g}/{seed}", lambda d=noised: described(d))
    cells.cell(f"images/judge/{seed}", lambda: {"accuracy": judge.accuracy})
    cells.cell(f"images/facts/{seed}", lambda: chain.facts)


def sampling(cells: Cells) -> None:
    """Time many networks at once against one at a time, for both denoisers."""
    chain = made("images", SEEDS[0], ["class"])
    prepared, generator = loaded(chain, "class")
    transformer = Generator(
        generator.config.model_copy(update={"denoiser": "transformer", "width": 128, "depth": 3}),
        generator.layout,
        generator.layers,
        len(prepared.members),
    ).eval()
    large = Generator(
        generator.config.model_copy(update={"width": 768, "depth": 2}),
        generator.layout,
        generator.layers,
        len(prepared.members),
    ).eval()
    torch.set_num_threads(2)

    def timed(model: Generator) -> dict[str, Any]:
        labels = torch.arange(MANY) % model.config.conditions.classes
        conditions = conditions_of(model.config.conditions, MANY, classes=labels)
        rounds: list[tuple[float, float]] = []
        for _ in range(5):
            began = time.perf_counter()
            model.sample(conditions, range(MANY), steps=25)
            together = time.perf_counter() - began
            began = time.perf_counter()
            for i in range(0, MANY, 8):  # one in eight: the others cost as much
                model.sample(conditions[i : i + 1], [i], steps=25)
            rounds.append((together, 8 * (time.perf_counter() - began)))
        ratios = [apart / together for together, apart in rounds]
        return {
            "parameters": sum(p.numel() for p in model.denoiser.parameters()),
            "together": round(float(np.median([r[0] for r in rounds])), 4),
            "apart": round(float(np.median([r[1] for r in rounds])), 4),
            "ratio": round(float(np.median(ratios)), 2),
            "ratios": [round(r, 2) for r in ratios],
            "machine": machine(),
        }

    cells.cell("sampling/mlp", lambda: timed(large))
    cells.cell("sampling/transformer", lambda: timed(transformer))


def _regressions(cells: Cells, part: str, seed: int) -> Sequence[tuple[float, float]]:
    """Return what regressors are tried: of later seeds the best of the first; none where all is measured."""
    if f"{part}/regressor/{seed}" in cells.values:
        return []
    first = cells.values.get(f"{part}/regressor/{SEEDS[0]}")
    if seed == SEEDS[0] or first is None:
        return REGRESSIONS
    number = first["setting"] if "setting" in first else first["chosen"]["10"][0]
    return [REGRESSIONS[number]]


def _mean(curves: Values) -> list[float]:
    return np.where(np.isfinite(curves), curves, 0).mean(0).round(3).tolist()


def _repeated(tasks: TaskBatch, count: int) -> TaskBatch:
    """Return one task many times: what a picture needs to be rendered is the same for all."""
    return replace(
        tasks,
        support={k: v.expand(count, *v.shape[1:]) for k, v in tasks.support.items()},
        query={k: v.expand(count, *v.shape[1:]) for k, v in tasks.query.items()},
        conditions={},
        ids=tuple(map(str, range(count))),
        groups=(),
    )


def _spread(shown: Tensor, labels: Tensor, classes: int) -> float:
    return float(torch.stack([shown[labels == c].var(0).mean() for c in range(classes)]).mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part of the benchmark, or print its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("part", choices=("images", "observation", "tasks", "sampling", "table"))
    parser.add_argument("--seed", type=int, choices=SEEDS, default=0)
    options = parser.parse_args(arguments)
    cells = Cells("generated")
    if options.part == "table":
        from benchmarks.generated_tables import tables

        print(tables(cells.values))
        return
    torch.set_num_threads(1)
    began = cpu_seconds()
    if options.part == "sampling":
        sampling(cells)
    else:
        {"images": images, "observation": observation, "tasks": tasks}[options.part](cells, options.seed)
    print(f"{options.part} {options.seed}: {cpu_seconds() - began:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
