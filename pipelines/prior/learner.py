"""What learning a prior moves: the outer loop, with one worker's share of each batch of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from metainit import checkpoint
from metainit.adaptation import trajectory
from metainit.card import Card, Method, Provenance
from metainit.domains.base import TaskBatch
from metainit.domains.registry import without_places
from metainit.domains.seeding import seed_of
from metainit.meta.engine import choose, task_threads
from metainit.meta.outer import OuterLoop, initial_meta_parameters, routine_of
from metainit.meta.registry import RULES, gradient_evaluations, rule_for
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, TaskLosses, zeros_like
from metainit.networks.registry import function_of
from pipelines.learner import Gradient
from pipelines.prior.preparation import PreparedPrior
from pipelines.world import World, share

ENGINES = {"metainit": "metainit.meta.engine", "learn2learn": "metainit.meta.learn2learn_engine"}
"""Engine -> the module whose `meta_gradient` it is; imported when a recipe asks for it."""


class PriorLearner:
    """One worker's part in learning a prior.

    Every worker draws the same batch of tasks, which is a pure function of seed and step, and takes its share
    of it.
    """

    def __init__(self, prepared: PreparedPrior, world: World) -> None:
        """Begin at the start that the network is filled with."""
        self.prepared = prepared
        self.recipe = recipe = prepared.recipe
        self._function = function_of(prepared.network, recipe.algorithm.memory_format)
        self._rule = rule_for(recipe.algorithm)
        self._inner = recipe.algorithm.inner(prepared.network)
        start = initial_meta_parameters(prepared.network, recipe.algorithm)
        self._loop = OuterLoop(start, recipe.outer, recipe.algorithm)
        self._mine = share(recipe.outer.meta_batch, world.rank, world.size)
        self._pool: ThreadPoolExecutor | None = None

    @property
    def step(self) -> int:
        """How many outer steps have been taken."""
        return self._loop.step

    @property
    def steps(self) -> int:
        """How many outer steps there are."""
        return self.recipe.outer.steps

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have a thread for each task where that is the fastest way."""
        algorithm, count = self.recipe.algorithm, self._mine.stop - self._mine.start
        how = choose(algorithm.execution, self._loop.meta.weights, count)
        threaded = how == "threads" and not algorithm.compiled
        with task_threads(torch.get_num_threads()) if threaded else nullcontext() as pool:
            self._pool = pool
            yield
        self._pool = None

    def gradient(self) -> Gradient:
        """Return the meta-gradient summed over this worker's share, with the recipe's engine."""
        recipe, step = self.recipe, self.step
        batch = self.prepared.domain.tasks(recipe.seed, step, recipe.outer.meta_batch)
        inner = self._inner.seeded(seed_of("inner loop", recipe.seed, step))
        found = self._meta_gradient(self.prepared.moved(batch[self._mine]), inner)
        tensors = [*found.weights.values(), *found.step_sizes.values()]
        return Gradient(tensors, found.loss, found.tasks)

    def apply(self, gradient: Gradient) -> float:
        """Take one outer step, and return the mean loss."""
        meta = self._loop.meta
        count = len(meta.weights)
        weights = dict(zip(meta.weights, gradient.tensors[:count], strict=True))
        step_sizes = dict(zip(meta.step_sizes, gradient.tensors[count:], strict=True))
        return self._loop.apply(MetaGradient(weights, step_sizes, gradient.loss, gradient.count))

    def validate(self) -> dict[str, float]:
        """Return the mean metrics of validation tasks after the learned steps."""
        return validate(self.prepared, self._loop.result())

    def state(self) -> dict[str, Tensor]:
        """Return the outer loop's state."""
        return self._loop.state()

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go on from a state; Adam counts its steps on the CPU, wherever the weights are."""
        device = self.prepared.device
        self._loop.restore({k: v if k.startswith("adam.step.") else v.to(device) for k, v in saved.items()})

    def result(self, provenance: Provenance) -> tuple[dict[str, Tensor], Card]:
        """Return the (averaged) start with its routine."""
        return described(self.prepared, self._loop.result(), provenance)

    def _meta_gradient(self, batch: TaskBatch, inner: InnerSteps) -> MetaGradient:
        algorithm, meta = self.recipe.algorithm, self._loop.meta
        if len(batch) == 0:
            nothing = next(iter(meta.weights.values())).new_zeros(())
            return MetaGradient(zeros_like(meta.weights), zeros_like(meta.step_sizes), nothing, 0)
        engine: Any = import_module(ENGINES[algorithm.engine])
        domain, function = self.prepared.domain, self._function
        result: MetaGradient = engine.meta_gradient(
            self._rule, domain, function, meta, batch, inner, algorithm.execution, self._pool
        )
        return result


def validate(prepared: PreparedPrior, meta: MetaParameters) -> dict[str, float]:
    """Return the mean metrics of validation tasks after the learned steps, as ``validation_<name>``."""
    recipe, domain = prepared.recipe, prepared.domain
    size = domain.size("validation")
    count = recipe.validation_tasks if size is None else min(recipe.validation_tasks, size)
    if count == 0:
        return {}
    routine = routine_of(meta, recipe.algorithm, recipe.algorithm.inner(prepared.network))
    sizes = meta.step_sizes if routine.per_parameter else {}
    function = function_of(prepared.network, recipe.algorithm.memory_format)
    totals: dict[str, float] = {}
    for task in prepared.moved(domain.tasks(recipe.seed, 0, count, "validation")):
        losses = TaskLosses(domain, function, task, batched=False)
        *_, adapted = trajectory(losses, meta.weights, routine, sizes, routine.steps)
        with torch.no_grad():
            query = {k: v[0] for k, v in task.query.items()}
            rendered = domain.render(function(adapted), query, task.shared).cpu()
        truth = {k: v.cpu() for k, v in query.items()}
        for name, value in domain.metrics(rendered, truth).items():
            totals[f"validation_{name}"] = totals.get(f"validation_{name}", 0.0) + value / count
    return totals


def described(
    prepared: PreparedPrior, meta: MetaParameters, provenance: Provenance
) -> tuple[dict[str, Tensor], Card]:
    """Return the tensors of the final checkpoint and its card."""
    recipe = prepared.recipe
    with torch.no_grad():
        for name, value in prepared.network.named_parameters():
            value.copy_(meta.weights[name])
    tensors = {k: v.detach().cpu().clone() for k, v in prepared.network.state_dict().items()}
    inner = recipe.algorithm.inner(prepared.network)
    routine = routine_of(meta, recipe.algorithm, inner, recipe.continuation)
    cost = recipe.outer.steps * recipe.outer.meta_batch * gradient_evaluations(recipe.algorithm)
    if routine.per_parameter:
        tensors |= {checkpoint.STEP_SIZE_PREFIX + k: v.cpu().clone() for k, v in meta.step_sizes.items()}
    rule = recipe.algorithm.rule
    card = Card(
        kind="prior",
        name=recipe.name,
        method=Method(name=rule, paper=RULES[rule].paper),
        network=prepared.spec,
        domain=without_places(recipe.domain),
        routine=routine,
        provenance=provenance.model_copy(update={"gradient_evaluations": cost}),
    )
    return tensors, card
