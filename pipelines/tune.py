"""Search the adaptation routine of a registered start on validation tasks, and register what is found.

The paper's update hyperparameter optimization (Hendryx et al. 2019, section "UHO"): the weights stay, the
routine that goes with them is searched. Ray Tune runs the trials; what a trial is worth and which comes next
is `pipelines.search`.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metainit import checkpoint as files
from metainit.card import AdaptationRoutine, Record, Spec
from metainit.checkpoint import write_atomically
from metainit.domains.registry import build_domain, without_places
from metainit.evidence.measuring import Evidence, measure
from metainit.initialization import EVIDENCE_FILE
from metainit.places import data_folder
from pipelines.finish import ARTIFACTS, CURVES_PICTURE, PICTURES
from pipelines.flavour import CHECKPOINT
from pipelines.gate import Decision, Remeasure, admit
from pipelines.registry import Registry, Version, cached
from pipelines.search import Outcome, SearchConfig, Trial
from pipelines.study import Study, first_point, run_search
from pipelines.tracking import MlflowSink, Sink
from pipelines.trials import Setup, judged, objective_of, remembered, setup_of

SEARCH_FILE = "search.json"
STEPS, TASKS, SEEDS = (0, 1, 2, 5, 10), 64, 3
"""How a version is measured whose predecessor has no evidence."""
Progress = Callable[[Sequence[Trial]], None]
Note = Callable[[str], None]


class Found(Record):
    """The end of a search: the card's own routine, the trials in their order, and the best routine.

    `improved` is false where no trial beat the card's routine; `routine` is the card's then. `at_the_edge`
    names what was searched whose best value lies within 5 % of the end of its range.
    """

    metric: str
    before: Outcome
    trials: tuple[Trial, ...]
    best: Trial
    routine: AdaptationRoutine
    improved: bool
    space: dict[str, tuple[float, float]]
    at_the_edge: tuple[str, ...]
    search: SearchConfig
    tasks: tuple[str, ...]


def search(setup: Setup, folder: Path, *, on_ray: bool = True, progress: Progress | None = None) -> Found:
    """Search the routine for a setup; a search that was interrupted in `folder` goes on.

    Every trial is written to `folder` when it is judged. The proposals follow from seed and answers alone, so
    the same command asks for the same trials again and finds the ones that are there.

    Raises:
        DataError: the domain has no validation tasks.
        MetainitError: Ray cannot be reached, or a trial failed.
    """
    with objective_of(setup) as objective:
        own = folder / setup.key
        space = setup.search.space(objective.domain, objective.base)
        study = Study(space, setup.search, first_point(objective.base))
        before = remembered(own / "before.json", objective.baseline)
        if not on_ray:
            run_search(study, setup.search, lambda p: judged(objective, p, own), progress)
    if on_ray:
        from pipelines.tune_on_ray import run_on_tune

        run_on_tune(study, setup, own, progress)
    best = study.best
    improved = best.outcome.score > before.score
    steps = best.outcome.steps
    return Found(
        metric=objective.domain.metric,
        before=before,
        trials=tuple(study.done),
        best=best,
        routine=objective.routine(best.point, steps) if improved else objective.base,
        improved=improved,
        space=space,
        at_the_edge=tuple(name for name in space if _at_the_edge(best.point[name], space[name], name)),
        search=setup.search,
        tasks=objective.tasks.ids,
    )


@dataclass(frozen=True)
class Tuned:
    """What tuning ends with; `version` and `decision` are None where nothing better was found."""

    found: Found
    version: Version | None
    decision: Decision | None


def tune(
    name: str,
    config: SearchConfig,
    *,
    data: str | None = None,
    folder: Path | None = None,
    on_ray: bool = True,
    measured: bool = True,
    controls: Sequence[str] | None = None,
    sink: Sink | None = None,
    progress: Progress | None = None,
    note: Note | None = None,
) -> Tuned:
    """Search the routine of a registered start and register a version that has it; the weights stay.

    The search is recorded in MLflow: its settings as parameters, the trials as metrics, and all of it in the
    version's ``search.json``. Where no trial beats the card's own routine, nothing is registered.

    Args:
        name: ``name``, ``name@alias`` or ``name/version``.
        config: what is searched and how long.
        data: where the domain's data lie here, for a domain that has any.
        folder: where trials are kept, so that the search can be resumed.
        on_ray: run the trials on Ray Tune; else in this process.
        measured: measure the new version beside its controls on test tasks, and let the gate decide on it;
            else it is registered without evidence, as a challenger.
        controls: which ones; the domain's unless given.
        sink: where the record goes; an MLflow run of its own unless given.
        progress: told the trials so far.
        note: told what is going on.

    Raises:
        RegistryError: the registry cannot be reached, or has no such name.
        SourceError: the card names no domain, network or routine.
        DataError: the data cannot be used.
    """
    say = note or (lambda text: None)
    registry = Registry()
    version = registry.resolve(name)
    setup = setup_of(cached(registry, version), config, data)
    place = folder or data_folder() / "searches" / version.name
    say(f"searching the routine of {version.reference} on {config.tasks} validation tasks")
    found = search(setup, place, on_ray=on_ray, progress=progress)
    if not found.improved:
        return Tuned(found, None, None)
    with _opened(sink, version.name) as record:
        record.log_params({"search": config.model_dump(mode="json"), "tuned": version.reference})
        for number, trial in enumerate(found.trials):
            numbers = {f"trial.{k}": v for k, v in trial.point.items()}
            record.log_metrics({"trial.score": trial.outcome.score, **numbers}, number)
        artifacts = assemble(setup, found, place / setup.key / ARTIFACTS, version)
        remeasure: Remeasure | None = None
        if measured:
            evidence = measure_again(setup, artifacts, registry.evidence(version) or {}, controls, say)
            remeasure = measured_again(setup, evidence, registry, say)
        run = record.run_id if isinstance(record, MlflowSink) else None
        made = registry.register(artifacts, version.name, run)
        decision = admit(registry, made, remeasure)
    return Tuned(found, registry.resolve(made.reference), decision)


def assemble(setup: Setup, found: Found, folder: Path, version: Version) -> Path:
    """Put together the folder that is registered: the weights with the found routine, and the search."""
    stored = files.load(setup.checkpoint)
    shutil.rmtree(folder, ignore_errors=True)
    text = (
        f"routine searched from {version.reference}: {len(found.trials)} trials on {len(found.tasks)} "
        f"validation tasks, {found.metric} {found.before.score:.4g} before and "
        f"{found.best.outcome.score:.4g} after"
    )
    notes = f"{stored.card.notes}\n{text}".strip()
    card = stored.card.model_copy(update={"routine": found.routine, "notes": notes})
    # Learned step sizes, if there were any, belong to the routine that is replaced.
    files.save(folder / CHECKPOINT, stored.weights, card)
    write_atomically(folder / SEARCH_FILE, (found.model_dump_json(indent=1) + "\n").encode())
    return folder


def measure_again(
    setup: Setup, folder: Path, earlier: Mapping[str, Any], controls: Sequence[str] | None, note: Note
) -> Evidence:
    """Measure the version in a folder as the one before it was: on the same tasks, after the same steps."""
    spec = Spec.model_validate(earlier["domain"]) if earlier.get("domain") else without_places(setup.domain)
    evidence = measure(
        folder / CHECKPOINT,
        build_domain(setup.domain),
        earlier.get("steps") or STEPS,
        len(earlier.get("task_ids") or ()) or TASKS,
        controls=controls,
        seeds=earlier.get("seeds") or SEEDS,
        domain_spec=spec,
        progress=note,
    )
    evidence.to_json(folder / EVIDENCE_FILE)
    evidence.plot(folder / PICTURES / CURVES_PICTURE)
    return evidence


def measured_again(setup: Setup, evidence: Evidence, registry: Registry, note: Note) -> Remeasure:
    """Return how the gate measures a champion that was measured after other steps or on other tasks.

    The candidate has just been measured; the champion is so on the same tasks, after the same steps.
    """
    record = evidence.record

    def remeasure(version: Version, champion: Version) -> tuple[dict[str, Any], dict[str, Any]]:
        note(f"measuring {champion.reference} again")
        again = measure(
            cached(registry, champion),
            build_domain(setup.domain),
            record.steps,
            len(record.task_ids),
            controls=(),
            seeds=record.seeds,
            domain_spec=record.domain,
        )
        return record.model_dump(mode="json"), again.record.model_dump(mode="json")

    return remeasure


@contextmanager
def _opened(sink: Sink | None, name: str) -> Iterator[Sink]:
    if sink is not None:
        yield sink
        return
    with MlflowSink(f"{name}-search") as made:
        yield made


def _at_the_edge(value: float, span: tuple[float, float], name: str) -> bool:
    scale: Callable[[float], float] = (lambda v: v) if name == "augmentation" else math.log
    low, at, high = (scale(v) for v in (span[0], value, span[1]))
    part = (at - low) / (high - low)
    # Of a probability or a decay the lowest value means to do without, and cuts nothing off.
    return part > 0.95 or (part < 0.05 and name == "step_size")
