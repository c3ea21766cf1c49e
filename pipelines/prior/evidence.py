"""Evidence of a prior: its curve beside its controls, a champion's on the same tasks, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metainit.domains.base import TaskBatch
from metainit.domains.registry import without_places
from metainit.evidence.measuring import Evidence, held_out, measure
from pipelines.families import Note
from pipelines.prior.preparation import PreparedPrior
from pipelines.typical import typical_task

STRIP_PICTURE = "reconstructions.png"


def measure_prior(
    prepared: PreparedPrior, checkpoint: Path, note: Note, controls: Sequence[str] | None = None
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


def measure_again(prepared: PreparedPrior, evidence: Evidence, champion: Path) -> Evidence:
    """Measure a champion on the held-out tasks of this run's evidence.

    It may have been trained on some of them, which can only make it harder to beat.
    """
    record = evidence.record
    return measure(
        champion,
        prepared.domain,
        record.steps,
        len(record.task_ids),
        controls=(),
        seeds=1,
        domain_spec=record.domain,
    )


def illustrate(prepared: PreparedPrior, checkpoint: Path, evidence: Evidence, folder: Path) -> None:
    """Draw what the prior and its best control make of a typical task, step by step."""
    if evidence.headline is not None:
        task = shown_task(prepared, evidence)
        evidence.plot_reconstructions(folder / STRIP_PICTURE, prepared.domain, task)


def shown_task(prepared: PreparedPrior, evidence: Evidence) -> TaskBatch:
    """Return the held-out task that the pictures show: a typical one."""
    tasks = held_out(prepared.domain, "test", prepared.recipe.evidence.tasks)
    number = typical_task(evidence.record)
    return tasks[number : number + 1]
