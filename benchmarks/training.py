"""Meta-train a prior in this process and keep its checkpoint, with the CPU time that it took."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import WEIGHTS, cpu_seconds
from metainit import checkpoint, init_
from metainit.card import Card, Method, Provenance, Spec
from metainit.checkpoint import STEP_SIZE_PREFIX
from metainit.domains.base import Domain
from metainit.domains.seeding import seed_of
from metainit.meta.engine import meta_gradient, task_threads
from metainit.meta.outer import AlgorithmConfig, OuterConfig, OuterLoop, initial_meta_parameters, routine_of
from metainit.meta.registry import RULES, rule_for
from metainit.meta.state import MetaParameters
from metainit.networks import build, function_of

Watch = Callable[[int, float, MetaParameters], None]


@dataclass(frozen=True)
class Plan:
    """What to train: the same fields as a recipe's."""

    name: str
    network: Spec
    algorithm: AlgorithmConfig
    outer: OuterConfig
    start: str = "siren"


def train(
    plan: Plan,
    domain: Domain | Callable[[int], Domain],
    seed: int,
    watch: Watch | None = None,
    watch_every: float = 30.0,
) -> tuple[Path, dict[str, Any]]:
    """Train with one seed, or return what an earlier call left.

    `domain` may depend on the outer step: coordinates generalise, so a run may begin with small images,
    which are cheaper. `watch` is called about every `watch_every` CPU seconds of training, outside of the
    measured time.
    """
    path = WEIGHTS / f"{plan.name}-{seed}.safetensors"
    note = path.with_suffix(".json")
    if note.is_file() and path.is_file():
        return path, json.loads(note.read_text())
    network = init_(build(plan.network, seed), plan.start, seed=seed)
    algorithm = plan.algorithm
    function, rule = function_of(network, algorithm.memory_format), rule_for(algorithm)
    inner = algorithm.inner(network)
    loop = OuterLoop(initial_meta_parameters(network, plan.algorithm), plan.outer, plan.algorithm)
    domain_at = domain if callable(domain) else lambda step: domain
    begin, watched, last = cpu_seconds(), 0.0, 0.0
    with task_threads(torch.get_num_threads()) as pool:
        while loop.step < plan.outer.steps:
            here = domain_at(loop.step)
            batch = here.tasks(seed, loop.step, plan.outer.meta_batch)
            gradient = meta_gradient(
                rule,
                here,
                function,
                loop.meta,
                batch,
                inner.seeded(seed_of("inner loop", seed, loop.step)),
                plan.algorithm.execution,
                pool,
            )
            loop.apply(gradient)
            used = cpu_seconds() - begin - watched
            if watch is not None and used - last > watch_every:
                last = used
                watch(loop.step, used, loop.result())
                watched += cpu_seconds() - begin - watched - used
    used = cpu_seconds() - begin - watched
    if watch is not None:
        watch(loop.step, used, loop.result())
    meta = loop.result()
    tensors = {**dict(network.named_buffers()), **meta.weights}
    if plan.algorithm.step_sizes == "parameter":
        tensors |= {STEP_SIZE_PREFIX + k: v for k, v in meta.step_sizes.items()}
    card = Card(
        kind="prior",
        name=plan.name,
        method=Method(name=plan.algorithm.rule, paper=RULES[plan.algorithm.rule].paper),
        network=plan.network,
        routine=routine_of(meta, algorithm, inner),
        provenance=Provenance(seeds=[seed]),
    )
    checkpoint.save(path, tensors, card)
    facts = {"cpu_seconds": round(used, 1), "outer_steps": loop.step, "seed": seed}
    note.write_text(json.dumps(facts))
    return path, facts
