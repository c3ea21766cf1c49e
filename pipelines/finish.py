"""What follows training: evidence on held-out tasks, pictures, a version in the registry, and the gate."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metainit.domains.base import TaskBatch
from metainit.domains.registry import without_places
from metainit.evidence.measuring import Evidence, held_out, measure
from metainit.initialization import EVIDENCE_FILE
from pipelines.folder import CHECKPOINT, RECIPE
from pipelines.gate import Decision, Remeasure, admit
from pipelines.preparation import Prepared
from pipelines.registry import Registry, cached
from pipelines.version import Version

if TYPE_CHECKING:
    from pipelines.tracking import MlflowSink

ARTIFACTS = "artifacts"
PICTURES = "pictures"
CURVES_PICTURE = "evidence.png"
STRIP_PICTURE = "reconstructions.png"
Note = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A run's outcome: its evidence, its version in the registry, and what the gate made of it."""

    evidence: Evidence
    version: Version
    decision: Decision
    artifacts: Path


def after_training(
    prepared: Prepared,
    checkpoint: Path,
    sink: MlflowSink,
    *,
    note: Note | None = None,
    controls: Sequence[str] | None = None,
) -> Finished:
    """Measure a finished run, register it, and let the gate decide; the run's last act.

    Raises:
        DataError: the domain has no held-out tasks.
        RegistryError: the registry cannot be reached; checkpoint and evidence stay in the run's folder.
    """
    say = note or (lambda text: None)
    evidence = evidence_of(prepared, checkpoint, say, controls)
    artifacts = assemble(prepared, checkpoint, evidence)
    say("registering")
    headline = evidence.headline
    if headline is not None:
        values = {f"headline_{headline.metric}": headline.value, "headline_gain": headline.gain}
        sink.log_metrics(values, step=0)
    sink.flush()
    registry = Registry(sink.connection.uri)
    version = registry.register(artifacts, prepared.recipe.name, sink.run_id)
    decision = admit(registry, version, measured_again(prepared, evidence, registry, say))
    return Finished(evidence, registry.resolve(version.reference), decision, artifacts)


def measured_again(prepared: Prepared, evidence: Evidence, registry: Registry, note: Note) -> Remeasure:
    """Return how the gate measures a champion of other data or another network: on this run's held-out tasks.

    The candidate has just been measured on them. The champion may have been trained on some of them, which
    can only make it harder to beat.
    """

    def remeasure(version: Version, champion: Version) -> tuple[dict[str, Any], dict[str, Any]]:
        note(f"measuring {champion.reference} again")
        record = evidence.record
        again = measure(
            cached(registry, champion),
            prepared.domain,
            record.steps,
            len(record.task_ids),
            controls=(),
            seeds=1,
            domain_spec=record.domain,
        )
        return record.model_dump(mode="json"), again.record.model_dump(mode="json")

    return remeasure


def evidence_of(
    prepared: Prepared, checkpoint: Path, note: Note, controls: Sequence[str] | None = None
) -> Evidence:
    """Measure a checkpoint beside its controls, as the recipe's evidence section says."""
    settings = prepared.recipe.evidence
    return measure(
        checkpoint,
        prepared.domain,
        settings.steps,
        settings.tasks,
        controls=controls,
        seeds=settings.seeds,
        domain_spec=without_places(prepared.recipe.domain),
        progress=note,
    )


def assemble(prepared: Prepared, checkpoint: Path, evidence: Evidence) -> Path:
    """Put together the folder that is registered: checkpoint, recipe, evidence and pictures."""
    folder = checkpoint.parent / ARTIFACTS
    pictures = folder / PICTURES
    pictures.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(checkpoint, folder / CHECKPOINT)
    recipe = checkpoint.parent / RECIPE
    if recipe.is_file():
        shutil.copyfile(recipe, folder / RECIPE)
    evidence.to_json(folder / EVIDENCE_FILE)
    evidence.plot(pictures / CURVES_PICTURE)
    if evidence.headline is not None:
        task = typical_task(prepared, evidence)
        evidence.plot_reconstructions(pictures / STRIP_PICTURE, prepared.domain, task)
    return folder


def typical_task(prepared: Prepared, evidence: Evidence) -> TaskBatch:
    """Return the held-out task with the median gain over the best control: neither the best nor the worst."""
    record = evidence.record
    assert record.headline is not None
    at = record.steps.index(record.headline.steps)
    candidate = next(c for c in record.curves if c.role == "candidate")
    control = next(c for c in record.curves if c.source == record.headline.control)
    pairs = zip(candidate.values[0], control.values[0], strict=True)
    gains = [ours[at] - theirs[at] for ours, theirs in pairs]
    middle = sorted(range(len(gains)), key=lambda i: gains[i])[len(gains) // 2]
    tasks = held_out(prepared.domain, "test", prepared.recipe.evidence.tasks)
    return tasks[middle : middle + 1]
