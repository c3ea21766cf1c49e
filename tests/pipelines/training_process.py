"""Trains in a process of its own: ``python -m tests.pipelines.training_process '<jobs as JSON>'``.

Each job has a recipe and a folder; `kill_at` kills the process, as a power cut would, after that outer step.
With `gradient` the folder gets the meta-gradient of the first step instead, summed over the workers.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from metainit.meta.outer import initial_meta_parameters
from metainit.meta.registry import rule_for
from metainit.networks.registry import function_of
from pipelines.preparation import prepare
from pipelines.recipe import read_recipe
from pipelines.tracking import ListSink
from pipelines.train import added_up, gradient_of, moved, train
from pipelines.world import Alone, Distributed, World, share


def gradient(recipe_value: dict[str, Any], folder: Path, world: World) -> None:
    recipe = read_recipe(recipe_value)
    prepared = prepare(recipe)
    batch = prepared.domain.tasks(recipe.seed, 0, recipe.outer.meta_batch)
    mine = moved(batch[share(len(batch), world.rank, world.size)], prepared)
    meta = initial_meta_parameters(prepared.network, recipe.algorithm)
    function, inner = function_of(prepared.network), recipe.algorithm.inner(prepared.network)
    own = gradient_of(prepared, function, rule_for(recipe.algorithm), meta, mine, inner)
    total, _ = added_up(own, world)
    assert total.tasks == recipe.outer.meta_batch
    if world.rank == 0:
        steps = {f"step_size.{k}": v.contiguous() for k, v in total.step_sizes.items()}
        tensors = {k: v.contiguous() for k, v in total.weights.items()} | steps
        folder.mkdir(parents=True)
        (folder / "gradient.safetensors").write_bytes(safetensors.torch.save(tensors))


def main(order: dict[str, Any]) -> None:
    world: World = Alone()
    if order.get("size", 1) > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{order['meet']}", rank=order["rank"], world_size=order["size"]
        )
        world = Distributed()
    for job in order["jobs"]:
        if job.get("gradient"):
            gradient(job["recipe"], Path(job["folder"]), world)
            continue

        def progress(step: int, *_: float, at: int = job.get("kill_at", -1)) -> None:
            if step == at:
                os.kill(os.getpid(), signal.SIGKILL)

        train(read_recipe(job["recipe"]), job["folder"], sink=ListSink(), world=world, progress=progress)
    if world.size > 1:
        # A group that one process leaves while another still works on it ends that one.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
