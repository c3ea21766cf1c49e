"""The Initialization protocol, and `load`, which turns a source string into one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from metainit import checkpoint as files
from metainit.adaptation import Progress, Task, require_finite, trajectory
from metainit.bounded import read_object
from metainit.card import AdaptationRoutine, Card, Method
from metainit.checkpoint import Checkpoint
from metainit.errors import SourceError, suggestion
from metainit.fill import fill, fill_parameters, refuse_meta
from metainit.initializers import INITIALIZERS, Context
from metainit.meta.state import TaskLosses
from metainit.networks import function_of
from metainit.observed import observed

EVIDENCE_FILE = "evidence.json"
REMOTE_KINDS = "metainit.remotes"
"""Entry points of kinds that an endpoint uses for its clients: only what they make is fetched."""
EXTRAS = {"models": "ray", "ghn": "graph", "generator": "graph"}
"""Scheme or kind -> the extra that installs the room behind it."""


@runtime_checkable
class Initialization(Protocol):
    """Anything that fills a network."""

    @property
    def card(self) -> Card:
        """What it is and how to adapt it."""
        ...

    @property
    def evidence(self) -> dict[str, Any] | None:
        """The measured evidence that lies beside the checkpoint, if any."""
        ...

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
        condition: Any = None,
        observation: Any = None,
    ) -> nn.Module:
        """Fill the network in place and return it."""
        ...

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place, with the card's routine unless one is given."""
        ...


class Analytic:
    """A start from a rule in `metainit.initializers.INITIALIZERS`; it carries no weights of its own."""

    evidence: dict[str, Any] | None = None

    def __init__(self, name: str) -> None:
        self._rule, paper = INITIALIZERS[name]
        self.card = Card(kind="analytic", name=name, method=Method(name=name, paper=paper))

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
        condition: Any = None,
        observation: Any = None,
    ) -> nn.Module:
        """Fill the network in place; without a seed it is drawn from torch's global random state.

        Raises:
            MismatchError: the rule does not cover the network, or needs an argument, or the network has no
                storage; nothing is changed.
            SourceError: a condition is given, which no analytic rule takes.
            ConditionError: the observation is none of numbers.
        """
        _refuse_condition(condition, self.card.name)
        seen = observed(observation)
        refuse_meta(network.state_dict())
        drawn = int(torch.randint(2**62, ())) if seed is None else seed
        generator = torch.Generator().manual_seed(drawn)
        if all(value.device.type == "cpu" for value in network.state_dict().values()):
            self._rule(network, Context(generator, example_inputs, seen))
            return network
        # Drawn on the CPU whatever the device: a generator belongs to one device, and the same seed has to
        # give the same weights on every one.
        copied = copy.deepcopy(network).to("cpu")
        inputs, signals = (t if t is None else t.cpu() for t in (example_inputs, seen))
        self._rule(copied, Context(generator, inputs, signals))
        return fill(network, copied.state_dict(), f"start {self.card.name!r}")

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place; the routine must be given."""
        return run_given(self.card.name, network, task, routine, progress)


class Prior:
    """Stored weights as a start: a prior with the routine that it was learned for, or a fit without one."""

    def __init__(self, stored: Checkpoint, evidence: dict[str, Any] | None = None) -> None:
        self.checkpoint = stored
        self.card = stored.card
        self.evidence = evidence

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
        condition: Any = None,
        observation: Any = None,
    ) -> nn.Module:
        """Fill the network in place; the same weights whatever the seed.

        Weights that were predicted from a graph (`card.graph`) are those of its parameters: buffers, and what
        the card says was skipped, stay as they are.

        Raises:
            MismatchError: the network is another one than the prior's; nothing is changed.
            SourceError: a condition is given, which a prior does not take.
        """
        _refuse_condition(condition, self.card.name)
        if self.card.graph is not None:
            source = f"prediction of {self.card.name!r}"
            return fill_parameters(network, self.checkpoint.weights, self.card.skipped, source)
        return fill(network, self.checkpoint.weights, f"prior {self.card.name!r}")

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place, with the card's routine unless one is given.

        Raises:
            DivergenceError: the loss is not finite; the network keeps the weights it had.
            SourceError: neither the card nor the call has a routine.
        """
        return run_stored(self.checkpoint, network, task, routine, progress)


def run_routine(
    network: nn.Module,
    task: Task,
    routine: AdaptationRoutine,
    step_sizes: dict[str, Tensor],
    progress: Progress | None = None,
) -> nn.Module:
    """Run a routine on one task and write the adapted weights to the network.

    Raises:
        DivergenceError: the loss is not finite; the network keeps the weights it had.
        SourceError: the task holds more than one thing to fit.
    """
    if len(task.batch) != 1:
        raise SourceError(
            f"adapt fits one network to one task, got a batch of {len(task.batch)}; "
            "metainit.fitting.fit_all fits many"
        )
    parameters = dict(network.named_parameters())
    like = next(iter(parameters.values()))
    batch = task.batch.to(like.device, like.dtype)
    sizes = {k: v.to(like.device, like.dtype) for k, v in step_sizes.items()}
    losses = TaskLosses(task.domain, function_of(network), batch, batched=False)
    start = {k: v.detach().clone() for k, v in parameters.items()}
    *_, last = trajectory(losses, start, routine, sizes, routine.steps, progress)
    require_finite(last, routine, routine.steps)
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(last[name])
    return network


def run_stored(
    stored: Checkpoint,
    network: nn.Module,
    task: Task,
    routine: AdaptationRoutine | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Run the routine of a checkpoint's card, with its learned step sizes, unless another one is given.

    Raises:
        DivergenceError: the loss is not finite; the network keeps the weights it had.
        SourceError: neither the card nor the call has a routine, or the task holds more than one thing to
            fit.
    """
    chosen = routine or stored.card.routine
    if chosen is None:
        raise SourceError(f"the card of {stored.card.name!r} has no adaptation routine: pass routine=...")
    sizes = stored.step_sizes if chosen.per_parameter else {}
    return run_routine(network, task, chosen, sizes, progress)


def run_given(
    name: str,
    network: nn.Module,
    task: Task,
    routine: AdaptationRoutine | None,
    progress: Progress | None = None,
) -> nn.Module:
    """Run a routine that the caller has to give, since the start `name` has none of its own.

    Raises:
        DivergenceError: the loss is not finite; the network keeps the weights it had.
        SourceError: no routine is given, or the task holds more than one thing to fit.
    """
    if routine is None:
        raise SourceError(f"{name!r} has no adaptation routine: pass routine=AdaptationRoutine(...)")
    return run_routine(network, task, routine, {}, progress)


def load(source: str | Path) -> Initialization:
    """Turn a source into an initialization.

    Sources: the name of an analytic or data-driven rule (``'siren'``, ``'lsuv'``), a checkpoint file, a
    registry reference (``'models:/name@alias'``), or an endpoint's URL (``'https://host/v1/inits/name'``).
    What predicts stays on the endpoint: networks are traced here, and their weights come from there.

    Raises:
        SourceError: the source names nothing, or the package behind it is not installed.
        CheckpointError: the checkpoint is damaged.

    Example:
        >>> load('siren').card.method.paper
        'Sitzmann et al. 2020, arXiv:2006.09661'
        >>> load('sirn')
        Traceback (most recent call last):
        ...
        metainit.errors.SourceError: 'sirn' is no source: no file, URL or registry reference, and no \
initializer: did you mean 'siren'?
    """
    text = str(source)
    if text in INITIALIZERS:
        return Analytic(text)
    scheme = urlsplit(text).scheme
    if scheme in ("http", "https"):
        from metainit.client import resolve_url

        found = resolve_url(text, {point.name for point in entry_points(group=REMOTE_KINDS)})
        if found.path is None:
            remote = cast("Callable[[None, str], Initialization]", extension(REMOTE_KINDS, found.kind))
            return remote(None, text)
        return _made(files.load(found.path), found.evidence)
    path = Path(text)
    if path.suffix == files.SUFFIX or path.is_file():
        return from_file(path)
    if ":/" in text:
        resolve = cast("Callable[[str], Path]", extension("metainit.schemes", scheme))
        return from_file(resolve(text))
    raise SourceError(
        f"{text!r} is no source: no file, URL or registry reference, and no initializer: "
        f"{suggestion(text, INITIALIZERS)}"
    )


def from_file(path: Path) -> Initialization:
    """Load a checkpoint file through the room that knows its kind."""
    beside = path.with_name(EVIDENCE_FILE)
    return _made(files.load(path), read_object(beside) if beside.is_file() else None)


def _made(stored: Checkpoint, evidence: dict[str, Any] | None) -> Initialization:
    if evidence is not None and evidence.get("candidate_digest") not in (None, "", stored.card.digest):
        evidence = None  # it was measured on other weights, which lay here before or lie beside these
    make = cast(
        "Callable[[Checkpoint, dict[str, Any] | None], Initialization]",
        extension("metainit.kinds", stored.card.kind),
    )
    return make(stored, evidence)


def init_(network: nn.Module, source: str | Path, **arguments: Any) -> nn.Module:
    """Fill a network from a source, in place: ``load(source).init_(network, **arguments)``.

    Example:
        >>> from metainit.networks import Siren
        >>> network = init_(Siren(width=8, depth=3), 'siren', seed=0)
    """
    return load(source).init_(network, **arguments)


def extension(group: str, name: str) -> Any:
    """Return the object that an installed package offers under an entry point.

    Raises:
        SourceError: no installed package offers it, or its dependencies are missing; names the extra.
    """
    found = entry_points(group=group)
    names = sorted({point.name for point in found})
    if name not in names:
        extra = EXTRAS.get(name)
        remedy = f"install it: pip install 'metainit[{extra}]'" if extra else suggestion(name, names)
        raise SourceError(f"nothing installed offers {name!r} in {group}; {remedy}")
    try:
        return next(iter(found.select(name=name))).load()
    except ImportError as error:
        extra = EXTRAS.get(name, "all")
        raise SourceError(
            f"{name!r} needs a package that is not installed ({error.name}): pip install 'metainit[{extra}]'"
        ) from error


def _refuse_condition(condition: Any, name: str) -> None:
    if condition is not None:
        raise SourceError(f"{name!r} takes no condition; only generated starts do")
