"""Outer rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metainit.meta.compiled import CompiledRule
from metainit.meta.maml import fomaml, maml
from metainit.meta.meta_sgd import first_order_meta_sgd
from metainit.meta.outer import AlgorithmConfig
from metainit.meta.reptile import reptile
from metainit.meta.state import Rule

RULES: Mapping[tuple[str, int], Rule] = MappingProxyType(
    {
        ("reptile", 1): reptile,
        ("fomaml", 1): fomaml,
        ("maml", 2): maml,
        ("meta_sgd", 1): first_order_meta_sgd,
        # With learned step sizes among the leaves, the exact meta-gradient is MAML's.
        ("meta_sgd", 2): maml,
    }
)
"""Outer rules by name and by the order of their derivatives."""

PAPERS: Mapping[str, str] = MappingProxyType(
    {
        "reptile": "Nichol et al. 2018, arXiv:1803.02999",
        "fomaml": "Finn et al. 2017, arXiv:1703.03400",
        "maml": "Finn et al. 2017, arXiv:1703.03400",
        "meta_sgd": "Li et al. 2017, arXiv:1707.09835",
    }
)


def rule_for(algorithm: AlgorithmConfig) -> Rule:
    """Return the rule that an algorithm asks for; keep a compiled one, since it keeps its kernels."""
    orders = {"reptile": 1, "fomaml": 1, "maml": 2}
    rule = RULES[algorithm.rule, orders.get(algorithm.rule, algorithm.order)]
    return CompiledRule(rule) if algorithm.compiled else rule
