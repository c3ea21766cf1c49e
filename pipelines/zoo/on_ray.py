"""Fit the shards of a zoo as Ray tasks, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hypernets.generator.shards import write_shard
from hypernets.generator.zoo import BASE
from metainit import errors
from metainit.card import canonical_json
from metainit.errors import MetainitError
from pipelines.local_ray import ray_cluster
from pipelines.recipe import read_recipe
from pipelines.zoo.fits import fit_shard
from pipelines.zoo.preparation import PreparedZoo, ShardPlan, prepare_zoo
from pipelines.zoo.recipe import ZooRecipe

MAX_RETRIES = 3
"""How often a shard is tried again after its worker has died."""


def on_ray(prepared: PreparedZoo, folder: Path, missing: Sequence[ShardPlan]) -> Iterator[int]:
    """Fit shards on the Ray at RAY_ADDRESS, or on a local one; yield the number of each that is done.

    At most the recipe's `workers` are at work at once, each with one CPU (and one GPU where the recipe asks
    for one). `folder` is shared by the driver and the workers, as on one machine or on a network drive.
    Numbers come as shards end, in any order; what is in a shard does not depend on that.

    Raises:
        MetainitError: Ray cannot be reached, or a worker died more than `MAX_RETRIES` times on a shard.
    """
    if not missing:
        return
    with ray_cluster():
        import ray
        from ray.exceptions import RayError

        recipe = prepared.recipe
        remote: Any = ray.remote(num_cpus=1, num_gpus=1 if recipe.gpu else 0, max_retries=MAX_RETRIES)(
            fit_order
        )
        order = {"recipe": canonical_json(recipe.dump()), "folder": str(folder), "from": os.getcwd()}
        order["key"] = prepared.belonging.key
        waiting = list(missing)
        running: dict[Any, int] = {}
        # What the first shard says may end the build, before the others cost anything.
        first_alone = waiting[0].number == 0
        while waiting or running:
            while waiting and len(running) < (1 if first_alone else recipe.workers):
                plan = waiting.pop(0)
                running[remote.remote(order, plan.number)] = plan.number
            ended, _ = ray.wait(list(running))
            for reference in ended:
                number, first_alone = running.pop(reference), False
                try:
                    _check(ray.get(reference))
                except RayError as error:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                    raise MetainitError(
                        f"shard {number} failed on Ray {MAX_RETRIES + 1} times: {reason}; what was fitted is "
                        f"kept in {folder}, and the same command goes on from there"
                    ) from error
                yield number


def fit_order(order: Mapping[str, str], number: int) -> dict[str, str]:
    """Fit one shard on a worker; what fails for a reason that we know is returned, not tried again."""
    try:
        if os.path.isdir(order["from"]):
            os.chdir(order["from"])
        folder = Path(order["folder"])
        if not (folder / BASE).is_file():
            raise MetainitError(
                f"{folder} is not on the worker: give a folder that the driver and workers share"
            )
        prepared = _prepared(order["recipe"], folder)
        plan = prepared.plans()[number]
        belonging = prepared.belonging.model_copy(update={"key": order["key"]})
        write_shard(folder, fit_shard(prepared, plan), belonging)
    except MetainitError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {}


@cache
def _prepared(recipe: str, folder: Path) -> PreparedZoo:
    """Return what a worker process fits with: the data are read once."""
    from pipelines.safe_yaml import parse_yaml

    value = read_recipe(parse_yaml(recipe, "the recipe"))
    assert isinstance(value, ZooRecipe)
    return prepare_zoo(value, folder / BASE)


def _check(answer: Mapping[str, str]) -> None:
    """Raise the error that a worker returned."""
    if "error" in answer:
        kind = getattr(errors, answer["error"], MetainitError)
        raise kind(answer["text"])
