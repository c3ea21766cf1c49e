"""The control `joint`: transfer learning from the same network, trained on all training tasks at once."""

from __future__ import annotations

import copy
import math

import torch

from metainit.domains.base import TaskBatch
from metainit.domains.seeding import seed_of
from metainit.errors import DataError, DivergenceError, MismatchError
from metainit.evidence.controls.base import Setting
from metainit.evidence.curves import GRID_RATIO, Start
from metainit.initialization import Analytic
from metainit.meta.engine import meta_gradient
from metainit.meta.inner import gradients
from metainit.meta.outer import AlgorithmConfig, OuterConfig, OuterLoop, initial_meta_parameters
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, Parameters, TaskLosses
from metainit.networks import function_of

AT_ONCE = 4
"""Tasks in each step; each is one gradient evaluation."""
STEP_SIZES = (1e-3 / GRID_RATIO, 1e-3, 1e-3 * GRID_RATIO)
MAX_EXTENSIONS = 4
PILOT = 0.05
"""The share of the budget that each step size is tried with, on top of the budget."""
VALIDATION_TASKS = 16


def joint(setting: Setting) -> Start:
    r"""Return weights trained with Adam on the support loss of all training tasks, without adaptation.

    .. math:: \min_\theta \operatorname{E}_\text{task} L_\text{support}(\theta)

    It costs as many gradient evaluations as the setting's budget. The step size is the one, of half decades
    around 0.001 that go on until the best is not on their edge, that after a short run has the lowest query
    loss on validation tasks.

    Raises:
        MismatchError: no step size trains without diverging.

    Source: Hendryx et al. 2019, "Meta-Learning Initializations for Image Segmentation", section 4 (baseline
        "transfer learning": joint training on all training classes).
    """
    pilots: dict[float, float] = {}
    for size in STEP_SIZES:
        pilots[size] = _reached(setting, size)
    for _ in range(MAX_EXTENSIONS):
        best = min(pilots, key=lambda k: pilots[k])
        if best == min(pilots):
            pilots[best / GRID_RATIO] = _reached(setting, best / GRID_RATIO)
        elif best == max(pilots):
            pilots[best * GRID_RATIO] = _reached(setting, best * GRID_RATIO)
        else:
            break
    best = min(pilots, key=lambda k: pilots[k])
    steps = max(1, setting.budget // AT_ONCE)
    try:
        return Start("joint", _trained(setting, best, steps))
    except DivergenceError as error:
        raise MismatchError(f"control 'joint': {error}") from error


def joint_gradient(losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
    """Return the gradient of the support loss at the start, as an outer rule: no step is taken."""
    leaves = {k: v.detach().requires_grad_() for k, v in losses.spread(meta.weights).items()}
    reached = losses.support(leaves)
    slope = gradients(reached, leaves, create_graph=False)
    return MetaGradient({k: losses.gather(v) for k, v in slope.items()}, {}, reached.detach(), losses.tasks)


def _reached(setting: Setting, size: float) -> float:
    """Return the query loss on validation tasks after a pilot run; infinity where it diverged."""
    domain = setting.domain
    try:
        weights = _trained(setting, size, max(1, round(PILOT * setting.budget / AT_ONCE)))
    except DivergenceError:
        return math.inf
    known = domain.size("validation")
    count = VALIDATION_TASKS if known is None else min(VALIDATION_TASKS, known)
    if count == 0:
        raise DataError("the domain has no validation tasks: give more data")
    function = function_of(setting.network)
    with torch.no_grad():
        parts = [
            float(TaskLosses(domain, function, task, batched=False).query(weights))
            for task in _moved(domain.tasks(0, 0, count, "validation"), weights)
        ]
    mean = sum(parts) / len(parts)
    return mean if math.isfinite(mean) else math.inf


def _trained(setting: Setting, size: float, steps: int) -> Parameters:
    setting.note(f"joint: Adam {size:.2g}, {steps} steps")
    network = copy.deepcopy(setting.network)
    Analytic("default").init_(network, seed=setting.seed)
    function = function_of(network)
    algorithm = AlgorithmConfig(rule="reptile", step_sizes="fixed", inner_step_size=size)
    outer = OuterConfig(steps=steps, step_size=size, warm_up=min(20, steps // 10))
    loop = OuterLoop(initial_meta_parameters(network, algorithm), outer, algorithm)
    stream = seed_of("joint", setting.seed)
    for step in range(steps):
        batch = _moved(setting.domain.tasks(stream, step, AT_ONCE), loop.meta.weights)
        inner = InnerSteps(0, 0.0)
        loop.apply(meta_gradient(joint_gradient, setting.domain, function, loop.meta, batch, inner))
    return loop.result().weights


def _moved(batch: TaskBatch, weights: Parameters) -> TaskBatch:
    like = next(iter(weights.values()))
    return batch.to(like.device, like.dtype)
