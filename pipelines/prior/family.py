"""The family of learned starts, for the registry of families."""

from __future__ import annotations

from pipelines.families import Family
from pipelines.prior.evidence import illustrate, measure_again, measure_prior
from pipelines.prior.learner import PriorLearner
from pipelines.prior.preparation import prepare_prior
from pipelines.prior.recipe import PriorRecipe

FAMILY = Family(
    recipe=PriorRecipe,
    prepare=prepare_prior,
    learner=PriorLearner,
    measure=measure_prior,
    measure_again=measure_again,
    illustrate=illustrate,
    use="metainit fit PATH --init models:/{name} -o OUT",
)
