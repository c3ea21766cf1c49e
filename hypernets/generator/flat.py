"""A network's parameters as one vector, and back: the order of `named_parameters`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from metainit.errors import MismatchError


@dataclass(frozen=True)
class FlatLayout:
    """Names and shapes of parameters, in the order in which they lie in a vector.

    Example:
        >>> layout = FlatLayout.of({'weight': torch.ones(2, 3), 'bias': torch.zeros(2)})
        >>> layout.size, layout.flatten({'weight': torch.ones(2, 3), 'bias': torch.zeros(2)}).shape
        (8, torch.Size([8]))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> FlatLayout:
        """Return the layout of some parameters, in the order in which they are given."""
        return cls(tuple(parameters), tuple(tuple(value.shape) for value in parameters.values()))

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers each parameter has."""
        return tuple(prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(self.sizes)

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return parameters ``(..., *shape)`` with any leading axes as vectors ``(..., size)``.

        Raises:
            MismatchError: names or shapes are others.
        """
        fits = parameters.keys() == set(self.names) and all(
            parameters[name].shape[parameters[name].dim() - len(shape) :] == shape
            for name, shape in zip(self.names, self.shapes, strict=True)
        )
        if not fits:
            given = ", ".join(f"{name} {tuple(value.shape)}" for name, value in parameters.items())
            expected = ", ".join(f"{n} {s}" for n, s in zip(self.names, self.shapes, strict=True))
            raise MismatchError(
                f"expected the parameters {expected}; got {given}: use the network they are of"
            )
        parts = [
            parameters[name].flatten(parameters[name].dim() - len(shape))
            if shape
            else parameters[name].unsqueeze(-1)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ]
        return torch.cat(parts, -1)

    def columns(self, names: Collection[str]) -> Tensor:
        """Return where the numbers of some parameters lie in a vector, in its order, int64."""
        numbers = self.unflatten(torch.arange(self.size))
        return torch.cat([numbers[name].flatten() for name in self.names if name in names])

    def widened(self, vectors: Tensor, names: Collection[str]) -> Tensor:
        """Return vectors of some of the parameters as vectors of all, ``(..., size)``, zero elsewhere."""
        columns = self.columns(names)
        if len(columns) == self.size:
            return vectors
        whole = vectors.new_zeros(*vectors.shape[:-1], self.size)
        whole[..., columns.to(vectors.device)] = vectors
        return whole

    def unflatten(self, vectors: Tensor) -> dict[str, Tensor]:
        """Return vectors ``(..., size)`` as views of parameters ``(..., *shape)``.

        Raises:
            MismatchError: the vectors have another length.
        """
        if vectors.shape[-1] != self.size:
            raise MismatchError(f"expected vectors of {self.size} numbers, got {vectors.shape[-1]}")
        parts = torch.split(vectors, list(self.sizes), -1)
        return {
            name: part.view((*part.shape[:-1], *shape))
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }
