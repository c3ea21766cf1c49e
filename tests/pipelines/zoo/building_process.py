"""Builds a zoo in a process of its own: ``python -m tests.pipelines.zoo.building_process '<order as JSON>'``.

`kill_at` kills the process, as a power cut would, after that many shards.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipelines.recipe import read_recipe
from pipelines.zoo.build import build_zoo
from pipelines.zoo.preparation import prepare_zoo
from pipelines.zoo.recipe import ZooRecipe


def main(order: dict[str, Any]) -> None:
    recipe = read_recipe(order["recipe"])
    assert isinstance(recipe, ZooRecipe)
    base = Path(recipe.prior)
    shards = 0

    def progress(*_: float) -> None:
        nonlocal shards
        shards += 1
        if shards == order.get("kill_at"):
            os.kill(os.getpid(), signal.SIGKILL)

    build_zoo(prepare_zoo(recipe, base), base, Path(order["folder"]), progress=progress)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
