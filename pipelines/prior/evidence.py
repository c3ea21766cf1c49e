"""Evidence of a prior: its curve beside its controls, a champion's on the same tasks, and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from metainit.domains.base import TaskBatch
from metainit.domains.registry import without_places
from metainit.evidence.measuring import Evidence, held_out, measure
from pipelines.families import Note
from pipelines.prior.preparation import PreparedPrior

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
        task = typical_task(prepared, evidence)
        evidence.plot_reconstructions(folder / STRIP_PICTURE, prepared.domain, task)


def typical_task(prepared: PreparedPrior, evidence: Evidence) -> TaskBatch:
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
