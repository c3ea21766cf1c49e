"""What a control is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from metainit.domains.base import Domain
from metainit.evidence.curves import Start

BUDGET = 4000
"""Gradient evaluations of a trained control where it is not known what the start cost."""


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Setting:
    """What controls are made from.

    `network`: its architecture is used, not its weights. `prior`: the learned start they stand beside, if
    any. `seed`: of everything that is drawn. `budget`: how many gradient evaluations of one task's support a
    trained control may cost. `note`: told what takes long.
    """

    network: nn.Module
    domain: Domain
    prior: Start | None = None
    seed: int = 0
    budget: int = BUDGET
    note: Callable[[str], None] = _silent


Control = Callable[[Setting], Start | None]
"""Returns a start whose routine is searched, or None where there is nothing to make it from.

Raises `metainit.errors.MismatchError` where the network cannot have such a start.
"""
