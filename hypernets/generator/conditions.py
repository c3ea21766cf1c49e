"""What is known of a task, as one vector: class, text, observation, or any of them left out.

Letters: `B` tasks, `E` the width of the embedding.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from hypernets.generator.config import ConditionConfig
from hypernets.generator.text import text_encoder
from metainit.errors import ConditionError

Condition = int | str | None
"""A class by number or by name, or a text; None where nothing is said."""


@dataclass(frozen=True)
class Conditions:
    """Conditions of B tasks, by kind: what an embedding reads ``(B, ...)``, and who has it, (B) bool."""

    values: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, which: slice | Tensor) -> Conditions:
        """Return those of some of the tasks: a slice, or a tensor of indices."""
        count = len(range(self.count)[which]) if isinstance(which, slice) else _count(which)
        return Conditions(
            {k: v[which] for k, v in self.values.items()},
            {k: v[which] for k, v in self.present.items()},
            count,
        )

    def repeated(self, count: int) -> Conditions:
        """Return the conditions of one task for `count` of them."""
        return self[torch.zeros(count, dtype=torch.int64)]

    def hidden(self, keep: Mapping[str, Tensor]) -> Conditions:
        """Return the same with a kind left out where `keep` (B) of it is false."""
        return Conditions(self.values, {k: v & keep[k] for k, v in self.present.items()}, self.count)

    def none(self) -> Conditions:
        """Return the same with everything left out."""
        return self.hidden({k: torch.zeros_like(v) for k, v in self.present.items()})

    def to(self, device: torch.device) -> Conditions:
        """Return the same on a device."""
        values = {k: v.to(device) for k, v in self.values.items()}
        return Conditions(values, {k: v.to(device) for k, v in self.present.items()}, self.count)


def _count(which: Tensor) -> int:
    """Return how many rows a mask or a tensor of indices picks, wherever it lies."""
    return int(which.sum()) if which.dtype == torch.bool else len(which)


def joined(parts: Sequence[Conditions]) -> Conditions:
    """Return the conditions of all tasks of some batches, which may each have other kinds."""
    return Conditions(
        {k: torch.cat([p.values[k] for p in parts]) for k in parts[0].values},
        {k: torch.cat([p.present[k] for p in parts]) for k in parts[0].present},
        sum(p.count for p in parts),
    )


def conditions_of(
    config: ConditionConfig,
    count: int,
    *,
    classes: Tensor | None = None,
    texts: Sequence[str] = (),
    observations: Tensor | None = None,
) -> Conditions:
    """Return the conditions of some tasks; a kind that is not given is absent for all of them.

    Args:
        config: what the generator takes.
        count: how many tasks there are.
        classes: (count) int64.
        texts: one a task.
        observations: ``(count, *shape)``.

    Raises:
        ConditionError: a kind that the generator does not take, a class that it does not know, or an
            observation of another shape or with numbers that are not finite.

    Example:
        >>> config = ConditionConfig(classes=3)
        >>> conditions_of(config, 2, classes=torch.tensor([0, 2])).values['class']
        tensor([0, 2])
        >>> conditions_of(config, 1, classes=torch.tensor([3]))
        Traceback (most recent call last):
        ...
        metainit.errors.ConditionError: no class 3: the generator takes class (0 to 2)
    """
    given = {"class": classes, "text": texts or None, "observation": observations}
    known = described(config)
    if alien := sorted(kind for kind, value in given.items() if value is not None and kind not in known):
        raise ConditionError(
            f"no {' or '.join(alien)} can be given: {takes(config)}. Leave it out, or train a generator that "
            "is told it (told.kinds)"
        )
    values: dict[str, Tensor] = {}
    if "class" in known:
        chosen = torch.zeros(count, dtype=torch.int64) if classes is None else classes.cpu().long()
        if wrong := [c for c in chosen.tolist() if not 0 <= c < config.classes]:
            raise ConditionError(f"no class {wrong[0]}: {takes(config)}")
        values["class"] = chosen
    if "text" in known:
        values["text"] = text_encoder(config.text)(list(texts) if texts else [""] * count)
    if "observation" in known:
        shape = config.observation
        seen = torch.zeros(count, *shape) if observations is None else observations.detach().cpu().float()
        if tuple(seen.shape[1:]) != shape:
            raise ConditionError(f"no observation of the shape {tuple(seen.shape[1:])}: {takes(config)}")
        if not bool(torch.isfinite(seen).all()):
            raise ConditionError("an observation has numbers that are not finite")
        values["observation"] = _pooled(seen, config.thumbnail)
    if wrong_count := {k: len(v) for k, v in values.items() if len(v) != count}:
        raise ConditionError(f"expected the conditions of {count} tasks, got {wrong_count}")
    present = {k: torch.full((count,), given[k] is not None) for k in values}
    return Conditions(values, present, count)


def standardized(config: ConditionConfig, observations: Tensor) -> Tensor:
    """Return observations ``(B, *shape)`` in [0, 1] as the domain of the zoo gives them.

    Others, of a wrong shape, are left as they are: they are refused where they are read.
    """
    if not config.observation_mean or tuple(observations.shape[1:]) != config.observation:
        return observations
    mean, deviation = (
        torch.tensor(value, device=observations.device)[:, None, None]
        for value in (config.observation_mean, config.observation_deviation)
    )
    return (observations.float() - mean) / deviation


def as_condition(value: Any) -> Condition:
    """Return a condition as what generators take: any kind of integer is the number of a class.

    Raises:
        ConditionError: it is neither a class nor a text.

    Example:
        >>> as_condition(torch.tensor(3)), as_condition('ring')
        (3, 'ring')
    """
    if value is None or isinstance(value, str):
        return value
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise ConditionError(
            f"a condition is the number or name of a class, or a text, got {type(value).__name__}"
        ) from error


def described(config: ConditionConfig) -> dict[str, str]:
    """Return what a generator takes, by kind, in words.

    Example:
        >>> described(ConditionConfig(classes=2, class_names=('cat', 'dog')))
        {'class': '0 to 1, or cat, dog'}
    """
    numbers = tuple(map(str, range(config.classes)))
    named = bool(config.class_names) and config.class_names != numbers
    names = f", or {', '.join(config.class_names)}" if named else ""
    shape = " x ".join(map(str, config.observation))
    found = {
        "class": f"0 to {config.classes - 1}{names}" if config.classes else "",
        "text": "a description" if config.text else "",
        "observation": f"of the shape {shape}" if shape else "",
    }
    return {kind: words for kind, words in found.items() if words}


def takes(config: ConditionConfig) -> str:
    """Return what a generator takes in a sentence."""
    said = "; ".join(f"{kind} ({words})" for kind, words in described(config).items())
    return f"the generator takes {said or 'no condition'}"


def _pooled(images: Tensor, side: int) -> Tensor:
    """Return images ``(..., height, width)`` averaged to a side, or as they are where it is 0."""
    if side == 0:
        return images
    flat = images.reshape(-1, 1, *images.shape[-2:])
    return adaptive_avg_pool2d(flat, side).reshape(*images.shape[:-2], side, side)


class Conditioner(nn.Module):
    """The sum of an embedding of each kind of condition, with a learned one for each kind that is absent.

    Shapes: `Conditions` of B tasks -> (B, E).

    Example:
        >>> conditioner = Conditioner(ConditionConfig(classes=3), 8)
        >>> conditioner(conditions_of(conditioner.config, 2, classes=torch.tensor([0, 1]))).shape
        torch.Size([2, 8])
    """

    def __init__(self, config: ConditionConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        encoders: dict[str, nn.Module] = {}
        if config.classes:
            encoders["class"] = nn.Embedding(config.classes, width)
        if config.text:
            encoders["text"] = Perceptron(text_encoder(config.text).size, width)
        if config.observation:
            sides = (config.thumbnail,) * 2 if config.thumbnail else config.observation[-2:]
            shape = (*config.observation[:-2], *sides)
            ways = shape[0] if config.encoder == "examples" else 0
            encoders["observation"] = Examples(ways, prod(shape[2:]), width) if ways else Flat(shape, width)
        self.encoders = nn.ModuleDict(encoders)
        self.absent = nn.ParameterDict({kind: nn.Parameter(torch.zeros(width)) for kind in encoders})

    def forward(self, conditions: Conditions) -> Tensor:
        """Return the embeddings (B, E)."""
        total = next(iter(self.absent.values())) if self.absent else torch.zeros(self.width)
        total = total.new_zeros(conditions.count, self.width)
        for kind, encoder in self.encoders.items():
            shown = conditions.present[kind].unsqueeze(-1)
            total = total + torch.where(shown, encoder(conditions.values[kind]), self.absent[kind])
        return total


class Perceptron(nn.Module):
    """A linear map plus a hidden layer of the same width: ``(..., inputs)`` -> ``(..., width)``.

    The linear path learns what a linear regression can, from the first step on.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.hidden = nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, values: Tensor) -> Tensor:
        """Return the map's values."""
        total: Tensor = self.linear(values) + self.hidden(values)
        return total


class Flat(nn.Module):
    """Reads an observation ``(B, *shape)`` as one vector: (B, E)."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.perceptron = Perceptron(prod(shape), width)

    def forward(self, observations: Tensor) -> Tensor:
        """Return the embeddings (B, E)."""
        embedded: Tensor = self.perceptron(observations.flatten(1))
        return embedded


class Examples(nn.Module):
    """Reads examples ``(B, ways, shots, ...)``: the shots' order does not matter, the ways' does; (B, E)."""

    def __init__(self, ways: int, size: int, width: int) -> None:
        super().__init__()
        self.example = Perceptron(size, width)
        self.together = nn.Linear(ways * width, width)

    def forward(self, examples: Tensor) -> Tensor:
        """Return the embeddings (B, E)."""
        prototypes = self.example(examples.flatten(3)).mean(2)
        embedded: Tensor = self.together(prototypes.flatten(1))
        return embedded
