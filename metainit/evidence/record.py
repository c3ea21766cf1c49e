"""What measuring evidence ends with: curves, comparisons and a headline, as one JSON value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from metainit.card import Record, Spec
from metainit.domains.base import Domain, TaskBatch
from metainit.evidence.statistics import Values, bootstrap, paired_bootstrap

Role = Literal["candidate", "source", "control"]


class Curve(Record):
    """A start's metric against the adaptation step.

    `role`: the candidate of the headline, another learned source beside it, or a control. `values`: seeds x
    tasks x steps, of the record's metric. `further`: the mean of each other metric. `routine`: the card's, or
    for each number of steps the best one found.
    """

    source: str
    role: Role
    routine: dict[str, Any]
    values: list[list[list[float]]]
    mean: list[float]
    low: list[float]
    high: list[float]
    further: dict[str, list[float]] = Field(default_factory=dict)


class Comparison(Record):
    """The candidate's gain over one control at one step, and when the control draws level with it."""

    control: str
    steps: int
    gain: float
    low: float
    high: float
    draws_level_at: int | None


class Headline(Record):
    """The candidate after its own number of steps, against the best control after as many."""

    metric: str
    steps: int
    value: float
    control: str
    control_value: float
    gain: float
    low: float
    high: float
    tasks: int
    seeds: int


class EvidenceRecord(Record):
    """What is written to evidence.json.

    `task_groups`: the photograph or patient, say, of each task; none where each task is its own. `left_out`:
    controls that could not be made for some seed, and why. `other_data`: learned sources whose cards name
    other data than the domain's, or other rules that make tasks of them, and what the cards say of the data:
    such a source may have been trained on some of the tasks. `candidate_digest`: of the first source's card,
    so that evidence that lies beside other weights is told apart.
    """

    schema_version: Literal[2] = 2
    domain: Spec | None
    data_fingerprint: str
    network: Spec | None
    metric: str
    higher_is_better: bool = True
    steps: list[int]
    task_ids: list[str]
    task_groups: list[str] = Field(default_factory=list)
    seeds: list[int]
    curves: list[Curve]
    comparisons: list[Comparison]
    headline: Headline | None
    left_out: dict[str, str] = Field(default_factory=dict)
    other_data: dict[str, str] = Field(default_factory=dict)
    candidate_digest: str = ""

    @property
    def groups(self) -> int:
        """The number of different groups that the tasks come from."""
        return len(set(self.task_groups or self.task_ids))

    @model_validator(mode="after")
    def _a_group_for_each_task(self) -> EvidenceRecord:
        if self.task_groups and len(self.task_groups) != len(self.task_ids):
            raise ValueError(f"{len(self.task_groups)} task_groups of {len(self.task_ids)} task_ids")
        return self

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, value: Any) -> Any:
        """Read version 1, which knew of one further metric only."""
        if not isinstance(value, Mapping) or value.get("schema_version") != 1:
            return value
        curves = [dict(curve) for curve in value.get("curves", [])]
        for curve in curves:
            similarity = curve.pop("ssim", [])
            curve["further"] = {"ssim": similarity} if similarity else {}
        return {"metric": "psnr", **value, "schema_version": 2, "curves": curves}


@dataclass(frozen=True)
class Series:
    """One start's values, seeds x tasks x steps, of each metric."""

    source: str
    role: Role
    routine: dict[str, Any]
    values: dict[str, Values]


@dataclass(frozen=True)
class Subject:
    """What was measured on: the metric, the data, the held-out tasks and the numbers of steps.

    `groups`: of each task; none where each is its own. `network`: None where each task has its own.
    """

    metric: str
    data_fingerprint: str
    task_ids: Sequence[str]
    steps: Sequence[int]
    seeds: Sequence[int]
    groups: Sequence[str] = ()
    domain: Spec | None = None
    network: Spec | None = None


def record_of(
    series: Sequence[Series],
    domain: Domain,
    network: Spec,
    domain_spec: Spec | None,
    steps: list[int],
    test: TaskBatch,
    seeds: list[int],
    left_out: dict[str, str],
    other_data: dict[str, str],
    candidate_digest: str,
) -> EvidenceRecord:
    """Return the record of starts for one network on a domain's tasks; see `assembled`."""
    subject = Subject(
        metric=domain.metric,
        data_fingerprint=domain.fingerprint(),
        task_ids=test.ids,
        steps=steps,
        seeds=seeds,
        groups=test.groups,
        domain=domain_spec,
        network=network,
    )
    return assembled(series, subject, left_out, other_data, candidate_digest)


def assembled(
    series: Sequence[Series],
    subject: Subject,
    left_out: Mapping[str, str] = MappingProxyType({}),
    other_data: Mapping[str, str] = MappingProxyType({}),
    candidate_digest: str = "",
) -> EvidenceRecord:
    """Return the record: the candidate compared with all others, its headline with the best control.

    The headline is at the ``steps`` of the candidate's routine, or else after the last number of steps.
    """
    comparisons: list[Comparison] = []
    headline: Headline | None = None
    metric, steps = subject.metric, list(subject.steps)
    groups = subject.groups or subject.task_ids
    candidate = next((s for s in series if s.role == "candidate"), None)
    others = [s for s in series if s is not candidate]
    ordinary = [s for s in others if s.role == "control"]
    if candidate is not None:
        comparisons = [
            _compare(metric, candidate, o, steps, k, groups) for o in others for k in range(len(steps))
        ]
    if candidate is not None and ordinary:
        own = int(candidate.routine.get("steps", steps[-1]))
        at = steps.index(own) if own in steps else len(steps) - 1
        best = max(ordinary, key=lambda o: o.values[metric][:, :, at].mean())
        gain = _compare(metric, candidate, best, steps, at, groups)
        headline = Headline(
            metric=metric,
            steps=steps[at],
            value=round(float(candidate.values[metric][:, :, at].mean()), 4),
            control=best.source,
            control_value=round(float(best.values[metric][:, :, at].mean()), 4),
            gain=gain.gain,
            low=gain.low,
            high=gain.high,
            tasks=len(subject.task_ids),
            seeds=len(candidate.values[metric]),
        )
    return EvidenceRecord(
        domain=subject.domain,
        data_fingerprint=subject.data_fingerprint,
        network=subject.network,
        metric=metric,
        steps=steps,
        task_ids=list(subject.task_ids),
        task_groups=[] if len(set(groups)) == len(groups) else list(groups),
        seeds=list(subject.seeds),
        curves=[_curve(metric, s, groups) for s in series],
        comparisons=comparisons,
        headline=headline,
        left_out=dict(left_out),
        other_data=dict(other_data),
        candidate_digest=candidate_digest,
    )


def _compare(
    metric: str, candidate: Series, other: Series, steps: Sequence[int], at: int, groups: Sequence[str]
) -> Comparison:
    mine, theirs = candidate.values[metric], other.values[metric]
    gain = paired_bootstrap(mine[:, :, at], theirs[:, :, at], groups=groups)
    reached = mine[:, :, at].mean()
    level = next((s for i, s in enumerate(steps) if theirs[:, :, i].mean() >= reached), None)
    return Comparison(
        control=other.source,
        steps=steps[at],
        gain=round(gain.mean, 4),
        low=round(gain.low, 4),
        high=round(gain.high, 4),
        draws_level_at=level,
    )


def _curve(metric: str, series: Series, groups: Sequence[str]) -> Curve:
    values = series.values[metric]
    intervals = [bootstrap(values[:, :, i], groups=groups) for i in range(values.shape[2])]
    others = {k: v for k, v in series.values.items() if k != metric}
    return Curve(
        source=series.source,
        role=series.role,
        routine=series.routine,
        values=np.round(values, 4).tolist(),
        mean=[round(i.mean, 4) for i in intervals],
        low=[round(i.low, 4) for i in intervals],
        high=[round(i.high, 4) for i in intervals],
        further={k: np.round(v.mean((0, 1)), 4).tolist() for k, v in others.items()},
    )
