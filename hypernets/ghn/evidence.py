"""Evidence for a predictor: accuracy against the fine-tuning step on architectures that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hypernets.architecture.space import build_architecture, identity
from hypernets.ghn.finetuning import Build, Choice, FineTuning, Progress, choose_step_sizes, tuned_curves
from hypernets.ghn.starts import Predict, Start, analytic, predicted, scale_only
from metainit.card import Spec
from metainit.domains.labelled_images import LabelledImages
from metainit.errors import RecipeError
from metainit.evidence.record import EvidenceRecord, Role, Series, Subject, assembled

METRIC = "accuracy"
HEADLINE = 10
"""Steps of the headline."""
ANALYTIC = ("default", "kaiming", "orthogonal")


def measure_predictor(
    predict: Predict,
    architectures: Sequence[Spec],
    choosing: Sequence[Spec],
    data: LabelledImages,
    how: FineTuning | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    analytic_controls: Sequence[str] = ANALYTIC,
    build: Build = build_architecture,
    domain: Spec | None = None,
    candidate_digest: str = "",
    progress: Progress | None = None,
) -> EvidenceRecord:
    """Measure predicted weights beside their controls: analytic rules, and the predicted scale alone.

    Each start has its own step size for each number of steps, chosen by validation images on the
    architectures `choosing`; accuracies are on test images. The held-out tasks are the `architectures`. The
    headline is after `HEADLINE` steps, or after the last number of steps where that is not among them.

    Args:
        predict: ``(network, seed)`` -> a value for each parameter.
        architectures: what is reported: specs that `build` knows and that the predictor has not seen.
        choosing: other architectures that the predictor has not seen.
        data: images to fine-tune on.
        how: the fine-tuning protocol.
        seeds: draws of each start, and of the batches.
        analytic_controls: sources of `metainit.load`.
        build: makes a network of a spec.
        domain: what the data are, for the record.
        candidate_digest: of the predictor's card.
        progress: told what goes on.

    Raises:
        RecipeError: the two sets of architectures share one, or one of them is empty.
        MismatchError: the prediction does not cover a network.
    """
    how = how or FineTuning()
    ids, other = [identity(s) for s in architectures], {identity(s) for s in choosing}
    if not ids or not other:
        raise RecipeError("expected architectures to report on and others to choose step sizes on, got none")
    if shared := other & set(ids):
        raise RecipeError(
            f"{len(shared)} architectures are both reported and chosen on ({min(shared)}): draw others"
        )
    starts: list[tuple[Start, Role]] = [(predicted(predict), "candidate"), (scale_only(predict), "control")]
    starts += [(analytic(source), "control") for source in analytic_controls]
    series = []
    for start, role in starts:
        choice = choose_step_sizes(start, choosing, data, how, build, seeds[0], progress)
        values = [
            tuned_curves(start, choice, architectures, data, how, build, seed, progress) for seed in seeds
        ]
        series.append(Series(start.name, role, routine_of(choice, how), {METRIC: np.stack(values)}))
    subject = Subject(METRIC, data.fingerprint(), ids, how.steps, seeds, domain=domain)
    return assembled(series, subject, candidate_digest=candidate_digest)


def routine_of(choice: Choice, how: FineTuning) -> dict[str, Any]:
    """Return what a curve says of its optimizer: with `steps`, those of the headline.

    Example:
        >>> routine_of(Choice({10: 0.1}, {}), FineTuning(steps=(0, 10)))['step_size']
        {'10': 0.1}
    """
    return {
        "optimizer": "sgd",
        "momentum": how.momentum,
        "minibatch": how.batch,
        "steps": HEADLINE if HEADLINE in how.steps else how.steps[-1],
        "step_size": {str(steps): rate for steps, rate in choice.step_sizes.items()},
        "tried": _tried(choice.tried),
    }


def _tried(tried: Mapping[float, Mapping[int, float]]) -> dict[str, list[float]]:
    return {f"{rate:g}": [round(v, 4) for v in tried[rate].values()] for rate in sorted(tried)}
