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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.cells import Cells, cpu_seconds, machine
from benchmarks.generated_fitting import ADAM, Fitting, Search, crossings
from benchmarks.generated_judge import judge_of
from benchmarks.generated_starts import SEEDS, Made, made
from hypernets.generator.checkpoints import read_generator
from hypernets.generator.conditions import conditions_of
from hypernets.generator.controls import noised_member
from hypernets.generator.copies import copy_test
from hypernets.generator.evidence import Given, rendered
from hypernets.generator.model import Generator
from hypernets.generator.settings import Setting, search
from metainit import checkpoint as files
from metainit import init_
from metainit.domains.base import TaskBatch
from metainit.domains.seeding import seed_of
from metainit.evidence.measuring import held_out
from metainit.evidence.statistics import Values
from metainit.networks import build
from pipelines.generator.controls import CONTROLS, NOISES, Control, controls_of
from pipelines.generator.evidence import own_starts
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


def candidates(prepared: PreparedGenerator, generator: Generator) -> dict[str, Control]:
    """Return every start by name, the generator's own first; these have one setting."""
    own = {
        start.name: Control(lambda setting, give=start.give: give, start.seeded)
        for start in own_starts(prepared, generator)
    }
    return own | controls_of(prepared, generator, CONTROLS, print)


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
    starts = candidates(prepared, generator)
    drawn = ordinary(prepared)
    starts["ordinary"] = Control(lambda setting: drawn, seeded=True)
    _forget(cells, starts)
    first = {} if seed == SEEDS[0] else cells.values

    def compute(name: str) -> dict[str, Any]:
        control = starts[name]
        steps = STEPS["ordinary" if name == "ordinary" else "given"]
        fit = Fitting(prepared.ground, tuning, psnr, steps)
        found: dict[Setting, Search] = {}

        def score(setting: Setting) -> float:
            deltas = control.make(setting)(tuning, seed)
            found[setting] = sizes = Search()
            rate = sizes.best(lambda r: -float(crossings(fit.adam(deltas, r), TARGET).mean()))
            return sizes.scores[rate]

        before = first.get(f"observation/{name}/{SEEDS[0]}")
        chosen = search(_grid(control, before and before["setting"]), score)
        tried = found[chosen.best].scores
        rate = max(tried, key=lambda r: tried[r])
        deltas = control.make(chosen.best)(test, seed)
        whole = replace(fit, tasks=test)
        began = time.perf_counter()
        curves = whole.adam(deltas, rate)
        seconds = time.perf_counter() - began
        own = whole.routine(deltas)
        return {
            "setting": list(chosen.best),
            "settings": [[*setting, round(value, 4)] for setting, value in sorted(chosen.scores.items())],
            "step_size": rate,
            "tried": {f"{size:g}": value for size, value in tried.items()},
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
            give = starts[name].make(_chosen(starts[name], cell))
            fit = Fitting(prepared.ground, test, psnr, max(1, count))
            runs = []
            for _ in range(3):
                began = time.perf_counter()
                # An ordinary start costs nothing worth counting where it is drawn for all at once.
                deltas = give(test, seed)
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
    starts = candidates(prepared, generator)
    first = {} if seed == SEEDS[0] else cells.values

    def compute(name: str) -> dict[str, Any]:
        control = starts[name]
        fit = Fitting(prepared.ground, tuning, right, max(TASK_STEPS), at_once=64)
        given = cache(lambda setting: control.make(setting)(tuning, seed))
        curve = cache(lambda setting, rate: fit.adam(given(setting), rate))
        before = first.get(f"tasks/{name}/{SEEDS[0]}")
        found: dict[str, Any] = {"chosen": {}, "settings": {}}
        for steps in TASK_STEPS:
            rates: dict[Setting, float] = {}

            def accuracy(setting: Setting, rate: float, steps: int = steps) -> float:
                return float(curve(setting, rate)[:, steps].mean())

            def score(setting: Setting, steps: int = steps, of: Any = accuracy, rates: Any = rates) -> float:
                rates[setting] = Search().best(lambda r: of(setting, r)) if steps else ADAM[0]
                return float(of(setting, rates[setting]))

            chosen = search(_grid(control, before and before["chosen"][str(steps)][0]), score)
            rate = rates[chosen.best]
            found["chosen"][str(steps)] = [list(chosen.best), rate]
            found["settings"][str(steps)] = [
                [*setting, round(value, 4)] for setting, value in sorted(chosen.scores.items())
            ]
            whole = replace(fit, tasks=test, steps=steps)
            deltas = control.make(chosen.best)(test, seed)
            found[f"accuracy@{steps}"] = whole.adam(deltas, rate)[:, -1].round(4).tolist()
        at_once = control.make(tuple(found["chosen"]["0"][0]))(test, seed)
        own = replace(fit, tasks=test).routine(at_once)
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


def _grid(control: Control, earlier: Sequence[float] | None) -> tuple[tuple[float, ...], ...]:
    """Return where a search begins: for later seeds at what the first one has chosen, and nowhere else."""
    if earlier is None or not control.grid:
        return control.grid
    return tuple((value,) for value in earlier)


def _forget(cells: Cells, starts: Mapping[str, Control]) -> None:
    """Leave out cells that have the number of their setting on a grid, which means nothing on another one."""
    for name, control in starts.items():
        for key in (f"observation/{name}/{seed}" for seed in SEEDS):
            if control.grid and isinstance(cells.values.get(key, {}).get("setting"), int):
                del cells.values[key]


def _chosen(control: Control, cell: Mapping[str, Any]) -> Setting:
    """Return the setting that a cell was measured with."""
    return tuple(cell["setting"]) if control.grid else ()


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
