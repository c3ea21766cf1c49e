"""Evidence of a hypernetwork: fine-tuning of held-out architectures, and the picture of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.space import build_architecture, distinct
from hypernets.architecture.trace import trace
from hypernets.ghn.evidence import ANALYTIC, measure_predictor
from hypernets.ghn.finetuning import FineTuning
from hypernets.ghn.initialization import hypernetwork_of
from hypernets.ghn.prediction import predict
from metainit import checkpoint as files
from metainit.card import Spec
from metainit.evidence.measuring import Evidence
from pipelines.families import Note
from pipelines.ghn.preparation import PreparedGhn
from pipelines.typical import typical_task

GRAPH_PICTURE = "architecture.png"
HELD_OUT_SEED = 0
"""The same architectures whatever the seed of training, so that versions can be compared on them."""


def measure_ghn(
    prepared: PreparedGhn, checkpoint: Path, note: Note, controls: Sequence[str] | None = None
) -> Evidence:
    """Measure a hypernetwork beside its controls, as the recipe's evidence section says."""
    settings = prepared.recipe.evidence
    analytic = ANALYTIC if controls is None else controls
    return _measured(
        prepared, checkpoint, settings.architectures, settings.steps, settings.seeds, analytic, note
    )


def measure_again(prepared: PreparedGhn, evidence: Evidence, champion: Path) -> Evidence:
    """Measure a champion on the held-out architectures and images of this run's evidence."""
    record = evidence.record
    return _measured(prepared, champion, len(record.task_ids), record.steps, record.seeds, (), None)


def illustrate(prepared: PreparedGhn, checkpoint: Path, evidence: Evidence, folder: Path) -> None:
    """Draw the graph of a typical one of the held-out architectures."""
    from hypernets.architecture.picture import draw

    if evidence.headline is not None:
        specs = held_out(prepared, len(evidence.record.task_ids))
        network = build_architecture(specs[typical_task(evidence.record)])
        draw(_graph(network, prepared), folder / GRAPH_PICTURE)


def held_out(prepared: PreparedGhn, count: int) -> list[Spec]:
    """Return the architectures that evidence is measured on."""
    return distinct(prepared.space, HELD_OUT_SEED, count, "test")


def _measured(
    prepared: PreparedGhn,
    checkpoint: Path,
    architectures: int,
    steps: Sequence[int],
    seeds: Sequence[int],
    analytic: Sequence[str],
    note: Note | None,
) -> Evidence:
    stored = files.load(checkpoint)
    hypernetwork = hypernetwork_of(stored)

    def predicted(network: nn.Module, seed: int) -> dict[str, Tensor]:
        return predict(hypernetwork, _graph(network, prepared), seed=seed)

    choosing = distinct(prepared.space, HELD_OUT_SEED, prepared.recipe.evidence.choosing, "validation")
    record = measure_predictor(
        predicted,
        held_out(prepared, architectures),
        choosing,
        prepared.images,
        FineTuning(steps=tuple(steps)),
        seeds=seeds,
        analytic_controls=analytic,
        domain=_domain(prepared),
        candidate_digest=stored.card.digest,
        progress=note,
    )
    return Evidence(record)


def _graph(network: nn.Module, prepared: PreparedGhn) -> ArchitectureGraph:
    return trace(network, torch.zeros(2, *prepared.images.shape))


def _domain(prepared: PreparedGhn) -> Spec:
    return Spec(name="labelled_images", arguments=prepared.recipe.recorded()["domain"])
