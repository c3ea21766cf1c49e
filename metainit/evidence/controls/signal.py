"""Controls of signals: starts that render a given signal, and a start's own weights without their order."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from metainit.adaptation import trajectory
from metainit.card import AdaptationRoutine
from metainit.domains.base import Domain, Predict, TaskBatch, Tensors
from metainit.domains.seeding import generator_of
from metainit.errors import MismatchError
from metainit.evidence.controls.base import Setting
from metainit.evidence.curves import Start, weights_of
from metainit.evidence.metrics import psnr
from metainit.initialization import Analytic
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import function_of

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


def mean_signal(setting: Setting) -> Start | None:
    """Return weights that render the mean training signal; None where the domain has none.

    Raises:
        MismatchError: the network cannot render it.

    Source: Tancik et al. 2021, "Learned Initializations", section 4 (baseline "Mean").
    """
    domain = setting.domain
    if not isinstance(domain, HasMeanSignal):
        return None
    task = domain.tasks(0, 0, 1, "validation")
    begin = _beginning(setting.network, setting.seed)
    return rendering("mean_signal", setting.network, domain, task, domain.mean_signal(), begin)


def matched(setting: Setting) -> Start | None:
    """Return other weights that render what the prior does; None where there is no prior.

    Raises:
        MismatchError: the network cannot render it.

    Source: Tancik et al. 2021, "Learned Initializations", section 4 (baseline "Matched").
    """
    network, domain, prior = setting.network, setting.domain, setting.prior
    if prior is None:
        return None
    task = domain.tasks(0, 0, 1, "validation")
    query = {k: v[0] for k, v in task.query.items()}
    with torch.no_grad():
        image = domain.render(function_of(network)(prior.weights), query, task.shared)
    return rendering("matched", network, domain, task, image, _beginning(network, setting.seed))


def shuffled(setting: Setting) -> Start | None:
    """Return the prior's weights permuted within each tensor: the same statistics, no structure.

    Source: Tancik et al. 2021, "Learned Initializations", section 4 (baseline "Shuffled").
    """
    if setting.prior is None:
        return None
    generator = generator_of("shuffled", setting.seed)
    mixed = {
        name: value.flatten()[torch.randperm(value.numel(), generator=generator)].reshape(value.shape)
        for name, value in setting.prior.weights.items()
    }
    return Start("shuffled", mixed)


def rendering(
    name: str, network: nn.Module, domain: Domain, task: TaskBatch, image: Tensor, begin: Parameters
) -> Start:
    """Return weights whose rendering equals `image` to `MATCHED_DECIBELS`, found by Adam from `begin`.

    Raises:
        MismatchError: the network does not get there.
    """
    function = function_of(network)
    query = {k: v[0] for k, v in task.query.items()}
    losses = TaskLosses(_ImageTarget(domain, query, image), function, task, batched=False)
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
        self.tasks = domain.tasks
        self.size = domain.size
        self.query_loss = domain.query_loss
        self.render = domain.render
        self.picture = domain.picture
        self.target = domain.target
        self.metrics = domain.metrics
        self.fingerprint = domain.fingerprint

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        rendered = self._domain.render(predict, self._query, shared)
        return (rendered - self._image).square().mean()


def _beginning(network: nn.Module, seed: int) -> Parameters:
    drawn = copy.deepcopy(network)
    try:
        Analytic("siren").init_(drawn, seed=seed)
    except MismatchError:
        Analytic("default").init_(drawn, seed=seed)
    return weights_of(drawn)
