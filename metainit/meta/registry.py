"""Outer rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from metainit.meta.compiled import CompiledRule
from metainit.meta.maml import fomaml, fomaml_tail, maml
from metainit.meta.meta_sgd import first_order_meta_sgd
from metainit.meta.outer import AlgorithmConfig
from metainit.meta.reptile import reptile
from metainit.meta.state import Rule

RULES: Mapping[tuple[str, int], Rule] = MappingProxyType(
    {
        ("reptile", 1): reptile,
        ("fomaml", 1): fomaml,
        ("fomaml_tail", 1): fomaml_tail,
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
        "fomaml_tail": "Hendryx et al. 2019, arXiv:1912.06290",
        "maml": "Finn et al. 2017, arXiv:1703.03400",
        "meta_sgd": "Li et al. 2017, arXiv:1707.09835",
    }
)


def rule_for(algorithm: AlgorithmConfig) -> Rule:
    """Return the rule that an algorithm asks for; keep a compiled one, since it keeps its kernels."""
    rule = RULES[algorithm.rule, order_of(algorithm)]
    return CompiledRule(rule) if algorithm.compiled else rule


def order_of(algorithm: AlgorithmConfig) -> int:
    """Return the order of the derivatives that an algorithm takes."""
    (*own,) = (order for name, order in RULES if name == algorithm.rule)
    return own[0] if len(own) == 1 else algorithm.order


def gradient_evaluations(algorithm: AlgorithmConfig) -> int:
    """Return what the meta-gradient of one task costs, in gradients of its loss.

    One for each inner step and one after them, which Reptile does without; a product with the Hessian, one
    for each inner step of a second-order rule, costs as much as two.

    Example:
        >>> gradient_evaluations(AlgorithmConfig(rule='maml', step_sizes='fixed', inner_steps=2))
        7
    """
    steps = algorithm.inner_steps
    if algorithm.rule == "reptile":
        return steps
    return 3 * steps + 1 if order_of(algorithm) == 2 else steps + 1
