"""What a generator is told of tasks: it is the same by hand and in evidence, and what is missing is named."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hypernets.generator.conditions import conditions_of, standardized
from hypernets.generator.config import ConditionConfig
from hypernets.generator.members import Members
from metainit.domains.classification import ClassificationConfig, ClassificationDomain
from metainit.errors import ConditionError
from pipelines.generator.controls import conditions_for
from pipelines.generator.preparation import conditions_config
from pipelines.generator.recipe import Told


@pytest.fixture(scope="module")
def domain() -> ClassificationDomain:
    return ClassificationDomain(ClassificationConfig(data="digits", ways=3, shots=2, queries=2))


def test_examples_as_they_are_read_are_those_that_a_zoo_has(domain: ClassificationDomain) -> None:
    tasks = domain.tasks(0, 0, 2)
    seen = domain.observed(tasks.support, tasks.shared)
    members = Members(torch.zeros(2, 1), {"observation": seen}, torch.zeros(2), tasks.ids)
    config = conditions_config(Told(kinds=("observation",), encoder="examples"), members, domain)
    raw = seen * domain.images.std + domain.images.mean
    assert float(raw.min()) >= -1e-6 and float(raw.max()) <= 1 + 1e-6
    own = conditions_of(config, 2, observations=standardized(config, raw))
    prepared: Any = SimpleNamespace(domain=domain)
    torch.testing.assert_close(
        own.values["observation"], conditions_for(prepared, config, tasks).values["observation"]
    )


def test_a_kind_that_tasks_do_not_have_is_named(domain: ClassificationDomain) -> None:
    prepared: Any = SimpleNamespace(domain=domain)
    with pytest.raises(ConditionError, match="is told class and text, but the tasks of this"):
        conditions_for(prepared, ConditionConfig(classes=3, text="ngrams"), domain.tasks(0, 0, 2))
