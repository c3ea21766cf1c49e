"""The family of generated starts, for the registry of families."""

from __future__ import annotations

from pipelines.families import Family
from pipelines.generator.evidence import illustrate, measure_again, measure_generator
from pipelines.generator.learner import GeneratorLearner
from pipelines.generator.preparation import prepare_generator
from pipelines.generator.recipe import GeneratorRecipe

FAMILY = Family(
    recipe=GeneratorRecipe,
    prepare=prepare_generator,
    learner=GeneratorLearner,
    measure=measure_generator,
    measure_again=measure_again,
    illustrate=illustrate,
    use="metainit generate {name} -n 8 -o OUT",
)
