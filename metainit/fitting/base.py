"""The request that every kind of fit gets, what it answers, and how the kind is chosen."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from metainit.card import AdaptationRoutine, Spec
from metainit.checkpoint import write_atomically
from metainit.domains.registry import DOMAINS
from metainit.errors import RecipeError, SourceError, suggestion
from metainit.initialization import Initialization, Prior
from metainit.networks import build, require_same

WEIGHTS_FILE = "weights.safetensors"
REPORT_FILE = "report.json"
WITHOUT_A_DOMAIN = "image"
"""The domain of a start that was made for none: files of signals are the common case."""
Progress = Callable[[int, str, Mapping[str, float]], None]
"""Called after each file with the number of files done, its name and its metrics (empty where unknown)."""


@dataclass(frozen=True)
class Request:
    """What is to be fitted, from where, and how.

    Args:
        path: the user's file or folder, which is only read.
        start: where the fits begin.
        out: the folder that results go to.
        steps: how many steps; the routine's unless given.
        routine: how to adapt; the card's unless given.
        network: which network, for a start that is made for none.
        seed: for starts that are drawn.
        progress: told about each file.
        device: where to compute.
        truth: a folder with the truth of what is fitted, to be judged by; not every kind of fit has one.
        native: images keep their pixels, also where they are larger than those of the start's domain; signals
            always do.
    """

    path: Path
    start: Initialization
    out: Path
    steps: int | None = None
    routine: AdaptationRoutine | None = None
    network: Spec | None = None
    seed: int = 0
    progress: Progress | None = None
    device: str | torch.device = "cpu"
    truth: Path | None = None
    native: bool = False

    def tell(self, number: int, name: str, metrics: Mapping[str, float]) -> None:
        """Pass on how far the fit is."""
        if self.progress is not None:
            self.progress(number, name, metrics)


class Fit(Protocol):
    """A kind of fit: does what is asked and returns the report, a JSON value.

    The report has at least ``fitted`` (a file's name -> its metrics), ``failed`` (a file's name -> why) and
    ``files`` (their number).
    """

    def __call__(self, request: Request) -> dict[str, Any]:
        """Fit, write the results below `request.out`, and return the report."""
        ...


@dataclass(frozen=True)
class Prepared:
    """A filled network and the routine to fit it with."""

    network: nn.Module
    spec: Spec
    start: Initialization
    routine: AdaptationRoutine
    steps: int
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """What a fit depends on, beside its file; a finished file with the same settings is kept."""
        routine = self.routine.model_dump(mode="json", exclude={"per_tensor"})
        names = {"start": self.start.card.name, "digest": self.start.card.digest}
        network = self.spec.model_dump(mode="json")
        return {**names, "network": network, "routine": routine, "steps": self.steps, "seed": self.seed}

    @property
    def step_sizes(self) -> dict[str, Tensor]:
        """The learned step sizes that the routine asks for, where the network is."""
        like = next(self.network.parameters())
        if isinstance(self.start, Prior) and self.routine.per_parameter:
            return {k: v.to(like) for k, v in self.start.checkpoint.step_sizes.items()}
        return {}


def prepare_start(
    start: Initialization,
    steps: int | None = None,
    routine: AdaptationRoutine | None = None,
    network: Spec | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Prepared:
    """Build and fill the network that a start was made for, or the one that is asked for.

    Raises:
        SourceError: no network or no routine is known.
        MismatchError: the start does not fit the network.
    """
    spec = network or start.card.network
    if spec is None:
        raise SourceError(
            f"{start.card.name!r} fits any network: say which one with --network, for example "
            "--network '{name: siren, arguments: {width: 128, out_features: 3}}'"
        )
    require_same(start.card.network, spec, f"start {start.card.name!r}")
    chosen = routine or start.card.routine
    if chosen is None:
        raise SourceError(f"{start.card.name!r} has no adaptation routine: say which with --step-size")
    module = start.init_(build(spec), seed=seed).to(device)
    return Prepared(module, spec, start, chosen, chosen.steps if steps is None else steps, seed)


def fit_all(
    path: Path,
    start: Initialization,
    out: Path,
    steps: int | None = None,
    routine: AdaptationRoutine | None = None,
    network: Spec | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    device: str | torch.device = "cpu",
    truth: Path | None = None,
    domain: str | None = None,
    native: bool = False,
) -> dict[str, Any]:
    """Fit a user's files and write the results and a report; what was finished before is skipped.

    What is done with the files is what the start's domain says (`metainit.domains.registry.DOMAINS`): one fit
    for each signal, or one for all images of a folder with some labelled ones.

    Args:
        path: a file or a folder; it is only read.
        start: see `Request`, as for the arguments that follow.
        out: see `Request`.
        steps: see `Request`.
        routine: see `Request`.
        network: see `Request`.
        seed: see `Request`.
        progress: see `Request`.
        device: see `Request`.
        truth: see `Request`.
        domain: the domain's name; the card's unless given.
        native: see `Request`.

    Raises:
        DataError: there is nothing to fit, or it cannot be used.
        RecipeError: the domain is unknown, or has nothing to do with files.
        SourceError: the start has no routine and none is given, or names no network.
    """
    carried = start.card.domain.name if start.card.domain is not None else WITHOUT_A_DOMAIN
    name = domain or carried
    if name not in DOMAINS:
        raise RecipeError(f"no domain is called {name!r}; {suggestion(name, DOMAINS)}")
    make = DOMAINS[name].fit
    if make is None:
        fitting = ", ".join(known for known, entry in DOMAINS.items() if entry.fit is not None)
        raise RecipeError(
            f"files cannot be fitted in the domain {name!r}, only in {fitting}: adapt the start to a task in "
            "Python, with its method `adapt`"
        )
    fit = make()
    return fit(Request(path, start, out, steps, routine, network, seed, progress, device, truth, native))


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON, whole or not at all."""
    write_atomically(path, (json.dumps(report, indent=1, sort_keys=True) + "\n").encode())
