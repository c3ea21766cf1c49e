"""A live fit: one image, fitted from a prior and from the ordinary start side by side, step by step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine, Card, Continuation, Method, Provenance, Spec
from metainit.checkpoint import to_bytes
from metainit.domains.base import TaskBatch
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.domains.images import Array
from metainit.errors import DivergenceError
from metainit.evidence.record import EvidenceRecord
from metainit.fitting.base import Prepared, prepare_start
from metainit.initialization import Prior, load
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import function_of
from serving.image_files import data_url
from serving.tries import Stopped, TryLimits, Untriable

Side = Literal["prior", "ordinary"]
SIDES: tuple[Side, Side] = ("prior", "ordinary")
SIZES = ("height", "width", "channels")
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
DEFAULT_STEP_SIZE = 1e-3
"""Of Adam from the ordinary start, where no evidence says what is best for it."""
SHOWN = (0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100, 128, 160, 200)
"""Steps after which a picture is sent."""


@dataclass(frozen=True)
class Frame:
    """What one start has made of the image after some steps; `picture` is a PNG."""

    side: Side
    step: int
    psnr: float
    picture: str


@dataclass(frozen=True)
class Begun:
    """What is being fitted, and how: the image as the network is to see it, and both routines in words."""

    size: tuple[int, int]
    target: str
    starts: Mapping[Side, str]
    routines: Mapping[Side, str]
    own_steps: int
    steps: int


@dataclass(frozen=True)
class Ended:
    """The fitted weights as checkpoint files, and how the two starts compare.

    `level_at`: the first shown step at which the ordinary start is as good as the prior after its own steps.
    """

    weights: Mapping[Side, bytes]
    psnr: Mapping[Side, float]
    steps: int
    own_psnr: float
    level_at: int | None
    said: str = ""


Event = Begun | Frame | Ended


@dataclass(frozen=True)
class Trial:
    """A prior and an image ``(height, width, channels)``; `seed` is the ordinary start's."""

    checkpoint: Path
    evidence: Mapping[str, Any] | None
    pixels: Array
    steps: int = 100
    seed: int = 0


@dataclass
class _Run:
    """One side of a fit on its way; `said` is why it goes no further."""

    side: Side
    prepared: Prepared
    ways: Iterator[Parameters]
    weights: Parameters = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class _Plan:
    """A fit that is set up: the prior's card, the image as a task, and both sides."""

    card: Card
    domain: ImageDomain
    batch: TaskBatch
    begun: Begun
    runs: tuple[_Run, ...]


def frame_of(kind: str, card: Mapping[str, Any], reference: str, limits: TryLimits) -> ImageConfig:
    """Return the size of images that a card's prior is for, by the card alone: nothing is opened.

    Raises:
        Untriable: images cannot be fitted from it, or not here.
    """
    domain, network = card.get("domain"), card.get("network")
    name = domain["name"] if isinstance(domain, Mapping) else None
    if kind != "prior" or name != "image" or domain is None or network is None:
        what = f"a {kind}" + (f" of the domain {name!r}" if name else "")
        raise Untriable(
            f"{reference} is {what}: live fits start from priors of the domain 'image'; for others there is "
            "`metainit fit`"
        )
    config = _sizes(domain["arguments"])
    if max(config.height, config.width) > limits.side:
        raise Untriable(
            f"{reference} is for images of {config.height}x{config.width} pixels, live fits are of at most "
            f"{limits.side} a side: use `metainit fit`"
        )
    if config.channels not in (1, 3):
        raise Untriable(f"{reference} is for images of {config.channels} channels, live fits are of 1 or 3")
    return config


def _sizes(arguments: Mapping[str, Any]) -> ImageConfig:
    """Return the sizes of a domain, and nothing of where its images came from."""
    return ImageConfig.model_validate({k: arguments[k] for k in SIZES if k in arguments})


def fit_live(trial: Trial, limits: TryLimits, wanted: Callable[[], bool]) -> Iterator[Event]:
    """Fit an image from a prior and from the ordinary start, and yield what there is to see.

    The prior takes its card's routine, and Adam after that; the ordinary start takes Adam, with the step size
    that evidence found best for it where there is evidence. Ends early, with what it has, after
    `limits.seconds`.

    Args:
        trial: what to fit.
        limits: what it may cost.
        wanted: asked before each step.

    Raises:
        Untriable: the prior cannot be used for images.
        DataError: the image is not of the prior's size.
        Stopped: `wanted` said no.
    """
    began = time.monotonic()
    plan = _planned(trial, limits)
    yield plan.begun
    own = plan.begun.own_steps
    seen: dict[Side, dict[int, float]] = {side: {} for side in SIDES}
    step, late = -1, False
    while step < trial.steps and not late:
        step += 1
        late = time.monotonic() - began > limits.seconds
        shown = late or step in SHOWN or step in (own, trial.steps)
        for run in plan.runs:
            if not wanted():
                raise Stopped("the fit was stopped, since nobody watches it any more")
            _advance(run)
            if shown and not run.said:
                frame = _frame(run, step, plan)
                seen[run.side][step] = frame.psnr
                yield frame
    reached = seen["prior"][max(s for s in seen["prior"] if s <= own)]
    said = [run.said for run in plan.runs if run.said]
    if late and step < trial.steps:
        said.append(f"Stopped after {limits.seconds:g} s, at step {step}.")
    yield Ended(
        weights={run.side: _checkpoint(run, plan.card, trial, step) for run in plan.runs},
        psnr={side: values[max(values)] for side, values in seen.items()},
        steps=step,
        own_psnr=reached,
        level_at=next((s for s, v in seen["ordinary"].items() if v >= reached), None),
        said=" ".join(said),
    )


def _planned(trial: Trial, limits: TryLimits) -> _Plan:
    """Load the prior, fill both networks, and set both ways out, without a step on them."""
    prior = load(trial.checkpoint)
    card = prior.card
    if not isinstance(prior, Prior) or card.network is None or card.domain is None or card.routine is None:
        raise Untriable(f"{card.name!r} is no prior with a network, a domain and an adaptation routine")
    config = _sizes(card.domain.arguments)
    domain = ImageDomain(config, [])
    batch = domain.measured(torch.from_numpy(trial.pixels)[None])
    step_size, tuned = ordinary_step_size(card.network, trial.evidence)
    then = card.routine.continuation or Continuation(step_size=step_size)
    # All pixels are the support, whatever share of them the prior was taught with.
    routine = card.routine.model_copy(update={"continuation": then, "minibatch": None})
    adam = AdaptationRoutine(optimizer="adam", steps=trial.steps, step_size=step_size)
    ordinary = ordinary_start(card.network)
    made: dict[Side, Prepared] = {
        "prior": prepare_start(prior, trial.steps, routine),
        "ordinary": prepare_start(load(ordinary), trial.steps, adam, card.network, trial.seed),
    }
    parameters = sum(p.numel() for p in made["prior"].network.parameters())
    if parameters > limits.parameters:
        raise Untriable(
            f"{card.name!r} has {parameters} parameters, live fits are of at most {limits.parameters}: use "
            "`metainit fit`"
        )
    begun = Begun(
        size=(config.height, config.width),
        target=data_url(domain.target({k: v[0] for k, v in batch.query.items()})),
        starts={"prior": card.name, "ordinary": ordinary},
        routines={
            "prior": f"{_said(card.routine)}, then {_constant(then)}",
            "ordinary": f"Adam {step_size:.2g}, {'tuned on held-out tasks' if tuned else 'not tuned'}",
        },
        own_steps=card.routine.steps,
        steps=trial.steps,
    )
    runs = tuple(_run(side, made[side], domain, batch, trial.steps) for side in SIDES)
    return _Plan(card, domain, batch, begun, runs)


def _run(side: Side, prepared: Prepared, domain: ImageDomain, batch: TaskBatch, steps: int) -> _Run:
    losses = TaskLosses(domain, function_of(prepared.network), batch, batched=False)
    start = {k: v.detach().clone() for k, v in prepared.network.named_parameters()}
    ways = trajectory(losses, start, prepared.routine, prepared.step_sizes, steps)
    return _Run(side, prepared, ways)


def ordinary_start(network: Spec) -> str:
    """Return the name of the analytic start that a network is usually given."""
    return "siren" if network.name == "siren" else "default"


def ordinary_step_size(network: Spec, evidence: Mapping[str, Any] | None) -> tuple[float, bool]:
    """Return Adam's step size for the ordinary start, and whether evidence says so.

    Evidence holds the best routine of each control for each number of steps: that of the most steps counts.
    """
    try:
        curves = EvidenceRecord.model_validate(evidence).curves
    except ValidationError:
        curves = []  # there is none, or of another kind
    for curve in curves:
        if curve.source == ordinary_start(network) and curve.role == "control":
            found = {
                int(steps): routine["step_size"]
                for steps, routine in curve.routine.items()
                if isinstance(routine, Mapping) and routine.get("optimizer") == "adam"
            }
            if found:
                return float(found[max(found)]), True
    return DEFAULT_STEP_SIZE, False


def _advance(run: _Run) -> None:
    """Take a step; one that diverges leaves the weights that were."""
    if run.said:
        return
    try:
        weights = next(run.ways)
    except DivergenceError as error:
        run.said = f"{run.side}: {error}."
        return
    if all(bool(torch.isfinite(v).all()) for v in weights.values()):
        run.weights = {k: v.detach() for k, v in weights.items()}
    else:
        run.said = f"{run.side}: the weights are no longer finite."


def _frame(run: _Run, step: int, plan: _Plan) -> Frame:
    query = {k: v[0] for k, v in plan.batch.query.items()}
    with torch.no_grad():
        predict = function_of(run.prepared.network)(run.weights)
        rendered = plan.domain.render(predict, query, plan.batch.shared)
        psnr = plan.domain.metrics(rendered, query, ["psnr"])["psnr"]
    return Frame(run.side, step, round(psnr, 2), data_url(rendered))


def _constant(continuation: Continuation) -> str:
    return f"{OPTIMIZERS[continuation.optimizer]} {continuation.step_size:g}"


def _said(routine: AdaptationRoutine) -> str:
    steps = f"{routine.steps} step" + ("" if routine.steps == 1 else "s")
    learned = bool(routine.per_parameter or routine.per_tensor)
    size = "learned step sizes" if learned else f"{routine.step_size:g}"
    return f"{steps} of {OPTIMIZERS[routine.optimizer]}, {size}"


def _checkpoint(run: _Run, prior: Card, trial: Trial, steps: int) -> bytes:
    start = run.prepared.start.card
    card = Card(
        kind="weights",
        name="fit",
        method=Method(name=f"fit from {start.name}"),
        network=run.prepared.spec,
        domain=prior.domain,
        provenance=Provenance(
            recipe={"start": start.name, "digest": start.digest, "steps": steps}, seeds=[trial.seed]
        ),
    )
    return to_bytes({**dict(run.prepared.network.named_buffers()), **run.weights}, card)
