"""Meta-train a prior in this process and keep its checkpoint, with the CPU time that it took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import WEIGHTS, cpu_seconds
from metainit import checkpoint, init_
from metainit.card import Card, Method, Provenance, Spec, canonical_json
from metainit.checkpoint import STEP_SIZE_PREFIX
from metainit.domains.base import Domain
from metainit.domains.seeding import seed_of
from metainit.errors import RecipeError
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

    def recipe(self, domain_at: Callable[[int], Domain]) -> dict[str, Any]:
        """Return all that the weights depend on but the seed; `stages` are the data from an outer step on."""
        stages: list[tuple[int, str]] = []
        last: Domain | None = None
        for step in range(self.outer.steps):
            here = domain_at(step)
            if here is not last:
                stages.append((step, here.fingerprint()))
            last = here
        return {
            "name": self.name,
            "network": self.network.model_dump(mode="json"),
            "algorithm": self.algorithm.model_dump(mode="json"),
            "outer": self.outer.model_dump(mode="json"),
            "start": self.start,
            "stages": [list(stage) for stage in stages],
        }


def train(
    plan: Plan,
    domain: Domain | Callable[[int], Domain],
    seed: int,
    watch: Watch | None = None,
    watch_every: float = 30.0,
    device: str | torch.device = "cpu",
) -> tuple[Path, dict[str, Any]]:
    """Train with one seed, or return what an earlier call left.

    `domain` may depend on the outer step: coordinates generalise, so a run may begin with small images,
    which are cheaper. `watch` is called about every `watch_every` CPU seconds of training, outside of the
    measured time.

    Raises:
        RecipeError: what an earlier call left is of another plan or other data, or does not say of which.
    """
    path = WEIGHTS / f"{plan.name}-{seed}.safetensors"
    note = path.with_suffix(".json")
    domain_at = domain if callable(domain) else lambda step: domain
    recipe = plan.recipe(domain_at)
    digest = hashlib.sha256(canonical_json({**recipe, "seed": seed}).encode()).hexdigest()
    if note.is_file() and path.is_file():
        kept: dict[str, Any] = json.loads(note.read_text())
        _require_plan(note, path, kept.get("plan"), digest)
        return path, kept
    network = init_(build(plan.network, seed), plan.start, seed=seed).to(device)
    algorithm = plan.algorithm
    function, rule = function_of(network, algorithm.memory_format), rule_for(algorithm)
    inner = algorithm.inner(network)
    loop = OuterLoop(initial_meta_parameters(network, plan.algorithm), plan.outer, plan.algorithm)
    begin, watched, last = cpu_seconds(), 0.0, 0.0
    with task_threads(torch.get_num_threads()) as pool:
        while loop.step < plan.outer.steps:
            here = domain_at(loop.step)
            batch = here.tasks(seed, loop.step, plan.outer.meta_batch)
            batch = batch.map(lambda t: t.to(device))
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
        provenance=Provenance(recipe=recipe, seeds=[seed]),
    )
    checkpoint.save(path, tensors, card)
    facts = {"cpu_seconds": round(used, 1), "outer_steps": loop.step, "seed": seed, "plan": digest}
    note.write_text(json.dumps(facts))
    return path, facts


def _require_plan(note: Path, path: Path, found: str | None, expected: str) -> None:
    if found == expected:
        return
    delete = f"delete {path} and {note} to train again"
    if found is None:
        raise RecipeError(
            f'{note}: does not say by which plan the weights were trained, expected "plan": "{expected}": '
            f"{delete}, or add that to the note if they are of this plan, data and seed"
        )
    raise RecipeError(
        f"{note}: the weights were trained by plan {found}, expected {expected}: {delete}, or go back to the "
        "plan and data that they were trained with"
    )
