"""The ordinary starts that a learned one is judged against, on the same network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine
from metainit.domains.base import Domain, Predict, TaskBatch, Tensors
from metainit.domains.seeding import generator_of
from metainit.errors import MismatchError
from metainit.evidence.curves import Start, weights_of
from metainit.evidence.metrics import psnr
from metainit.initialization import Analytic
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import function_of

ANALYTIC = ("default", "kaiming", "orthogonal", "siren", "siren_scaled", "lsuv")
ALL_CONTROLS = (*ANALYTIC, "mean_signal", "matched", "shuffled")
MATCHED_DECIBELS = 40.0
MATCH_ROUNDS = 20
MATCH_STEPS = 100
MATCH_STEP_SIZE = 1e-3


@runtime_checkable
class HasMeanSignal(Protocol):
    """A domain that knows the mean of its training signals."""

    def mean_signal(self) -> Tensor:
        """Return the mean training signal, ``(height, width, channels)``."""
        ...


def analytic_starts(
    network: nn.Module,
    seed: int,
    example_inputs: Tensor,
    names: Sequence[str] = ANALYTIC,
    left_out: dict[str, str] | None = None,
) -> list[Start]:
    """Return every analytic start that covers the network, drawn from `seed`.

    `left_out` takes up the name and the reason of those that do not: not every rule is for every network.
    """
    starts = []
    for name in names:
        drawn = copy.deepcopy(network)
        try:
            Analytic(name).init_(drawn, seed=seed, example_inputs=example_inputs)
        except MismatchError as error:
            if left_out is not None:
                left_out[name] = str(error)
            continue
        starts.append(Start(name, weights_of(drawn)))
    return starts


def shuffled(start: Start, seed: int) -> Start:
    """Return the same weights permuted within each tensor: the same statistics, no structure.

    Source: Tancik et al. 2021, "Learned Initializations", section 4 (baseline "Shuffled").
    """
    generator = generator_of("shuffled", seed)
    mixed = {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)
        for name, value in start.weights.items()
    }
    return Start("shuffled", mixed)


def rendering(
    name: str, network: nn.Module, domain: Domain, task: TaskBatch, image: Tensor, begin: Parameters
) -> Start:
    """Return weights whose rendering equals `image` to `MATCHED_DECIBELS`, found by Adam from `begin`.

    Raises:
        MismatchError: the network does not get there.

    Source: Tancik et al. 2021, "Learned Initializations", section 4 (baselines "Mean" and "Matched").
    """
    function = function_of(network)
    query = {k: v[0] for k, v in task.query.items()}
    target = _ImageTarget(domain, query, image)
    losses = TaskLosses(target, function, task, batched=False)
    weights, reached = begin, -1.0
    for part in range(MATCH_ROUNDS):
        routine = AdaptationRoutine(
            optimizer="adam", steps=MATCH_STEPS, step_size=MATCH_STEP_SIZE * 0.85**part
        )
        *_, weights = trajectory(losses, weights, routine, {}, MATCH_STEPS)
        with torch.no_grad():
            reached = psnr(domain.render(function(weights), query, task.shared), image.clamp(0, 1))
        if reached >= MATCHED_DECIBELS:
            return Start(name, {k: v.detach() for k, v in weights.items()})
    raise MismatchError(
        f"control {name!r}: the network renders its target to {reached:.1f} dB after "
        f"{MATCH_ROUNDS * MATCH_STEPS} steps, expected {MATCHED_DECIBELS:.0f}"
    )


class _ImageTarget:
    """The domain with another support loss: the squared distance of the rendering to a given image."""

    def __init__(self, domain: Domain, query: Tensors, image: Tensor) -> None:
        self._domain = domain
        self._query = query
        self._image = image
        self.metric = domain.metric
        self.network_arguments = domain.network_arguments
        self.controls = domain.controls
        self.example_inputs = domain.example_inputs
        self.picture = domain.picture
        self.tasks = domain.tasks
        self.size = domain.size
        self.query_loss = domain.query_loss
        self.render = domain.render
        self.target = domain.target
        self.metrics = domain.metrics
        self.fingerprint = domain.fingerprint

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        rendered = self._domain.render(predict, self._query, shared)
        return (rendered - self._image).square().mean()


def signal_controls(
    network: nn.Module,
    domain: Domain,
    prior: Start | None,
    seed: int,
    names: Sequence[str] = ALL_CONTROLS,
    left_out: dict[str, str] | None = None,
) -> list[Start]:
    """Return the controls of a signal domain: analytic, mean signal, matched and shuffled.

    Args:
        network: its architecture is used, not its weights.
        domain: gives coordinates and the mean training signal.
        prior: what `matched` and `shuffled` are made from; None leaves those two out.
        seed: random state of the analytic draws, the fits' beginnings and the permutation.
        names: which controls to make.
        left_out: takes up the name and the reason of a control that the network cannot render.

    Raises:
        MismatchError: the network cannot render a control, and `left_out` is not given.
    """
    task = domain.tasks(0, 0, 1, "validation")
    wanted = [name for name in names if name in ANALYTIC]
    starts = analytic_starts(network, seed, domain.example_inputs(), wanted, left_out)
    images: dict[str, Tensor] = {}
    if "mean_signal" in names and isinstance(domain, HasMeanSignal):
        images["mean_signal"] = domain.mean_signal()
    if prior is not None and "matched" in names:
        with torch.no_grad():
            query = {k: v[0] for k, v in task.query.items()}
            images["matched"] = domain.render(function_of(network)(prior.weights), query, task.shared)
    for name, image in images.items():
        try:
            starts.append(rendering(name, network, domain, task, image, _beginning(network, seed)))
        except MismatchError as error:
            if left_out is None:
                raise
            left_out[name] = str(error)
    if prior is not None and "shuffled" in names:
        starts.append(shuffled(prior, seed))
    return starts


def _beginning(network: nn.Module, seed: int) -> Parameters:
    drawn = copy.deepcopy(network)
    try:
        Analytic("siren").init_(drawn, seed=seed)
    except MismatchError:
        Analytic("default").init_(drawn, seed=seed)
    return weights_of(drawn)
