"""Training a generator on members: the mean, the diffusion of what it leaves, the one-step student.

All steps are counted through, and all that a step draws follows from the seed and its number. Nothing here
knows of files, workers or logs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hypernets.averaged import decay_at, saved_in, state_of
from hypernets.generator.conditions import Conditions
from hypernets.generator.config import GeneratorTrainingConfig
from hypernets.generator.distillation import Pairs, student_loss, teach
from hypernets.generator.mean import TaskLoss
from hypernets.generator.members import Members
from hypernets.generator.model import Generator
from hypernets.generator.usable import known_conditions, require_usable
from hypernets.generator.validation import denoising_loss, mean_error
from metainit.domains.seeding import generator_of
from metainit.errors import DataError, DivergenceError
from metainit.meta.schedule import warm_up_and_cosine

Phase = Literal["mean", "diffusion", "student"]


@dataclass(frozen=True)
class Gradient:
    """The gradient of the summed losses of some members by the parameters of the phase."""

    parameters: list[Tensor]
    loss: Tensor
    members: int


class GeneratorTraining:
    """A generator on its way: its weights, their average, and the optimizer of the phase.

    What the mean leaves of a member that it was trained on is too little: it has learned part of the member
    by heart, and a diffusion of such residuals would draw too narrow. So the mean is cross-fitted: beside the
    mean that is kept, each of `folds` others learns from all members but those of its fold, and the residual
    of a member is measured from the one that has not seen it, with what is hidden of its condition hidden
    there, too.

    Args:
        config: steps and optimizer.
        generator: what is trained; its standardization is taken from the members at once.
        members: what it learns from.
        held_out: fits that it never sees, which say when a sample is a copy, and what `validate` is of.
        seed: of everything that is drawn.
        task_loss: of deltas on members' tasks, where `config.task_weight` is not zero.

    Raises:
        ConditionError: the members lack a condition that the generator takes.
        DataError: there are too few members, they are all the same, or one is not finite.
        MismatchError: the members are of another network.
    """

    def __init__(
        self,
        config: GeneratorTrainingConfig,
        generator: Generator,
        members: Members,
        held_out: Members,
        seed: int = 0,
        task_loss: TaskLoss | None = None,
    ) -> None:
        if config.task_weight and task_loss is None:
            raise DataError(
                "training.task_weight is set, but there is no task loss: pass one, or set it to 0"
            )
        require_usable(generator, members, held_out)
        self.config, self.generator, self.seed, self.task_loss = config, generator, seed, task_loss
        self.step = 0
        device = generator.device
        self.deltas, self.held_out = members.deltas.to(device), held_out.deltas.to(device)
        self.conditions = known_conditions(generator, members).to(device)
        self.held_out_conditions = known_conditions(generator, held_out).to(device)
        generator.fit(self.deltas, self.held_out, config.closeness)
        self.values = generator.standardized(self.deltas)
        order = torch.randperm(len(members), generator=generator_of(seed, "folds"))
        count = config.folds if generator.mean is not None and config.folds > 1 else 0
        self.fold = order.argsort().to(device) % max(1, count)
        means = [] if generator.mean is None else [generator.mean] * count
        folds = nn.ModuleList([copy.deepcopy(mean) for mean in means])
        self.models = nn.ModuleDict({"generator": generator, "folds": folds})
        self.average = {k: v.detach().clone() for k, v in self.models.state_dict().items()}
        has_mean = generator.mean is not None or generator.scale is not None
        lengths = (
            config.mean_steps if has_mean else 0,
            config.steps,
            config.distillation_steps if generator.student is not None else 0,
        )
        self.ends = (lengths[0], lengths[0] + lengths[1], sum(lengths))
        self._pairs: Pairs | None = None
        self._arrive()

    @property
    def total(self) -> int:
        """The steps of all phases that the generator has."""
        return self.ends[-1]

    @property
    def phase(self) -> Phase:
        """What the next step trains."""
        if self.step < self.ends[0]:
            return "mean"
        return "diffusion" if self.step < self.ends[1] or self.generator.student is None else "student"

    def active(self) -> dict[str, nn.Parameter]:
        """Return the parameters that the phase trains, by their name in `models`."""
        parts = {
            "mean": ("generator.mean.", "generator.scale.", "folds."),
            "diffusion": ("generator.conditioner.", "generator.denoiser."),
            "student": ("generator.student.",),
        }[self.phase]
        return {k: v for k, v in self.models.named_parameters() if k.startswith(parts)}

    def gradient(self, share: slice = slice(None)) -> Gradient:
        """Return the gradient of the next step, summed over a share of its members."""
        drawn = generator_of(self.seed, "step", self.step)
        count = self.config.batch
        known = self.pairs.count if self.phase == "student" else len(self.values)
        indices = torch.randint(known, (count,), generator=drawn).to(self.values.device)
        parameters = list(self.active().values())
        if not len(indices[share]):
            return Gradient([torch.zeros_like(p) for p in parameters], self.values.new_zeros(()), 0)
        loss = self._losses(indices, drawn, share)
        found = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        return Gradient(filled, loss.detach().sum(), len(loss))

    def _losses(self, indices: Tensor, drawn: torch.Generator, share: slice) -> Tensor:
        """Return the loss of each member of a share; all is drawn for the whole batch, whatever the share."""
        if self.phase == "student":
            return student_loss(self.generator, self.pairs[indices[share]])
        keep = {
            kind: (torch.rand(len(indices), generator=drawn) >= self.config.dropout).to(indices.device)
            for kind in self.conditions.present
        }
        conditions = self.conditions[indices].hidden(keep)
        if self.phase == "mean":
            return self._mean_losses(indices[share], conditions[share])
        time = self.generator.process.draw(len(indices), drawn).to(indices.device)
        noise = torch.randn(len(indices), self.values.shape[-1], generator=drawn).to(indices.device)
        return self._diffusion_losses(indices[share], conditions[share], time[share], noise[share])

    def _mean_losses(self, indices: Tensor, conditions: Conditions) -> Tensor:
        generator, values = self.generator, self.values[indices]
        total = values.new_zeros(len(indices))
        if generator.mean is not None:
            total = total + self._mean_loss(generator.predicted_mean(conditions), indices, conditions)
            for number, fold in enumerate(self._folds()):
                seen = self.fold[indices] != number
                losses = self._mean_loss(fold(conditions[seen]), indices[seen], conditions[seen])
                total = total.index_add(0, seen.nonzero().flatten(), losses)
        if generator.scale is not None:
            wanted = generator.scale.standardized(generator.select(self.deltas[indices]))
            total = total + (generator.scale.regressor(conditions) - wanted).square().squeeze(-1)
        return total

    def _mean_loss(self, predicted: Tensor, indices: Tensor, conditions: Conditions) -> Tensor:
        losses = (predicted - self.values[indices]).square().mean(-1)
        if self.config.task_weight and self.task_loss is not None and len(indices):
            deltas = self.generator.deltas(predicted, conditions)
            losses = losses + self.config.task_weight * self.task_loss(deltas, indices)
        return losses

    def _diffusion_losses(
        self, indices: Tensor, conditions: Conditions, time: Tensor, noise: Tensor
    ) -> Tensor:
        generator, process = self.generator, self.generator.process
        clean = generator.residual(self._left(indices, conditions))
        condition = generator.conditioner(conditions)
        noisy = process.noisy(clean, noise, time)
        predicted = process.predict(generator.denoiser, noisy, time, condition)
        return (predicted - process.target(clean, noise, time)).square().mean(-1)

    @torch.no_grad()
    def _left(self, indices: Tensor, conditions: Conditions) -> Tensor:
        """Return what the mean that has not seen a member leaves of it, (B, d)."""
        folds = self._folds()
        if not folds:
            return self.values[indices] - self.generator.predicted_mean(conditions)
        predicted = torch.stack([fold(conditions) for fold in folds])
        return self.values[indices] - predicted[self.fold[indices], torch.arange(len(indices))]

    def _folds(self) -> list[nn.Module]:
        return list(self.models["folds"].children())

    @property
    def pairs(self) -> Pairs:
        """What the student learns from; made when it is first asked for, from what training has left."""
        if self._pairs is None:
            self._pairs = teach(self.generator, self.conditions, self.config, self.seed)
        return self._pairs

    def apply(self, gradient: Gradient) -> float:
        """Take the step, with the gradient of all members of it, and return the mean loss.

        Raises:
            DivergenceError: loss or gradient is not finite; nothing is changed.
        """
        values = [g / max(1, gradient.members) for g in gradient.parameters]
        norm = torch.stack([v.norm() for v in values]).norm()
        if gradient.members == 0 or not bool(torch.isfinite(gradient.loss) & torch.isfinite(norm)):
            raise DivergenceError(
                f"step {self.step + 1} ({self.phase}) has no finite loss and gradient: lower "
                "training.step_size, or training.mean_step_size"
            )
        active, first = self.active(), (0, *self.ends)[("mean", "diffusion", "student").index(self.phase)]
        optimizer = self._optimizer
        for parameter, value in zip(active.values(), values, strict=True):
            parameter.grad = value * (self.config.clip / norm).clamp_max(1.0)
        for group in optimizer.param_groups:
            group["lr"] = self._step_size()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.step += 1
        done = self.step - first
        decay = decay_at(done, self.config.averaging)
        for name, value in active.items():
            self.average[name].lerp_(value.detach(), 1 - decay)
        self._arrive()
        return float(gradient.loss) / gradient.members

    def _arrive(self) -> None:
        """Leave a phase behind: its average is the result, and what the next phase starts from is taken."""
        if self.step in self.ends[:-1]:
            self.models.load_state_dict(self.average)
            if self.step == self.ends[0]:
                everyone = torch.arange(len(self.values), device=self.values.device)
                if self.generator.mean is not None:
                    self.generator.residual.fit(self._left(everyone, self.conditions))
            if self.step == self.ends[1] and self.generator.student is not None:
                self.generator.student.load_state_dict(self.generator.denoiser.state_dict())
            self.average = {k: v.detach().clone() for k, v in self.models.state_dict().items()}
        if self.step in (0, *self.ends):
            self._optimizer = self._new_optimizer()

    def _new_optimizer(self) -> torch.optim.AdamW:
        decay = self.config.weight_decay
        return torch.optim.AdamW(
            self.active().values(), lr=self.config.step_size, weight_decay=decay, fused=True
        )

    def _step_size(self) -> float:
        number = ("mean", "diffusion", "student").index(self.phase)
        first, last = (0, *self.ends)[number], self.ends[number]
        base = self.config.mean_step_size if number == 0 else self.config.step_size
        return base * warm_up_and_cosine(self.step - first, last - first, self.config.warm_up)

    def state(self) -> dict[str, Tensor]:
        """Return everything that the next steps depend on, beside the members."""
        return state_of(self.models.state_dict(), self.average, self.step, self._optimizer)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        saved = saved_in(state)
        self.models.load_state_dict(saved.model)
        self.average, self.step, self._pairs = saved.average, saved.step, None
        self._optimizer = self._new_optimizer()
        saved.load_into(self._optimizer)

    def result(self) -> dict[str, Tensor]:
        """Return the averaged state of the generator by name."""
        cut = len("generator.")
        return {k[cut:]: v.clone() for k, v in self.average.items() if k.startswith("generator.")}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return how well the averaged weights do on held-out fits.

        ``validation_mean_error``: the squared error of the predicted mean, as a part of that of the members'
        overall mean. ``validation_loss``: the denoiser's, from noise that is always the same. Of the phase
        alone, where it has no meaning before.
        """
        if not len(self.held_out):
            return {}
        generator = copy.deepcopy(self.generator)
        generator.load_state_dict(self.result())
        found = mean_error(generator, self.held_out, self.held_out_conditions)
        if self.phase == "mean":
            return found
        return found | denoising_loss(generator, self.held_out, self.held_out_conditions, self.seed)
