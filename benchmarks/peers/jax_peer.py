"""The peer on JAX: the same meta-gradients, vectorised over the tasks and compiled as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.peers import Case, Compute, Gradient, Unavailable
from metainit.networks.siren import SineLayer


def limit_threads(count: int) -> None:
    """Give XLA as many threads as torch; has an effect only before JAX is imported."""
    many = "true" if count > 1 else "false"
    os.environ["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={many} intra_op_parallelism_threads={count}"


@contextmanager
def jitted(case: Case) -> Iterator[Compute]:
    """Yield a function that JAX has compiled for the case's shapes."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    if case.coordinates.is_cuda and jax.default_backend() == "cpu":
        raise Unavailable("this JAX has no GPU")
    omegas = [m.omega if isinstance(m, SineLayer) else None for m in case.network.layers]
    offset, rate = case.network.offset, case.inner.step_size
    start, x, values = (
        jax.tree.map(lambda t: jnp.asarray(t.cpu().numpy()), part)
        for part in (case.weights, case.coordinates, case.values)
    )

    def loss(weights: Any, y: Any) -> Any:
        hidden = x
        for index, omega in enumerate(omegas):
            hidden = hidden @ weights[f"layers.{index}.weight"].T + weights[f"layers.{index}.bias"]
            hidden = hidden + offset if omega is None else jnp.sin(omega * hidden)
        return jnp.mean((hidden - y) ** 2)

    def adapted(weights: Any, y: Any) -> Any:
        for _ in range(case.inner.steps):
            slopes = jax.grad(loss)(weights, y)
            if case.rule != "maml":
                slopes = jax.lax.stop_gradient(slopes)
            weights = jax.tree.map(lambda w, g: w - rate * g, weights, slopes)
        return weights

    def reached(weights: Any, ys: Any) -> Any:
        return jax.vmap(lambda y: loss(adapted(weights, y), y))(ys).sum()

    def moved(weights: Any, ys: Any) -> Any:
        ends = jax.vmap(lambda y: adapted(weights, y))(ys)
        return jax.tree.map(lambda w, e: (w[None] - e).sum(0), weights, ends)

    whole = jax.jit(moved if case.rule == "reptile" else jax.grad(reached))
    compiled = whole.lower(start, values).compile()

    def compute() -> Gradient:
        found = jax.block_until_ready(compiled(start, values))
        return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}

    yield compute
