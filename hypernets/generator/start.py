"""A generator as an initialization: it draws starts for the network of its base."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hypernets.generator.checkpoints import drawn_checkpoint, read_generator
from hypernets.generator.conditions import (
    Condition,
    Conditions,
    as_condition,
    conditions_of,
    standardized,
    takes,
)
from hypernets.generator.config import ConditionConfig
from hypernets.generator.description import What, description_of
from hypernets.generator.drawing import Row, draw
from hypernets.generator.sampling import Sampler
from metainit.adaptation import Progress, Task
from metainit.card import AdaptationRoutine, Card
from metainit.checkpoint import Checkpoint
from metainit.errors import ConditionError, SourceError, suggestion
from metainit.fill import check_fits, fill
from metainit.initialization import run_stored
from metainit.observed import observed

LARGEST_COUNT = 65_536
LONGEST_TEXT = 10_000
SLACK = 0.5
"""How far beyond the range of what was learned from an observation may lie, in widths of that range."""
LONGEST_NUMBER = 18
"""Digits of the number of a class."""


@dataclass(frozen=True)
class Wanted:
    """One start that is wanted: its seed, and what is known of its task."""

    seed: int
    condition: Condition = None
    observation: Tensor | None = None

    @property
    def told(self) -> tuple[Condition, type, int]:
        """What tells its task from others."""
        return self.condition, type(self.condition), id(self.observation)


class Generated:
    """A generator as a start for the network that its base is of.

    Raises:
        CheckpointError: the card does not say what the generator is made of, or the tensors are not those.
    """

    def __init__(self, stored: Checkpoint, evidence: dict[str, Any] | None = None) -> None:
        self.checkpoint = stored
        self.card: Card = stored.card
        self.evidence = evidence
        self.generator, self.base = read_generator(stored)
        self.what: What = description_of(stored.card).start

    @property
    def observed_shape(self) -> tuple[int, ...]:
        """The shape of an observation, empty where the generator takes none."""
        return self.generator.config.conditions.observation

    def init_(
        self,
        network: nn.Module,
        *,
        seed: int | None = None,
        example_inputs: Tensor | None = None,
        condition: Condition = None,
        observation: Any = None,
        what: What | None = None,
        steps: int = 20,
        guidance: float = 1.0,
        sampler: Sampler | None = None,
    ) -> nn.Module:
        """Fill the network in place with a start of its own and return it.

        Args:
            network: of the same parameters and buffers as the base.
            seed: of the draw; drawn itself where it is None.
            example_inputs: not needed.
            condition: a class, a class name or a text, of what the generator takes.
            observation: of the task, without a batch axis: a tensor, an array or nested lists; images and
                examples in [0, 1], as they are read.
            what: ``sample``, ``one_step`` or ``mean`` (`Generator.sample`); what the card says where it is
                None.
            steps: of the sampler.
            guidance: how much the condition counts.
            sampler: which; None for the one that needs fewest steps.

        Raises:
            ConditionError: the generator does not take such a condition or observation.
            CopyError: it gives copies of members alone.
            DivergenceError: a weight would not be finite.
            MismatchError: the network is another one than the base's.
            RecipeError: the generator has no such part. Nothing is changed in any of these cases.
        """
        source = f"generator {self.card.name!r}"
        check_fits(network, self.base.state, source)
        (drawn,) = self.generate(
            1,
            seed,
            condition=condition,
            observation=observation,
            what=what,
            steps=steps,
            guidance=guidance,
            sampler=sampler,
        )
        return fill(network, drawn.weights, source)

    def generate(
        self,
        count: int,
        seed: int | None = None,
        *,
        condition: Condition = None,
        observation: Any = None,
        what: What | None = None,
        steps: int = 20,
        guidance: float = 1.0,
        sampler: Sampler | None = None,
    ) -> list[Checkpoint]:
        """Return starts under one condition, each a checkpoint of kind ``weights``.

        Start i has the seed ``seed + i``, which is on its card: asked for alone with that one it is the same
        start, to the last bit.

        Raises:
            ConditionError: the generator does not take such a condition or observation.
            CopyError: it gives copies of members alone.
            DivergenceError: a weight would not be finite.
            RecipeError: the generator has no such part.
            SourceError: the count is not between 1 and `LARGEST_COUNT`, or the seed is negative.
        """
        if seed is not None and seed < 0:
            raise SourceError(f"seed: expected 0 or more, got {seed}")
        if not 1 <= count <= LARGEST_COUNT:
            raise SourceError(f"{count} starts were asked for, expected 1 to {LARGEST_COUNT}")
        first = int(torch.randint(2**62, ())) if seed is None else seed
        named, seen = as_condition(condition), observed(observation)
        wanted = [Wanted(first + number, named, seen) for number in range(count)]
        return self.draw(wanted, what=what, steps=steps, guidance=guidance, sampler=sampler)

    def draw(
        self,
        wanted: Sequence[Wanted],
        *,
        what: What | None = None,
        steps: int = 20,
        guidance: float = 1.0,
        sampler: Sampler | None = None,
    ) -> list[Checkpoint]:
        """Return a start for each that is wanted, together; each has the bytes that it has alone.

        Raises:
            CopyError: one of them is a copy of a member, however often it is drawn.
            MetainitError: as for `generate`, for one of them.
        """
        chosen = self.what if what is None else what
        how: dict[str, Any] = {"what": chosen}
        if chosen == "sample":
            how |= {"steps": steps, "guidance": guidance, "sampler": sampler}
        told: dict[tuple[Condition, type, int], tuple[Conditions, Condition, str | None]] = {}
        for one in wanted:
            seen = one.observation
            if one.told not in told:
                known = self.conditions(one.condition, seen)
                meant, names = self.meant(one.condition), self.generator.config.conditions.class_names
                # One class, however it was named, has one card, and so one digest.
                meant = names[meant] if isinstance(meant, int) and names else meant
                told[one.told] = (known, meant, None if seen is None else _fingerprint(seen))
        rows = [Row(told[one.told][0], one.seed) for one in wanted]
        drawn = draw(self.generator, rows, chosen, steps=steps, guidance=guidance, sampler=sampler)
        return [
            drawn_checkpoint(
                self.checkpoint,
                self.base,
                delta,
                one.seed,
                {
                    **how,
                    "condition": told[one.told][1],
                    "observation": told[one.told][2],
                    "refused_copies": int(refused),
                },
            )
            for one, delta, refused in zip(wanted, drawn.deltas, drawn.refused, strict=True)
        ]

    def conditions(self, condition: Condition = None, observation: Any = None) -> Conditions:
        """Return the conditions of one task.

        A name of a class is that class, and so is its number, also as a text; other texts are descriptions.

        Raises:
            ConditionError: the generator does not take it.
        """
        config = self.generator.config.conditions
        meant, seen = self.meant(condition), observed(observation)
        number = meant if isinstance(meant, int) else None
        return conditions_of(
            config,
            1,
            # Where there are no classes, which one it would be does not matter.
            classes=None if number is None else torch.tensor([number if config.classes else 0]),
            texts=(meant,) if isinstance(meant, str) else (),
            observations=None if seen is None else standardized(config, _in_range(config, seen)[None]),
        )

    def meant(self, condition: Condition) -> Condition:
        """Return what a condition means: the number of a class, however it was named, or a description.

        Raises:
            ConditionError: the generator has no such class.
        """
        config, condition = self.generator.config.conditions, as_condition(condition)
        number = condition if isinstance(condition, int) else None
        if isinstance(condition, str):
            if len(condition) > LONGEST_TEXT:
                raise ConditionError(
                    f"a condition has at most {LONGEST_TEXT} characters, got {len(condition)}"
                )
            if condition in config.class_names:
                number = config.class_names.index(condition)
            elif config.classes and condition.isascii() and condition.isdecimal():
                # Python itself refuses to read thousands of digits; no generator has so many classes.
                number = int(condition.lstrip("0")[: LONGEST_NUMBER + 1] or "0")
            elif config.class_names and not config.text:
                hint = suggestion(condition, config.class_names)
                raise ConditionError(f"{self.card.name!r} knows no class {condition!r}: {hint}")
        if number is not None and config.classes and not 0 <= number < config.classes:
            shown = number if abs(number) < 10**LONGEST_NUMBER else "of so large a number"
            raise ConditionError(f"no class {shown}: {takes(config)}")
        return condition if number is None else number

    def adapt(
        self,
        network: nn.Module,
        task: Task,
        routine: AdaptationRoutine | None = None,
        progress: Progress | None = None,
    ) -> nn.Module:
        """Fit the network to a task, in place, with the routine of the base unless one is given.

        Raises:
            DivergenceError: the loss is not finite; the network keeps the weights it had.
            SourceError: neither the card nor the call has a routine.
        """
        return run_stored(self.checkpoint, network, task, routine, progress)


def _in_range(config: ConditionConfig, seen: Tensor) -> Tensor:
    """Return an observation whose numbers could be of the tasks that were learned from.

    Raises:
        ConditionError: they are far beyond those: a generator would answer with weights of no use.
    """
    if config.observation_range is None or not seen.numel() or not bool(torch.isfinite(seen).all()):
        return seen
    low, high = config.observation_range
    least, most, slack = float(seen.min()), float(seen.max()), SLACK * (high - low)
    if least < low - slack or most > high + slack:
        raise ConditionError(
            f"the observation has numbers from {least:g} to {most:g}, those that were learned from lay "
            f"between {low:g} and {high:g}: scale it as they are (images and examples to [0, 1])"
        )
    return seen


def _fingerprint(observation: Tensor) -> str:
    """Return the SHA-256 (hex) of an observation's numbers, which are too many for a card."""
    numbers = observation.detach().cpu().float().contiguous()
    return hashlib.sha256(numbers.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
