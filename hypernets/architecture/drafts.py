"""Nodes in the making: what a recording is turned into before it becomes a graph."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from hypernets.architecture.graph import Operation, Role


@dataclass(frozen=True)
class Use:
    """A parameter where it is used.

    `order`: which of its dimensions each dimension of the view is, while that is known; `role`: once a layer
    has given it one; `spatial`: of the map that a linear weight sees flattened.
    """

    name: str
    shape: tuple[int, ...]
    order: tuple[int, ...] | None
    role: Role | None = None
    transposed: bool = False
    spatial: tuple[int, int] = (1, 1)

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether at most one of the dimensions has more than one element."""
        return self.numel == max(self.shape, default=1)

    def over_map(self, height: int, width: int) -> Use:
        """Return a linear layer's use of a weight, (out, in), whose inputs are a flattened map."""
        fits = len(self.shape) == 2 and self.role is Role.WEIGHT and not self.transposed
        if not fits or self.shape[1] % (height * width):
            return self
        return replace(self, spatial=(height, width))

    def as_role(self, role: Role, transposed: bool = False) -> Use:
        """Return the use in a role, unless it has one already."""
        return self if self.role is not None else replace(self, role=role, transposed=transposed)


@dataclass(frozen=True)
class Operand:
    """A draft's result as another's operand. `numbers`: equal where the numbers are, up to a constant."""

    draft: Draft
    numbers: int


@dataclass(eq=False)
class Draft:
    """A node in the making; `name` is its operator's."""

    operation: Operation
    name: str
    uses: list[Use] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    groups: int = 1
    stride: int = 1
    dilation: int = 1
    kernel: int = 1


@dataclass(frozen=True)
class Data:
    """A value that a draft makes, possibly seen through contracted calls."""

    draft: Draft
    numbers: int


@dataclass(frozen=True)
class Learned:
    """A value that only parameters and constants determine; no node yet.

    `call`: the number of the call that computed it, None while it is one parameter in another form.
    """

    uses: tuple[Use, ...]
    call: int | None = None


@dataclass(frozen=True)
class Fixed:
    """A value that neither a parameter nor floating-point data determine; `inputs` of integers may."""

    inputs: frozenset[int] = frozenset()


State = Data | Learned | Fixed
