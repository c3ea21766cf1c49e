"""Compiled rules give the same gradients as the rules themselves; the table's rows run here once more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from metainit.domains.base import Predict, Tensors
from metainit.meta.compiled import CompiledRule
from metainit.meta.engine import meta_gradient
from metainit.meta.outer import AlgorithmConfig
from metainit.meta.registry import rule_for
from metainit.meta.state import MetaGradient, MetaParameters
from metainit.networks import function_of
from tests.metainit.meta.problems import (
    RULES,
    QuadraticDomain,
    SineDomain,
    algorithm,
    gradient_of,
    linear_map,
    small_siren,
    start_of,
)
from tests.metainit.meta.test_rules import ROUNDING, differences

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


def compiled_gradient(
    rule: Any, config: AlgorithmConfig, domain: SineDomain, network: Any, tasks: int, **changes: Any
) -> tuple[MetaGradient, MetaParameters, Any]:
    meta, batch = start_of(network, config, spread=0.5), domain.tasks(0, 0, tasks)
    function = changes.get("function") or function_of(network)
    execution = changes.get("execution", "loop")
    return meta_gradient(rule, domain, function, meta, batch, config.inner(network), execution), meta, batch


FAST = ("fomaml", "meta_sgd-2-parameter")
ROWS = [
    row if row in FAST else pytest.param(row, marks=pytest.mark.slow)
    for row in RULES
    if not algorithm(row).variation.active
]
"""Compiling takes seconds: two rules in every run, the others in the slow one."""


@pytest.mark.parametrize("row", ROWS)
def test_a_compiled_rule_gives_the_same_gradient(row: str) -> None:
    domain, network, config = SineDomain(), small_siren(), algorithm(row, compiled=True, inner_steps=2)
    rule = rule_for(config)
    assert isinstance(rule, CompiledRule)
    found, meta, batch = compiled_gradient(rule, config, domain, network, 3)
    plain = gradient_of(algorithm(row, inner_steps=2), domain, network, meta, batch)
    assert max(differences(found, plain).values()) < ROUNDING
    assert rule.kernels == 1
    assert not any(v.requires_grad for v in found.weights.values())


@pytest.mark.slow
def test_all_tasks_at_once_can_be_compiled_too() -> None:
    domain, network = SineDomain(), small_siren()
    config = algorithm("meta_sgd-2-parameter", compiled=True, inner_steps=2)
    found, meta, batch = compiled_gradient(rule_for(config), config, domain, network, 4, execution="vmap")
    plain = gradient_of(
        algorithm("meta_sgd-2-parameter", inner_steps=2), domain, network, meta, batch, "loop"
    )
    assert max(differences(found, plain).values()) < ROUNDING


def test_a_kernel_belongs_to_its_domain_and_its_shapes() -> None:
    """Two domains with equal shapes and other losses, and one with more points: three kernels, each right."""
    config = algorithm("fomaml", compiled=True, inner_steps=1)
    rule, network = rule_for(config), linear_map()
    assert isinstance(rule, CompiledRule)
    function = function_of(network)
    for domain in (QuadraticDomain(), QuadraticDomain(flat=True)):
        for _ in range(2):
            found, meta, batch = compiled_gradient(rule, config, domain, network, 2, function=function)
            plain = gradient_of(algorithm("fomaml", inner_steps=1), domain, network, meta, batch)
            assert max(differences(found, plain).values()) < ROUNDING
    assert rule.kernels == 2
    wider, siren = SineDomain(points=9), small_siren()
    compiled_gradient(rule, config, wider, siren, 1)
    assert rule.kernels == 3


class Peeking(SineDomain):
    """A loss that depends on a value by Python: recorded once, it would be wrong for every other value."""

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        loss = (predict(support["x"]) - support["y"]).square().mean()
        return loss * float(loss.detach())


def test_a_loss_that_looks_at_a_value_is_refused() -> None:
    config = algorithm("fomaml", compiled=True)
    with pytest.raises(RuntimeError, match="tracing tensor"):
        compiled_gradient(rule_for(config), config, Peeking(), small_siren(), 1)


def test_without_a_compiler_the_way_out_is_named(tmp_path: Path) -> None:
    program = """
from tests.metainit.meta.problems import SineDomain, algorithm, gradient_of, small_siren, start_of
network, config = small_siren(), algorithm("reptile", compiled=True, inner_steps=1)
gradient_of(config, SineDomain(), network, start_of(network, config), SineDomain().tasks(0, 0, 1))
"""
    nowhere = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | nowhere, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "RecipeError: algorithm.compiled needs a C++ compiler" in done.stderr
    assert "install g++" in done.stderr and "set algorithm.compiled to false" in done.stderr


def test_what_does_not_go_together_is_refused() -> None:
    for changes in ({"execution": "threads"}, {"engine": "learn2learn"}):
        with pytest.raises(ValueError, match="compiled goes with engine metainit and execution auto, loop"):
            algorithm("maml", compiled=True, **changes)
    with pytest.raises(ValueError, match="neither a compiled rule nor another engine than metainit can do"):
        algorithm("fomaml-varied", compiled=True)
