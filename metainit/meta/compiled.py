"""Compile a rule: the whole of its work on one batch, second derivatives and all, as one fused kernel graph.

Measured on CPUs: 1.5 to 1.8 times a plain loop for networks of width 64, 1.2 times at width 256 (see
benchmarks/RESULTS.md), for 5 to 25 seconds of compilation for each set of shapes. It pays in runs of minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metainit.domains.base import TaskBatch
from metainit.errors import RecipeError
from metainit.meta.state import InnerSteps, MetaGradient, MetaParameters, Rule, TaskLosses

Kernel = Callable[..., Sequence[Tensor]]


class CompiledRule:
    """A rule that computes the same as another, compiled once for each domain, network and set of shapes.

    Autograd runs while the operations are recorded, so that what is compiled is one flat list of them, in
    which the sines and cosines that forward and backward passes share are computed once. Learned step sizes
    and data are inputs; a loss that looks at a value (``float(loss)``) cannot be recorded, and raises.

    Raises:
        RecipeError: there is no working C++ compiler.

    Source: PyTorch's `make_fx` and TorchInductor.

    Example:
        >>> from metainit.meta.registry import RULES
        >>> compiled = CompiledRule(RULES['fomaml'].orders[1])
        >>> compiled.kernels
        0
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        # The objects stay here with their kernel, so that no other ones can get their identities.
        self._made: dict[tuple[Any, ...], tuple[Kernel, TaskLosses]] = {}

    @property
    def kernels(self) -> int:
        """How many sets of shapes have been compiled."""
        return len(self._made)

    def __call__(self, losses: TaskLosses, meta: MetaParameters, inner: InnerSteps) -> MetaGradient:
        """Return what the rule returns."""
        tensors = _tensors(losses.batch, meta)
        key = (
            id(losses.domain),
            id(losses.function),
            losses.batched,
            inner,
            *((name, v.shape, v.dtype, v.device) for name, v in tensors),
        )
        inputs = [v.detach() for _, v in tensors]
        if key not in self._made:
            self._made[key] = self._compile(losses, meta, inner, inputs), losses
        kernel, _ = self._made[key]
        with torch.no_grad():
            found = iter(kernel(*inputs))
        return MetaGradient(
            {k: next(found) for k in meta.weights},
            {k: next(found) for k in meta.step_sizes},
            next(found),
            losses.tasks,
        )

    def _compile(
        self, losses: TaskLosses, meta: MetaParameters, inner: InnerSteps, inputs: Sequence[Tensor]
    ) -> Kernel:
        # Imported late: together they take as long to import as torch itself.
        from torch._inductor.exc import InductorError, InvalidCxxCompiler
        from torch.fx.experimental.proxy_tensor import make_fx

        def flat(*values: Tensor) -> list[Tensor]:
            given = iter(values)
            here = MetaParameters(
                {k: next(given) for k in meta.weights}, {k: next(given) for k in meta.step_sizes}
            )
            batch = losses.batch.map(lambda _: next(given))
            found = self._rule(replace(losses, batch=batch), here, inner)
            return [*found.weights.values(), *found.step_sizes.values(), found.loss]

        recorded = make_fx(flat)(*inputs)
        kernel: Kernel = torch.compile(recorded, fullgraph=True, dynamic=False)
        try:
            with torch.no_grad():
                kernel(*inputs)
        except InductorError as error:
            if not isinstance(error.inner_exception, InvalidCxxCompiler):
                raise
            raise RecipeError(
                "algorithm.compiled needs a C++ compiler, and none was found: install g++ (or name one in "
                f"CXX), or set algorithm.compiled to false ({error.inner_exception})"
            ) from error
        return kernel


def _tensors(batch: TaskBatch, meta: MetaParameters) -> list[tuple[str, Tensor]]:
    """Return every tensor that the rule's result depends on, in the order in which `TaskBatch.map` goes."""
    named = [("weights", meta.weights), ("step_sizes", meta.step_sizes)]
    named += [("support", batch.support), ("query", batch.query), ("shared", batch.shared)]
    return [(f"{part}.{name}", value) for part, values in named for name, value in values.items()]
