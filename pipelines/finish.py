"""What follows training: evidence on held-out tasks, pictures, a version in the registry, and the gate."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metainit.evidence.measuring import Evidence
from metainit.initialization import EVIDENCE_FILE
from pipelines.families import Note, Prepared, family_of
from pipelines.folder import CHECKPOINT, RECIPE
from pipelines.gate import Decision, Remeasure, admit
from pipelines.registry import Registry, cached
from pipelines.version import Version

if TYPE_CHECKING:
    from pipelines.tracking import MlflowSink

ARTIFACTS = "artifacts"
PICTURES = "pictures"
CURVES_PICTURE = "evidence.png"


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
    evidence = family_of(prepared.recipe.family).measure(prepared, checkpoint, say, controls)
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

    The candidate has just been measured on them.
    """
    family = family_of(prepared.recipe.family)

    def remeasure(version: Version, champion: Version) -> tuple[dict[str, Any], dict[str, Any]]:
        note(f"measuring {champion.reference} again")
        again = family.measure_again(prepared, evidence, cached(registry, champion))
        return evidence.record.model_dump(mode="json"), again.record.model_dump(mode="json")

    return remeasure


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
    family_of(prepared.recipe.family).illustrate(prepared, checkpoint, evidence, pictures)
    return folder
