"""Initializers that need no training run: analytic, data-driven and data-light, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metainit.initializers.analytic import default, kaiming, orthogonal
from metainit.initializers.base import Context, Initializer
from metainit.initializers.lsuv import lsuv
from metainit.initializers.shared_encoder import pretrain_shared_encoder, snp, strainer
from metainit.initializers.sine import siren, siren_scaled

INITIALIZERS: Mapping[str, tuple[Initializer, str]] = MappingProxyType(
    {
        "default": (default, "the framework's own reset_parameters"),
        "kaiming": (kaiming, "He et al. 2015, arXiv:1502.01852"),
        "orthogonal": (orthogonal, "Saxe et al. 2013, arXiv:1312.6120"),
        "siren": (siren, "Sitzmann et al. 2020, arXiv:2006.09661"),
        "siren_scaled": (siren_scaled, "Yeom et al. 2025, arXiv:2410.04779"),
        "lsuv": (lsuv, "Mishkin & Matas 2015, arXiv:1511.06422"),
        "snp": (snp, "Snp 2026, arXiv:2603.29034"),
        "strainer": (strainer, "Vyas et al. 2024, arXiv:2409.09566"),
    }
)
"""Source string -> the initializer and its paper."""

__all__ = ["INITIALIZERS", "Context", "Initializer", "pretrain_shared_encoder"]
