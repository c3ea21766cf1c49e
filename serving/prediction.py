"""Predicting for whoever asks: which versions can, within which limits, and what names an answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import anyio
from pydantic import BaseModel, ConfigDict, Field

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.serialize import Limits as GraphLimits
from hypernets.architecture.serialize import from_json, to_json
from metainit.card import canonical_json
from metainit.errors import CheckpointError, EndpointError, MetainitError
from metainit.versions import code_version
from serving.cache import Entry
from serving.catalog import Facts
from serving.making import Making, Terms
from serving.predictions import Kept, Predictions
from serving.predictor import Order, Predictor
from serving.store import NotReady
from serving.work import Fault

PREDICTING = ("ghn",)
"""Kinds of checkpoints that predict."""
FROM_GRAPHS = ("ghn", "logah")
"""Methods that need no more of a network than its graph; others walk the network itself."""


class NoPredictor(EndpointError):
    """The initialization exists, but predicts nothing."""


class Unpredictable(EndpointError):
    """The hypernetwork has no usable weights for the graph."""


FAULTS: Mapping[Fault, type[MetainitError]] = MappingProxyType(
    {"question": Unpredictable, "source": CheckpointError, "worker": NotReady}
)
"""What a prediction failed by -> the error that says so."""


@dataclass(frozen=True)
class Limits:
    """What a prediction may cost: bytes of its request, elements of all parameters, seconds; how many run.

    `nodes` of a graph: attention between all pairs of them takes memory as their square.
    """

    body_bytes: int = 8 << 20
    nodes: int = 4_000
    elements: int = 100_000_000
    waiting: int = 32
    seconds: float = 120.0


class Question(BaseModel):
    """The body of a request for a prediction."""

    model_config = ConfigDict(extra="forbid")

    graph: dict[str, Any] = Field(description="an architecture graph, as metainit traces it")
    seed: int = Field(0, ge=0, lt=2**63, description="of the residual that keeps neurons from being alike")
    exact: bool = Field(False, description="leave the residual out")


@dataclass(frozen=True)
class Answer:
    """A prediction at hand, what it is for, and whether it had been made before."""

    kept: Kept
    graph: ArchitectureGraph
    graph_hash: str
    seed: int | None
    made_before: bool


class Predicting:
    """Answers questions with a predictor, from what is kept where it can."""

    def __init__(self, predictor: Predictor, kept: Predictions, limits: Limits | None = None) -> None:
        """Keep answers in `kept`."""
        self.limits = limits or Limits()
        terms = Terms(self.limits.waiting, self.limits.seconds, "prediction", FAULTS)
        self._kept = kept
        self._making = Making(predictor.predict, kept, terms)

    @property
    def under_way(self) -> int:
        """How many predictions are being computed or wait for it."""
        return self._making.under_way

    async def answer(self, entry: Entry, question: Question) -> Answer:
        """Predict with a version for the graph of a question.

        Raises:
            NoPredictor: the version is no hypernetwork, or one that does not predict from a graph alone.
            GraphError: the graph is not one, or above a limit.
            Busy: too many wait already.
            NotReady: the predictor cannot be reached, took too long, or the disk is full.
            Unpredictable: there are no usable weights for the graph.
            CheckpointError: the version does not hold a hypernetwork.
        """
        facts = entry.facts
        _require_predictor(facts)
        graph, text = await anyio.to_thread.run_sync(self._read, question.graph)
        seed = 0 if question.exact else question.seed
        folder = self._kept.inbox()
        order = Order(facts.reference, facts.sha256, str(entry.blob), text, seed, question.exact, folder)
        key = _key(order, await anyio.to_thread.run_sync(code_version))
        made = (await self._making.made({key: order}))[key]
        return Answer(made.kept, graph, _hash(text), None if question.exact else seed, made.before)

    def _read(self, value: dict[str, Any]) -> tuple[ArchitectureGraph, str]:
        graph = from_json(value, GraphLimits(nodes=self.limits.nodes, elements=self.limits.elements))
        return graph, canonical_json(to_json(graph))


def _require_predictor(facts: Facts) -> None:
    """Raise unless a version predicts from graphs, by what the registry says of it: nothing is opened.

    Raises:
        NoPredictor: it does not.
    """
    if facts.kind not in PREDICTING:
        raise NoPredictor(
            f"{facts.reference} is a {facts.kind}, which predicts nothing: fetch its weights, or name a "
            f"hypernetwork (kind {' or '.join(PREDICTING)})"
        )
    if facts.method not in FROM_GRAPHS:
        raise NoPredictor(
            f"{facts.reference} was made by {facts.method}, which predicts from the network itself, not from "
            f"its graph: fetch its weights (GET .../weights) and predict where the network is, with "
            f"metainit.load(file).init_(network, example_inputs=...); methods {' and '.join(FROM_GRAPHS)} "
            "predict here"
        )


def _key(order: Order, code: str) -> str:
    """Return what the bytes of a prediction follow from; `code` is its version."""
    value = [order.sha256, _hash(order.graph), order.seed, order.exact, code]
    return _hash(json.dumps(value))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
