"""Controls by name. Which of them stand beside a start is the domain's to say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from metainit.errors import MismatchError, RecipeError, suggestion
from metainit.evidence.controls.analytic import analytic
from metainit.evidence.controls.base import Control, Setting
from metainit.evidence.controls.joint import joint
from metainit.evidence.controls.signal import matched, mean_signal, shuffled
from metainit.evidence.curves import Start

ANALYTIC = ("default", "kaiming", "orthogonal", "siren", "siren_scaled", "lsuv")

CONTROLS: Mapping[str, Control] = MappingProxyType(
    {
        **{name: analytic(name) for name in ANALYTIC},
        "mean_signal": mean_signal,
        "matched": matched,
        "shuffled": shuffled,
        "joint": joint,
    }
)
"""The controls that a domain can name."""


def make_controls(
    setting: Setting, names: Sequence[str] | None = None, left_out: dict[str, str] | None = None
) -> list[Start]:
    """Return controls in the registry's order; those that need a prior are missing where there is none.

    Args:
        setting: what they are made from.
        names: which ones; the domain's unless given.
        left_out: takes up the name and the reason of those that the network cannot have.

    Raises:
        RecipeError: a name is not in `CONTROLS`.
        MismatchError: the network cannot have one of them, and `left_out` is not given.
    """
    wanted = check_names(setting.domain.controls if names is None else names)
    made = []
    for name, control in CONTROLS.items():
        if name not in wanted:
            continue
        try:
            start = control(setting)
        except MismatchError as error:
            if left_out is None:
                raise
            left_out[name] = str(error)
            continue
        if start is not None:
            made.append(start)
    return made


def check_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names, which have to be those of controls.

    Raises:
        RecipeError: one is not.

    Example:
        >>> check_names(['joint'])
        ['joint']
    """
    for name in names:
        if name not in CONTROLS:
            raise RecipeError(f"no control is called {name!r}; {suggestion(name, CONTROLS)}")
    return names
