"""The outer loop's state: the start, its optimizer, its average; saved and restored as plain tensors."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from metainit.card import AdaptationRoutine, Continuation, Record
from metainit.errors import CheckpointError, DivergenceError, suggestion
from metainit.meta.engine import Execution
from metainit.meta.registry import RULES
from metainit.meta.schedule import warm_up_and_cosine
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, Parameters
from metainit.meta.variation import Variation
from metainit.networks.heads import head_names
from metainit.networks.registry import MemoryFormat

ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
"""What the optimizer keeps of each tensor."""


COMPILABLE = tuple(("metainit", execution) for execution in ("auto", "loop", "vmap"))
"""Engines and executions of a compiled rule, which uses all threads inside its own loops."""


class AlgorithmConfig(Record):
    """How a prior is learned: the rule, its inner loop and the engine that runs it.

    `step_sizes`: ``fixed`` (all are `inner_step_size`), or learned per ``tensor`` or per ``parameter``, for
    each inner step. `meta_sgd` with `order` 1 or 2 learns them; `maml` with learned ones is the same as
    `meta_sgd` of order 2. `adapts`: the inner loop moves ``all`` tensors, or those of the network's ``head``
    only (ANIL: Raghu et al. 2020, arXiv:1909.09157); the outer loop learns all of them in either case.
    `tail`: how many examples of each support `fomaml_tail` holds back. `augmentation`: the probability that
    an example is augmented in an inner step; `minibatch`: how many examples an inner step sees (None: all).
    `memory_format`: of images and kernels; ``auto`` is ``channels_last`` on a CPU. `compiled`: spend seconds
    on compiling the rule, and less on every step.
    """

    rule: str = "meta_sgd"
    order: Literal[1, 2] = 2
    engine: Literal["metainit", "learn2learn"] = "metainit"
    execution: Execution = "auto"
    compiled: bool = False
    inner_steps: int = Field(default=2, ge=1, le=1000)
    inner_step_size: float = Field(default=0.01, gt=0)
    step_sizes: Literal["fixed", "tensor", "parameter"] = "parameter"
    adapts: Literal["all", "head"] = "all"
    tail: int = Field(default=0, ge=0)
    augmentation: float = Field(default=0.0, ge=0, le=1)
    minibatch: int | None = Field(default=None, ge=1)
    memory_format: MemoryFormat = "auto"

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        if rule not in RULES:
            raise ValueError(f"no rule is called {rule!r}; {suggestion(rule, RULES)}")
        return rule

    @model_validator(mode="after")
    def _check(self) -> AlgorithmConfig:
        own = RULES[self.rule]
        if own.learns_step_sizes and self.step_sizes == "fixed":
            raise ValueError(f"{self.rule} learns step sizes: set step_sizes to tensor or parameter")
        if not own.learns_step_sizes and self.step_sizes != "fixed":
            raise ValueError(f"{self.rule} does not learn step sizes: set step_sizes to fixed")
        if own.holds_back and self.tail == 0:
            raise ValueError(f"{self.rule} holds back at least 1 example: set tail to their number, got 0")
        if not own.holds_back and self.tail > 0:
            able = ", ".join(name for name, rule in RULES.items() if rule.holds_back)
            raise ValueError(f"tail goes with {able}, got {self.tail} for {self.rule}: leave it out")
        if not own.query_gradient and self.adapts == "head":
            raise ValueError(
                f"{self.rule} learns only what is adapted: set adapts to all, or choose another rule"
            )
        if self.variation.active and (self.compiled or self.engine != "metainit"):
            raise ValueError(
                "augmentation and minibatch draw new examples in each step, which neither a compiled rule "
                "nor another engine than metainit can do"
            )
        if self.adapts == "head" and self.engine != "metainit":
            raise ValueError(f"the engine {self.engine} adapts all tensors: set adapts to all")
        if self.compiled and (self.engine, self.execution) not in COMPILABLE:
            raise ValueError(
                f"compiled goes with engine metainit and execution auto, loop or vmap, not with engine "
                f"{self.engine} and execution {self.execution}"
            )
        return self

    @property
    def variation(self) -> Variation:
        """What an inner step sees of the support."""
        return Variation(self.augmentation, self.minibatch)

    def inner(self, network: nn.Module) -> InnerSteps:
        """Return the inner loop's settings for a network.

        Raises:
            RecipeError: only the head is adapted, and the network does not say which that is.
        """
        adapts = head_names(network) if self.adapts == "head" else ()
        return InnerSteps(self.inner_steps, self.inner_step_size, adapts, self.variation, self.tail)


class OuterConfig(Record):
    """The outer optimizer: Adam with a warm-up, a cosine schedule, clipping and an average of the weights.

    `step_size_rate` is Adam's rate for learned step sizes, relative to `inner_step_size`. `averaging` is the
    decay of the exponential moving average that becomes the checkpoint (0: the last weights).
    """

    steps: int = Field(default=1000, ge=1)
    meta_batch: int = Field(default=4, ge=1)
    step_size: float = Field(default=1e-3, gt=0)
    step_size_rate: float = Field(default=0.02, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warm_up: int = Field(default=20, ge=0)
    clip: float | None = Field(default=10.0, gt=0)
    averaging: float = Field(default=0.0, ge=0, lt=1)


def initial_meta_parameters(network: nn.Module, algorithm: AlgorithmConfig) -> MetaParameters:
    """Return the network's weights and, where they are learned, step sizes at their starting value."""
    weights = {k: v.detach().clone() for k, v in network.named_parameters()}
    step_sizes: Parameters = {}
    if algorithm.step_sizes != "fixed":
        per_parameter = algorithm.step_sizes == "parameter"
        for name, value in algorithm.inner(network).moved(weights).items():
            shape = (algorithm.inner_steps, *(value.shape if per_parameter else ()))
            step_sizes[name] = value.new_full(shape, algorithm.inner_step_size)
    return MetaParameters(weights, step_sizes)


def schedule_factor(config: OuterConfig, step: int) -> float:
    """Return the factor on the step size at an outer step: linear warm-up, then a half cosine to 1 %.

    Example:
        >>> schedule_factor(OuterConfig(steps=100, warm_up=0), 0)
        1.0
    """
    if config.schedule == "constant":
        return min(1.0, (step + 1) / max(1, config.warm_up))
    return warm_up_and_cosine(step, config.steps, config.warm_up)


class OuterLoop:
    """Holds the meta-parameters while they are learned; `apply` takes one step.

    Example:
        >>> from metainit.networks import Siren
        >>> algorithm = AlgorithmConfig(rule='reptile', step_sizes='fixed')
        >>> start = initial_meta_parameters(Siren(width=4, depth=2), algorithm)
        >>> loop = OuterLoop(start, OuterConfig(steps=10), algorithm)
        >>> loop.step
        0
    """

    def __init__(self, start: MetaParameters, config: OuterConfig, algorithm: AlgorithmConfig) -> None:
        self.config = config
        self.algorithm = algorithm
        self.step = 0
        self.meta = MetaParameters(
            {k: v.clone() for k, v in start.weights.items()},
            {k: v.clone() for k, v in start.step_sizes.items()},
        )
        self._average = [v.clone() for v in self._tensors()]
        groups: list[dict[str, object]] = [
            {"params": list(self.meta.weights.values()), "base": config.step_size}
        ]
        if self.meta.step_sizes:
            rate = config.step_size_rate * algorithm.inner_step_size
            groups.append({"params": list(self.meta.step_sizes.values()), "base": rate})
        self._optimizer = torch.optim.Adam(groups, lr=config.step_size, betas=(0.9, 0.99))

    def _tensors(self) -> list[Tensor]:
        return [*self.meta.weights.values(), *self.meta.step_sizes.values()]

    def apply(self, gradient: MetaGradient) -> float:
        """Take one outer step with the mean of a summed meta-gradient; return the mean loss.

        Raises:
            DivergenceError: the loss or the gradient is not finite; the state is left as it was.
        """
        loss = float(gradient.loss) / gradient.tasks
        slopes = [*gradient.weights.values(), *gradient.step_sizes.values()]
        means = [g / gradient.tasks for g in slopes]
        norm = float(torch.nn.utils.get_total_norm(means))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergenceError(
                f"outer step {self.step}: loss {loss:.4g}, gradient norm {norm:.4g}; lower "
                f"algorithm.inner_step_size (now {self.algorithm.inner_step_size:g}) or "
                f"outer.step_size (now {self.config.step_size:g})"
            )
        # Weights are clipped by their own norm: step sizes live on another scale.
        own = means[: len(gradient.weights)]
        length = float(torch.nn.utils.get_total_norm(own))
        scale = self.config.clip / length if self.config.clip and length > self.config.clip else 1.0
        factor = schedule_factor(self.config, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * factor
        for index, (value, mean) in enumerate(zip(self._tensors(), means, strict=True)):
            value.grad = mean * scale if index < len(own) else mean
        self._optimizer.step()
        self.step += 1
        self._track_average()
        return loss

    def _track_average(self) -> None:
        # The decay grows with the step, so that the average forgets where it started.
        decay = min(self.config.averaging, self.step / (self.step + 10))
        with torch.no_grad():
            for kept, value in zip(self._average, self._tensors(), strict=True):
                kept.lerp_(value, 1 - decay)

    def result(self) -> MetaParameters:
        """Return the (averaged) meta-parameters that a checkpoint is made of."""
        source = self._average if self.config.averaging > 0 else self._tensors()
        values = [v.detach().clone() for v in source]
        count = len(self.meta.weights)
        return MetaParameters(
            dict(zip(self.meta.weights, values[:count], strict=True)),
            dict(zip(self.meta.step_sizes, values[count:], strict=True)),
        )

    def state(self) -> dict[str, Tensor]:
        """Return everything needed to go on, as named tensors."""
        saved: dict[str, Tensor] = {"step": torch.tensor(self.step)}
        for index, value in enumerate(self._tensors()):
            saved[f"value.{index}"] = value.detach().clone()
            saved[f"average.{index}"] = self._average[index].clone()
            for key, moment in self._optimizer.state[value].items():
                saved[f"adam.{key}.{index}"] = torch.as_tensor(moment).clone()
        return saved

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Go on from a state that `state` returned.

        Raises:
            CheckpointError: the state belongs to another network or algorithm; nothing is changed.
        """
        tensors = self._tensors()
        expected: dict[str, tuple[int, ...]] = {"step": ()}
        for index, value in enumerate(tensors):
            shape = tuple(value.shape)
            expected |= {f"value.{index}": shape, f"average.{index}": shape}
            if int(saved.get("step", torch.zeros(()))) > 0:
                expected |= {f"adam.{m}.{index}": () if m == "step" else shape for m in ADAM_STATE}
        found = {name: tuple(value.shape) for name, value in saved.items()}
        wrong = sorted(k for k in {*expected, *found} if expected.get(k) != found.get(k))
        if wrong:
            raise CheckpointError(
                f"the saved state does not fit: {wrong[0]} has shape {found.get(wrong[0])}, expected "
                f"{expected.get(wrong[0])}; it belongs to another recipe: use another output folder"
            )
        self.step = int(saved["step"])
        self._optimizer.state.clear()
        with torch.no_grad():
            for index, value in enumerate(tensors):
                value.copy_(saved[f"value.{index}"])
                self._average[index].copy_(saved[f"average.{index}"])
                if self.step > 0:
                    moments = {m: saved[f"adam.{m}.{index}"].clone() for m in ADAM_STATE}
                    self._optimizer.state[value] = moments


def routine_of(
    meta: MetaParameters,
    algorithm: AlgorithmConfig,
    inner: InnerSteps,
    continuation: Continuation | None = None,
) -> AdaptationRoutine:
    """Return the adaptation routine that the meta-parameters were learned with."""
    per_tensor = {k: v.tolist() for k, v in meta.step_sizes.items()}
    return AdaptationRoutine(
        optimizer="sgd",
        steps=algorithm.inner_steps,
        step_size=algorithm.inner_step_size,
        per_tensor=per_tensor if algorithm.step_sizes == "tensor" else {},
        per_parameter=algorithm.step_sizes == "parameter",
        augmentation=algorithm.augmentation,
        minibatch=algorithm.minibatch,
        adapts=inner.adapts,
        continuation=continuation,
    )
