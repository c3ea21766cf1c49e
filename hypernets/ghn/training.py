"""Training a hypernetwork: meta-batches of architectures, each with images of its own.

A step predicts the weights of some architectures at once, runs each on its images, and lowers the mean loss
of the networks, which have no weights of their own. Nothing here knows of files, workers or logs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch_geometric.data import Data

from hypernets.architecture.graph import ArchitectureGraph
from hypernets.architecture.space import build_architecture, sample
from hypernets.architecture.space_ranges import SpaceConfig
from hypernets.architecture.trace import trace
from hypernets.averaged import decay_at, saved_in, state_of
from hypernets.ghn.model import Ghn
from metainit.card import Record
from metainit.errors import DivergenceError
from metainit.meta.schedule import warm_up_and_cosine

Split = Literal["train", "validation", "test"]


class Images(Protocol):
    """Labelled images; a batch is a pure function of its arguments."""

    def batch(self, seed: int, index: int, count: int, split: Split = "train") -> tuple[Tensor, Tensor]:
        """Return images (count, channels, side, side) and their classes (count)."""
        ...

    def size(self, split: Split) -> int | None:
        """Return how many images a part has; None where they are drawn without end."""
        ...


class TrainingConfig(Record):
    """How a hypernetwork is trained: AdamW with a warm-up and a cosine, and an average of its weights.

    `meta_batch` architectures of a pool of `pool` see `images` images each in a step. `penalty`: on the sum
    of the predicted tensors' norms. `averaging`: the decay of the moving average that becomes the checkpoint.
    `precision`: of the networks' and the hypernetwork's arithmetic, on a GPU.

    Source: GHN-3 (Knyazev et al. 2023, arXiv:2303.04143), section 4; the average is ours.
    """

    steps: int = Field(default=3000, ge=1)
    meta_batch: int = Field(default=8, ge=1, le=4096)
    images: int = Field(default=64, ge=2)
    pool: int = Field(default=4000, ge=1)
    step_size: float = Field(default=1e-3, gt=0)
    warm_up: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=1e-2, ge=0)
    clip: float = Field(default=5.0, gt=0)
    penalty: float = Field(default=3e-5, ge=0)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    averaging: float = Field(default=0.99, ge=0, lt=1)
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _a_step_has_no_network_twice(self) -> TrainingConfig:
        # The networks of a step run at once, each with weights of its own in the place of its parameters.
        if self.pool < self.meta_batch:
            raise ValueError(
                f"pool is {self.pool}, expected at least {self.meta_batch}, the architectures of a meta_batch"
            )
        return self


@dataclass(frozen=True)
class Member:
    """An architecture of the pool: a network that only lends its structure, its graph, and its features."""

    network: nn.Module
    graph: ArchitectureGraph
    data: Data


@dataclass(frozen=True)
class Gradient:
    """The gradient of the summed losses of some networks; `networks` counts those with a finite loss."""

    parameters: list[Tensor]
    loss: Tensor
    networks: int


class GhnTraining:
    """A hypernetwork on its way: its weights, their average, the optimizer, and the pool of architectures."""

    def __init__(
        self, config: TrainingConfig, ghn: Ghn, space: SpaceConfig, images: Images, seed: int = 0
    ) -> None:
        self.config, self.ghn, self.space, self.images, self.seed = config, ghn, space, images, seed
        self.step = 0
        self.average = {k: v.detach().clone() for k, v in ghn.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            ghn.parameters(), lr=config.step_size, weight_decay=config.weight_decay
        )
        self._pool: OrderedDict[tuple[Split, int], Member] = OrderedDict()

    def member(self, index: int, split: Split = "train") -> Member:
        """Return an architecture of the pool, traced when it is first asked for."""
        key = (split, index)
        if key not in self._pool:
            network = build_architecture(sample(self.space, self.seed, index, split)).to(self.ghn.device)
            shape = (2, self.space.channels, self.space.size, self.space.size)
            graph = trace(network, torch.zeros(shape, device=self.ghn.device))
            self._pool[key] = Member(_structure(network).train(), graph, self.ghn.features(graph))
        return self._pool[key]

    def gradient(self, share: slice = slice(None), pool: ThreadPoolExecutor | None = None) -> Gradient:
        """Return the gradient of the next step, summed over a share of its architectures."""
        config = self.config
        first = self.step * config.meta_batch
        numbers = range(first, first + config.meta_batch)[share]
        self.ghn.train()
        zeros = [torch.zeros_like(p) for p in self.ghn.parameters()]
        if not numbers:
            return Gradient(zeros, torch.zeros((), device=self.ghn.device), 0)
        members = [self.member(number % config.pool) for number in numbers]
        with self._precision():
            predicted = self.ghn([m.graph for m in members], [m.data for m in members])
        jobs = zip(members, predicted, numbers, strict=True)
        results = list(pool.map(self._one, jobs) if pool is not None else map(self._one, jobs))
        good = [r for r in results if r is not None]
        if good:
            pairs = [
                (p[k], g.to(p[k].dtype))
                for p, r in zip(predicted, results, strict=True)
                if r
                for k, g in r[1].items()
            ]
            values, gradients = zip(*pairs, strict=True)
            found = torch.autograd.grad(values, list(self.ghn.parameters()), gradients, allow_unused=True)
            zeros = [z if f is None else f for z, f in zip(zeros, found, strict=True)]
        loss = torch.stack([r[0] for r in good]).sum() if good else zeros[0].new_zeros(())
        return Gradient(zeros, loss, len(good))

    def _one(self, job: tuple[Member, Mapping[str, Tensor], int]) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Return a network's loss and its gradient by the predicted weights; None where it is not finite.

        A network whose loss overflows says nothing about the others: it is left out of the step.
        """
        member, predicted, number = job
        images, labels = self.images.batch(self.seed, number, self.config.images)
        images, labels = images.to(self.ghn.device), labels.to(self.ghn.device)
        # In single precision whatever the arithmetic is: normalizations refuse another type than theirs.
        weights = {k: v.detach().float().requires_grad_() for k, v in predicted.items()}
        with torch.enable_grad(), self._precision():
            outputs = functional_call(member.network, weights, (images,))
            loss = cross_entropy(outputs.float(), labels, label_smoothing=self.config.label_smoothing)
            total = loss + self.config.penalty * sum(w.norm() for w in weights.values())
        gradients = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
        found = {k: g for k, g in zip(weights, gradients, strict=True) if g is not None}
        finite = torch.isfinite(total) and all(torch.isfinite(g).all() for g in found.values())
        return (loss.detach(), found) if finite else None

    def apply(self, gradient: Gradient) -> float:
        """Take the step, with the gradient of all architectures of it, and return the mean loss.

        Raises:
            DivergenceError: no network of the step had a finite loss.
        """
        if gradient.networks == 0:
            raise DivergenceError(
                f"no network of step {self.step + 1} has a finite loss: lower training.step_size"
            )
        config = self.config
        for parameter, value in zip(self.ghn.parameters(), gradient.parameters, strict=True):
            parameter.grad = value / gradient.networks
        nn.utils.clip_grad_norm_(self.ghn.parameters(), config.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = config.step_size * warm_up_and_cosine(self.step, config.steps, config.warm_up)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = decay_at(self.step, config.averaging)
        for name, value in self.ghn.state_dict().items():
            self.average[name].lerp_(value, 1 - decay)
        return float(gradient.loss) / gradient.networks

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next steps depend on."""
        return state_of(self.ghn.state_dict(), self.average, self.step, self.optimizer)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        saved = saved_in(state)
        self.ghn.load_state_dict(saved.model)
        self.average, self.step = saved.average, saved.step
        saved.load_into(self.optimizer)

    def result(self) -> dict[str, Tensor]:
        """Return the averaged weights of the hypernetwork by name."""
        return {k: v.clone() for k, v in self.average.items()}

    def validate(self, architectures: int, images: int = 500) -> dict[str, float]:
        """Return the accuracy of architectures that are not trained on, with the averaged weights.

        Normalizations use the statistics of the validation images, of which there are at most `images`.
        """
        if architectures == 0:
            return {}
        members = [self.member(i, "validation") for i in range(architectures)]
        count = min(images, self.images.size("validation") or images)
        examples = self.images.batch(self.seed, 0, count, "validation")
        inputs, labels = (t.to(self.ghn.device) for t in examples)
        found = []
        with torch.no_grad():
            predicted = functional_call(
                self.ghn, self.average, ([m.graph for m in members], [m.data for m in members])
            )
            for member, weights in zip(members, predicted, strict=True):
                outputs = functional_call(member.network, weights, (inputs,))
                found.append(float((outputs.argmax(-1) == labels).float().mean()))
        return {"validation_accuracy": sum(found) / len(found), "validation_accuracy_least": min(found)}

    def _precision(self) -> torch.autocast:
        """Return the context that the arithmetic runs in."""
        wanted = self.config.precision == "bfloat16"
        return torch.autocast(self.ghn.device.type, torch.bfloat16, enabled=wanted)


def _structure(network: nn.Module) -> nn.Module:
    """Take the numbers out of a network's parameters: those of a pool of thousands would fill the memory."""
    stand_ins: dict[int, nn.Parameter] = {}
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = nn.Parameter(torch.empty_like(parameter, device="meta"))
            setattr(module, name, stand_ins.setdefault(id(parameter), empty))
    return network
