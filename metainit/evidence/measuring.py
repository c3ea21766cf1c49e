"""`measure`: curves of starts and controls on held-out tasks, with intervals."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Card, Spec, canonical_json
from metainit.checkpoint import SUFFIX, write_atomically
from metainit.domains.base import Domain, TaskBatch
from metainit.errors import DataError, SourceError
from metainit.evidence.controls.base import BUDGET, Setting
from metainit.evidence.controls.registry import check_names, make_controls
from metainit.evidence.curves import Start, bench, best_routines, curve_of, sparingly, weights_of
from metainit.evidence.record import EvidenceRecord, Headline, Role, Series, record_of
from metainit.evidence.scales import scale_of
from metainit.evidence.statistics import Values
from metainit.initialization import Analytic, Initialization, Prior, load
from metainit.meta.state import TaskLosses
from metainit.networks import build, fitted_spec, function_of, require_same

Source = str | Path | Sequence[str | Path]
"""One source, or one for each training seed of the same method."""
OBSERVED = 10
"""Training signals for sources that learn from a few."""


@runtime_checkable
class HasObservation(Protocol):
    """A domain of signals, some of which a data-light start may see."""

    def observation(self, count: int) -> Tensor:
        """Return training signals at the domain's `example_inputs`, ``(count, points, channels)``."""
        ...


@dataclass(frozen=True)
class Measured:
    """A start of the first seed, and the routines that it was measured with: its own, or one a horizon."""

    start: Start
    routines: Mapping[int, AdaptationRoutine]

    def renderings(
        self, network: nn.Module, domain: Domain, task: TaskBatch, steps: Sequence[int]
    ) -> tuple[list[Tensor], list[str]]:
        """Return a picture and the headline metric after each number of steps."""
        function = function_of(network)
        losses = TaskLosses(domain, function, task, batched=False)
        query = {k: v[0] for k, v in task.query.items()}
        images, texts = [], []
        for step in steps:
            routine = self.start.routine or self.routines.get(step) or AdaptationRoutine(steps=0, step_size=0)
            *_, weights = trajectory(
                losses, self.start.weights_for(task), routine, self.start.step_sizes, step
            )
            with torch.no_grad():
                rendered = domain.render(function(weights), query, task.shared)
            images.append(domain.picture(rendered, query))
            value = domain.metrics(rendered, query, [domain.metric])[domain.metric]
            texts.append(scale_of(domain.metric).caption(domain.metric, value))
        return images, texts


@dataclass(frozen=True)
class Evidence:
    """Measured curves, with a table, a picture and a JSON form."""

    record: EvidenceRecord
    starts: Mapping[str, Measured] = field(default_factory=dict)

    @property
    def headline(self) -> Headline | None:
        """The candidate against its best control; None where there is no candidate or no control."""
        return self.record.headline

    def table(self) -> str:
        """Return a plain-text table: one line a start, one column a number of steps."""
        from metainit.evidence.report import text_table

        return text_table(self.record)

    def plot(self, path: str | Path) -> None:
        """Write a picture of the curves with their intervals (the suffix chooses the format)."""
        from metainit.evidence.report import plot_curves

        plot_curves(self.record, Path(path))

    def plot_reconstructions(self, path: str | Path, domain: Domain, task: TaskBatch) -> None:
        """Write a picture of one task after each number of steps: from the candidate and its best control.

        Raises:
            SourceError: the evidence was read from a file, which holds no weights, or has no candidate.
        """
        from metainit.evidence.report import plot_reconstructions

        candidate = next((c.source for c in self.record.curves if c.role == "candidate"), None)
        if (
            candidate is None
            or candidate not in self.starts
            or self.headline is None
            or self.record.network is None
        ):
            raise SourceError("reconstructions need the starts themselves: call measure() in this process")
        shown = {"prior": self.starts[candidate], self.headline.control: self.starts[self.headline.control]}
        network = build(self.record.network)
        rows, captions = {}, {}
        for name, measured in shown.items():
            rows[name], captions[name] = measured.renderings(network, domain, task, self.record.steps)
        truth = domain.target({k: v[0] for k, v in task.query.items()})
        plot_reconstructions(rows, captions, truth, self.record.steps, Path(path))

    def to_json(self, path: str | Path) -> None:
        """Write the evidence as canonical JSON."""
        text = canonical_json(self.record.model_dump(mode="json")) + "\n"
        write_atomically(Path(path), text.encode())

    @classmethod
    def from_json(cls, path: str | Path) -> Evidence:
        """Read what `to_json` wrote."""
        return cls(EvidenceRecord.model_validate(json.loads(Path(path).read_text())))


def measure(
    sources: Source | Sequence[Source],
    domain: Domain,
    steps: Sequence[int] = (0, 1, 2, 5, 10),
    tasks: int = 64,
    *,
    network: Spec | None = None,
    controls: Sequence[str] | None = None,
    seeds: int | Sequence[int] = 3,
    tuning_tasks: int = 8,
    budget: int | None = None,
    domain_spec: Spec | None = None,
    progress: Callable[[str], None] | None = None,
) -> Evidence:
    """Measure starts beside their controls on held-out tasks.

    A learned start runs its card's routine. Analytic starts and controls get, for each number of steps, the
    optimizer and step size that do best on validation tasks, over all their draws. The table names the
    sources that were learned on other data than the domain's, and may have been trained on some of the tasks.

    Args:
        sources: what `metainit.load` takes; the first learned one is the candidate of the headline. A source
            may be a sequence of checkpoints, one a training seed.
        domain: its test split is reported, its validation split tunes the controls.
        steps: adaptation steps to report; each start's own number of steps is reported too.
        tasks: how many test tasks (all of them where the data have fewer).
        network: needed where no source has a card that names one; numbers of inputs and outputs that it
            leaves out are the domain's.
        controls: names of the controls to measure beside the sources; the domain's unless given.
        seeds: of the random draws of each control: how many, or which.
        tuning_tasks: how many validation tasks tune the controls.
        budget: how many gradient evaluations a trained control may cost; as many as the candidate's card says
            that it cost itself, unless given.
        domain_spec: recorded in the evidence.
        progress: told what is being measured.

    Raises:
        SourceError: a source cannot be loaded, a group mixes kinds, or no network is known.
        DataError: the domain has no test or validation tasks, or the steps are none.
        RecipeError: the network has other numbers of inputs or outputs than the domain, or no control has a
            name that is given.
        MismatchError: a source was made for another network.
    """
    steps = sorted(set(steps))
    if not steps or steps[0] < 0:
        raise DataError(f"steps: expected numbers from 0 on, got {steps}")
    wanted = check_names(domain.controls if controls is None else controls)
    groups = _groups(sources)
    loaded = [[load(s) for s in group] for group in groups]
    spec = network or next((i.card.network for g in loaded for i in g if i.card.network), None)
    if spec is None:
        raise SourceError(
            "no source has a card that names a network: pass network=Spec(name=..., arguments=...) "
            "(--network on the command line)"
        )
    spec = fitted_spec(spec, domain)
    for group, initializations in zip(groups, loaded, strict=True):
        for source, initialization in zip(group, initializations, strict=True):
            require_same(initialization.card.network, spec, f"source {str(source)!r}")
    routines = [i.card.routine for g in loaded for i in g if i.card.routine is not None]
    steps = sorted({*steps, *(routine.steps for routine in routines)})
    drawn = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    target = build(spec)
    test = held_out(domain, "test", tasks)
    tuning = held_out(domain, "validation", tuning_tasks)
    note = progress or (lambda text: None)
    tell = sparingly(note)
    most = len(groups) + len(wanted)
    series: list[Series] = []
    kept: dict[str, Measured] = {}
    with bench(target, domain) as on:

        def curves_of(starts: Sequence[Start], role: Role) -> Series:
            first = starts[0]
            note(f"measuring {first.name} ({len(series) + 1} of at most {most})")
            tuned = {} if first.routine else best_routines(on, starts, tuning, steps, progress=tell)
            kept[first.name] = Measured(first, tuned)
            routine = (
                first.routine.model_dump(mode="json", exclude={"per_tensor"})
                if first.routine
                else {str(k): v.model_dump(mode="json") for k, v in sorted(tuned.items())}
            )
            found: list[dict[str, Values]] = []
            for number, start in enumerate(starts, 1):
                note(f"measuring {first.name}, {number} of {len(starts)}")
                found.append(curve_of(on, start, tuned, test, steps))
            stacked = {k: np.stack([f[k] for f in found]) for k in found[0]}
            return Series(first.name, role, routine, stacked)

        prior: Start | None = None
        other_data: dict[str, str] = {}
        cost = 0
        digest = loaded[0][0].card.digest
        for group, initializations in zip(groups, loaded, strict=True):
            starts = _starts(initializations, group, target, domain, drawn)
            taken = [s.source for s in series]
            starts = [replace(s, name=_unique(s.name, taken)) for s in starts]
            if unlike := _other_data([i.card for i in initializations], domain):
                other_data[starts[0].name] = unlike
            learned = starts[0].routine is not None
            role: Role = "control"
            if learned:
                role = "source" if prior else "candidate"
            if role == "candidate":
                prior, card = starts[0], initializations[0].card
                digest, cost = card.digest, card.provenance.gradient_evaluations
            series.append(curves_of(starts, role))
        asked = {i.card.name for g in loaded for i in g if isinstance(i, Analytic)}
        names = [name for name in wanted if name not in asked]
        failed: dict[str, str] = {}
        draws = [
            start
            for seed in drawn
            for start in make_controls(
                Setting(target, domain, prior, seed, budget or cost or BUDGET, note), names, failed
            )
        ]
        made = {name: [s for s in draws if s.name == name] for name in names}
        for starts in made.values():
            if starts:
                label = _unique(starts[0].name, [s.source for s in series])
                series.append(curves_of([replace(s, name=label) for s in starts], "control"))
    record = record_of(series, domain, spec, domain_spec, steps, test, drawn, failed, other_data, digest)
    return Evidence(record, kept)


def held_out(domain: Domain, split: Literal["validation", "test"], count: int) -> TaskBatch:
    """Return the first `count` tasks of a split, or all of them where there are fewer.

    Raises:
        DataError: the split is empty.
    """
    size = domain.size(split)
    number = count if size is None else min(count, size)
    if number < 1:
        raise DataError(f"the domain has no {split} tasks: give more data")
    return domain.tasks(0, 0, number, split)


def _groups(sources: Source | Sequence[Source]) -> list[list[str | Path]]:
    if isinstance(sources, str | Path):
        return [[sources]]
    return [[s] if isinstance(s, str | Path) else list(s) for s in sources]


def _starts(
    initializations: Sequence[Initialization],
    sources: Sequence[str | Path],
    network: nn.Module,
    domain: Domain,
    seeds: Sequence[int],
) -> list[Start]:
    first = initializations[0]
    learned = [i for i in initializations if isinstance(i, Prior)]
    if len(initializations) > 1 and len(learned) < len(initializations):
        raise SourceError(
            "a group holds checkpoints of one method, one a training seed, got "
            + ", ".join(map(str, sources))
        )
    if learned:
        label = _label(sources[0], first)
        return [
            Start(
                label,
                weights_of(prior.init_(copy.deepcopy(network))),
                prior.card.routine,
                prior.checkpoint.step_sizes,
            )
            for prior in learned
        ]
    inputs = domain.example_inputs()
    observation = domain.observation(OBSERVED) if isinstance(domain, HasObservation) else None
    starts = []
    for seed in seeds:
        filled = first.init_(
            copy.deepcopy(network), seed=seed, example_inputs=inputs, observation=observation
        )
        starts.append(Start(first.card.name, weights_of(filled)))
    return starts


def _other_data(cards: Sequence[Card], domain: Domain) -> str:
    """Return what the cards say of their data where these are not the domain's, or an empty string."""
    here = domain.fingerprint()
    unlike = [c.provenance.data for c in cards if c.provenance.data.fingerprint not in ("", here)]
    return ", ".join(dict.fromkeys(data.description or data.fingerprint[:12] for data in unlike))


def _unique(name: str, taken: Sequence[str]) -> str:
    """Return the name, numbered where another start has it already."""
    number = 2
    label = name
    while label in taken:
        label = f"{name} ({number})"
        number += 1
    return label


def _label(source: str | Path, start: Initialization) -> str:
    """Return the source as the user wrote it, or the card's name where it is only a file."""
    return start.card.name if Path(str(source)).suffix == SUFFIX else str(source)
