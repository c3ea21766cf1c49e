"""The JSON answers of the endpoint, as models that draw the OpenAPI page."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel, Field

from serving.cache import Entry
from serving.catalog import Facts, Init
from serving.generation import GenerationAnswer
from serving.prediction import Answer
from serving.selection import Family, domain_of, family_of, shown

LISTED = 20
"""Newest versions of a name that a list of names holds."""


class VersionLine(BaseModel):
    """One version in a list."""

    version: int
    aliases: list[str]
    sha256: str
    size: int
    kind: str
    method: str
    network: str | None
    headline: dict[str, Any] | None


class Picture(BaseModel):
    """A picture of the evidence."""

    id: str
    url: str


class InitLine(BaseModel):
    """One name in a list; `default` is the version that the bare name means.

    `family`, `domain` and `pictures` are those of that version, where its files are at hand.
    """

    name: str
    default: int
    family: Family
    domain: str | None
    pictures: list[Picture]
    aliases: dict[str, int]
    versions: list[VersionLine] = Field(description="the newest, and those that an alias means")
    count: int = Field(description="how many versions there are")
    versions_url: str = Field(description="where all of them are listed, a page at a time")
    url: str


class VersionPage(BaseModel):
    """A page of the versions of a name, newest first; `next` is the address of the following one."""

    items: list[VersionLine]
    next: str | None = None


class InitPage(BaseModel):
    """A page of names in alphabetical order; `next` is the address of the following one."""

    items: list[InitLine]
    next: str | None = None
    total: int = Field(description="of all pages")


class Pictures(BaseModel):
    """The pictures of a version."""

    items: list[Picture]


class InitDetail(VersionLine):
    """A version in full: card, evidence, pictures, and where its weights are."""

    name: str
    reference: str
    run_id: str | None
    tags: dict[str, str]
    card: dict[str, Any]
    evidence: dict[str, Any] | None
    recipe: str | None
    pictures: list[Picture]
    weights: str
    blob: str


class Prediction(BaseModel):
    """Weights that were predicted for a graph, and where they are."""

    reference: str = Field(description="the hypernetwork's version")
    graph: str = Field(description="SHA-256 of the graph")
    seed: int | None = Field(description="None where no residual was added")
    parameters: int = Field(description="how many were predicted")
    elements: int = Field(description="how many numbers that are")
    skipped: dict[str, str] = Field(description="parameters that were not predicted, and why")
    sha256: str
    size: int
    blob: str


class GeneratedNetwork(BaseModel):
    """The weights of one network that was generated."""

    seed: int
    sha256: str
    size: int
    blob: str


class Generation(BaseModel):
    """Weights that were generated, one network each, in the order of their seeds."""

    reference: str = Field(description="the generator's version")
    what: str = Field(description="what was drawn: sample, mean or one_step")
    items: list[GeneratedNetwork]


class Health(BaseModel):
    """Whether the process lives."""

    status: str = "ok"


class Readiness(BaseModel):
    """Whether it can answer, and what is wrong behind it; without a key, where keys are on, no details."""

    ready: bool
    stale: bool | None = Field(None, description="whether the registry is out of reach")
    stale_seconds: float | None = Field(None, description="for how long it has been")
    inits: int | None = None
    registry_error: str | None = Field(None, description="why the last look at the registry failed")
    quarantined: dict[str, str] | None = Field(None, description="versions that are damaged, and how")
    disk_full: bool | None = Field(None, description="whether further versions may find no room")
    disk_free_bytes: int | None = None


def base_of(request: Request) -> str:
    """Return the path that the app is mounted at, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def prediction(answer: Answer, reference: str, base: str) -> Prediction:
    """Describe a prediction."""
    graph, kept = answer.graph, answer.kept
    return Prediction(
        reference=reference,
        graph=answer.graph_hash,
        seed=answer.seed,
        parameters=len(graph.parameters),
        elements=graph.numel,
        skipped={name: str(reason) for name, reason in graph.skipped.items()},
        sha256=kept.sha256,
        size=kept.size,
        blob=f"{base}/v1/blobs/{kept.sha256}",
    )


def generation(answer: GenerationAnswer, reference: str, base: str) -> Generation:
    """Describe what was generated."""
    items = [
        GeneratedNetwork(
            seed=one.seed,
            sha256=one.made.kept.sha256,
            size=one.made.kept.size,
            blob=f"{base}/v1/blobs/{one.made.kept.sha256}",
        )
        for one in answer.drawn
    ]
    return Generation(reference=reference, what=answer.what, items=items)


def version_line(init: Init, facts: Facts) -> VersionLine:
    """Describe a version in a list."""
    return VersionLine(
        version=facts.version,
        aliases=init.aliases_of(facts.version),
        sha256=facts.sha256,
        size=facts.size,
        kind=facts.kind,
        method=facts.method,
        network=facts.network,
        headline=facts.headline,
    )


def init_line(init: Init, base: str, entry: Entry | None) -> InitLine:
    """Describe a name in a list; `base` is where the app is mounted, `entry` the default version."""
    card = entry.card if entry is not None else {}
    return InitLine(
        name=init.name,
        default=init.default,
        family=family_of(shown(init).kind, card),
        domain=domain_of(card),
        pictures=pictures(entry, base) if entry is not None else [],
        aliases=dict(init.aliases),
        versions=[version_line(init, facts) for facts in _listed(init)],
        count=len(init.versions),
        versions_url=f"{base}/v1/inits/{init.name}/versions",
        url=f"{base}/v1/inits/{init.name}",
    )


def _listed(init: Init) -> list[Facts]:
    """Return the newest versions and those that the bare name or an alias means, newest first."""
    older = sorted(init.wanted() - {facts.version for facts in init.versions[:LISTED]}, reverse=True)
    return [*init.versions[:LISTED], *(facts for n in older if (facts := init.find(n)) is not None)]


def pictures(entry: Entry, base: str) -> list[Picture]:
    """List the pictures of a version under its pinned address."""
    where = f"{base}/v1/inits/{entry.facts.name}/versions/{entry.facts.version}/pictures"
    return [Picture(id=name, url=f"{where}/{name}") for name in entry.pictures]


def init_detail(init: Init | None, entry: Entry, base: str) -> InitDetail:
    """Describe a version in full."""
    facts = entry.facts
    pinned = f"{base}/v1/inits/{facts.name}/versions/{facts.version}"
    return InitDetail(
        name=facts.name,
        reference=facts.reference,
        version=facts.version,
        aliases=init.aliases_of(facts.version) if init else [],
        sha256=facts.sha256,
        size=facts.size,
        kind=facts.kind,
        method=facts.method,
        network=facts.network,
        headline=facts.headline,
        run_id=facts.run_id,
        tags=dict(facts.tags),
        card=dict(entry.card),
        evidence=dict(entry.evidence) if entry.evidence is not None else None,
        recipe=entry.recipe,
        pictures=pictures(entry, base),
        weights=f"{pinned}/weights",
        blob=f"{base}/v1/blobs/{facts.sha256}",
    )
