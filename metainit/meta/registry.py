"""Outer rules by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from metainit.meta.compiled import CompiledRule
from metainit.meta.maml import fomaml, fomaml_tail, maml
from metainit.meta.meta_sgd import first_order_meta_sgd
from metainit.meta.reptile import reptile
from metainit.meta.state import Rule

if TYPE_CHECKING:
    from metainit.meta.outer import AlgorithmConfig


@dataclass(frozen=True)
class OuterRule:
    """What there is to know of an outer rule.

    `orders`: its function for each order of derivatives that it can take. `learns_step_sizes`: needs
    learned step sizes; a rule without it needs fixed ones. `holds_back`: the inner loop leaves the last
    examples of each support to the query (`tail`). `query_gradient`: takes the gradient of a loss after the
    inner steps; a rule without it learns only what is adapted.
    """

    orders: Mapping[int, Rule]
    paper: str
    learns_step_sizes: bool = False
    holds_back: bool = False
    query_gradient: bool = True


RULES: Mapping[str, OuterRule] = MappingProxyType(
    {
        "reptile": OuterRule({1: reptile}, "Nichol et al. 2018, arXiv:1803.02999", query_gradient=False),
        "fomaml": OuterRule({1: fomaml}, "Finn et al. 2017, arXiv:1703.03400"),
        "fomaml_tail": OuterRule({1: fomaml_tail}, "Hendryx et al. 2019, arXiv:1912.06290", holds_back=True),
        "maml": OuterRule({2: maml}, "Finn et al. 2017, arXiv:1703.03400"),
        # With learned step sizes among the leaves, the exact meta-gradient is MAML's.
        "meta_sgd": OuterRule(
            {1: first_order_meta_sgd, 2: maml}, "Li et al. 2017, arXiv:1707.09835", learns_step_sizes=True
        ),
    }
)
"""Outer rules by name."""


def rule_for(algorithm: AlgorithmConfig) -> Rule:
    """Return the rule that an algorithm asks for; keep a compiled one, since it keeps its kernels."""
    rule = RULES[algorithm.rule].orders[order_of(algorithm)]
    return CompiledRule(rule) if algorithm.compiled else rule


def order_of(algorithm: AlgorithmConfig) -> int:
    """Return the order of the derivatives that an algorithm takes."""
    own = tuple(RULES[algorithm.rule].orders)
    return own[0] if len(own) == 1 else algorithm.order


def gradient_evaluations(algorithm: AlgorithmConfig) -> int:
    """Return what the meta-gradient of one task costs, in gradients of its loss.

    One for each inner step and one after them, which Reptile does without; a product with the Hessian, one
    for each inner step of a second-order rule, costs as much as two.

    Example:
        >>> from metainit.meta.outer import AlgorithmConfig
        >>> gradient_evaluations(AlgorithmConfig(rule='maml', step_sizes='fixed', inner_steps=2))
        7
    """
    inner = algorithm.inner_steps * (3 if order_of(algorithm) == 2 else 1)
    return inner + RULES[algorithm.rule].query_gradient
