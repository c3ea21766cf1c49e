"""The trials of a search: what a worker needs to judge one, and what is kept of those that were judged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path

from pydantic import Field

from metainit import checkpoint as files
from metainit.card import Card, Record, Spec, canonical_json
from metainit.checkpoint import write_atomically
from metainit.domains.base import Domain
from metainit.domains.registry import DATA, PLACES, build_domain
from metainit.errors import DataError, SourceError
from metainit.evidence.curves import Start, bench, weights_of
from metainit.evidence.measuring import held_out
from metainit.initialization import Prior, from_file
from metainit.networks import build
from pipelines.search import Objective, Outcome, Point, SearchConfig


class Setup(Record):
    """What a worker needs to judge a setting: a checkpoint file, the domain with its data, and the search."""

    checkpoint: str
    digest: str
    domain: Spec
    search: SearchConfig
    working_folder: str = Field(default_factory=os.getcwd)

    @property
    def key(self) -> str:
        """What a trial's worth depends on: a finished trial of the same key is not judged again."""
        kept = {"digest", "domain", "search"}
        text = canonical_json(self.model_dump(mode="json", include=kept))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def setup_of(
    checkpoint: Path, search: SearchConfig, data: str | None = None, domain: Spec | None = None
) -> Setup:
    """Return the setup for a checkpoint: the card's domain, with its data where they lie here.

    Raises:
        SourceError: the card names no domain, no network or no routine.
        CheckpointError: the checkpoint is damaged.
    """
    card = files.load(checkpoint).card
    spec = domain or card.domain
    missing = [
        n for n, v in (("domain", spec), ("network", card.network), ("routine", card.routine)) if not v
    ]
    if spec is None or missing:
        raise SourceError(
            f"the card of {card.name!r} (kind {card.kind}) names no {', no '.join(missing)}, which a search "
            "needs: only priors have a routine to search; `metainit measure` and `metainit.probe` find step "
            "sizes for other starts"
        )
    if data is not None:
        kept = {k: v for k, v in spec.arguments.items() if k not in (*PLACES, "bundled")}
        spec = Spec(name=spec.name, arguments={**kept, DATA: data})
    return Setup(checkpoint=str(checkpoint), digest=card.digest, domain=spec, search=search)


@contextmanager
def objective_of(setup: Setup) -> Iterator[Objective]:
    """Yield the objective that judges settings for a setup; threads end with the block.

    Raises:
        DataError: the domain has no validation tasks, or other data than the start was learned on.
    """
    start = from_file(Path(setup.checkpoint))
    card = start.card
    domain = build_domain(setup.domain)
    _require_same_data(card, domain)
    assert card.network is not None
    network = start.init_(build(card.network))
    sizes = start.checkpoint.step_sizes if isinstance(start, Prior) else {}
    begin = Start(card.name, weights_of(network), card.routine, sizes)
    tasks = held_out(domain, "validation", setup.search.tasks)
    with bench(network, domain) as on:
        yield Objective(network, domain, begin, tasks, setup.search, on.pool)


def judged(objective: Callable[[Point], Outcome], point: Mapping[str, float], folder: Path) -> Outcome:
    """Judge a setting, or read what was found for it before."""
    name = hashlib.sha256(canonical_json(dict(point)).encode()).hexdigest()[:16]
    return remembered(folder / f"trial-{name}.json", lambda: objective(dict(point)))


def worker_objective(setup: str) -> Objective:
    """Return the objective of a worker process, which lives as long as the process does."""
    return _opened(setup)[1]


@cache
def _opened(setup: str) -> tuple[AbstractContextManager[Objective], Objective]:
    # The manager is kept as well: its threads end when it is collected.
    manager = objective_of(Setup.model_validate_json(setup))
    return manager, manager.__enter__()


def remembered(path: Path, judge: Callable[[], Outcome]) -> Outcome:
    """Return an outcome from its file, or judge it and write the file."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValueError):
        outcome = judge()
    write_atomically(path, outcome.model_dump_json().encode())
    return outcome


def _require_same_data(card: Card, domain: Domain) -> None:
    data = card.provenance.data
    if data.fingerprint not in ("", domain.fingerprint()):
        raise DataError(
            f"{card.name!r} was learned on other data ({data.description}) than its card can bring: say "
            "where they lie with --data"
        )
