"""Initializers that need no training run: analytic, data-driven and data-light, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metainit.initializers.analytic import default, kaiming, orthogonal
from metainit.initializers.base import Context, Initializer
from metainit.initializers.lsuv import lsuv
from metainit.initializers.shared_encoder import pretrain_shared_encoder, snp, strainer
from metainit.initializers.sine import siren, siren_scaled
from metainit.rules import RULES

_FUNCTIONS: Mapping[str, Initializer] = MappingProxyType(
    {
        "default": default,
        "kaiming": kaiming,
        "orthogonal": orthogonal,
        "siren": siren,
        "siren_scaled": siren_scaled,
        "lsuv": lsuv,
        "snp": snp,
        "strainer": strainer,
    }
)
INITIALIZERS: Mapping[str, tuple[Initializer, str]] = MappingProxyType(
    {name: (_FUNCTIONS[name], paper) for name, paper in RULES.items()}
)
"""Source string -> the initializer and its paper."""

__all__ = ["INITIALIZERS", "Context", "Initializer", "pretrain_shared_encoder"]
