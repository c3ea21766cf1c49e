"""The family of predicted starts, for the registry of families."""

from __future__ import annotations

from pipelines.families import Family
from pipelines.ghn.evidence import illustrate, measure_again, measure_ghn
from pipelines.ghn.learner import GhnLearner
from pipelines.ghn.preparation import prepare_ghn
from pipelines.ghn.recipe import GhnRecipe

FAMILY = Family(
    recipe=GhnRecipe,
    prepare=prepare_ghn,
    learner=GhnLearner,
    measure=measure_ghn,
    measure_again=measure_again,
    illustrate=illustrate,
    use="metainit predict MODULE:CALLABLE --from {name} -o OUT.safetensors",
)
