"""Trains in a process of its own: ``python -m tests.pipelines.training_process '<jobs as JSON>'``.

Each job has a recipe and a folder; `kill_at` kills the process, as a power cut would, after that outer step.
With `gradient` the folder gets the gradient of the first step instead, summed over the workers.
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

from pipelines.families import family_of
from pipelines.learner import added_up
from pipelines.preparation import prepare
from pipelines.recipe import read_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.world import Alone, Distributed, World


def gradient(recipe_value: dict[str, Any], folder: Path, world: World) -> None:
    recipe = read_recipe(recipe_value)
    learner = family_of(recipe.family).learner(prepare(recipe), world)
    total, _ = added_up(learner.gradient(), world)
    if world.rank == 0:
        folder.mkdir(parents=True)
        tensors = {str(number): tensor.contiguous() for number, tensor in enumerate(total.tensors)}
        tensors["count"] = torch.tensor(float(total.count))
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
