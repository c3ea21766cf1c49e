"""The rules that fill a network without a checkpoint, and the paper of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

RULES: Mapping[str, str] = MappingProxyType(
    {
        "default": "the framework's own reset_parameters",
        "kaiming": "He et al. 2015, arXiv:1502.01852",
        "orthogonal": "Saxe et al. 2013, arXiv:1312.6120",
        "siren": "Sitzmann et al. 2020, arXiv:2006.09661",
        "siren_scaled": "Yeom et al. 2025, arXiv:2410.04779",
        "lsuv": "Mishkin & Matas 2015, arXiv:1511.06422",
        "snp": "Snp 2026, arXiv:2603.29034",
        "strainer": "Vyas et al. 2024, arXiv:2409.09566",
    }
)
"""Source string -> its paper; `metainit.initializers.INITIALIZERS` has the functions."""
