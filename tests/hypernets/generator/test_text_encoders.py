"""Text encoders of other packages: found by their entry point, named where they are not there."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest
import torch
from torch import Tensor

from hypernets.generator import text
from hypernets.generator.conditions import Conditioner, conditions_of
from hypernets.generator.config import ConditionConfig
from metainit.errors import ConditionError


class Lengths:
    """How long a text is."""

    size = 1

    def __call__(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[float(len(one))] for one in texts])


def test_a_package_brings_an_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no text encoder is called 'lengths'"):
        ConditionConfig(text="lengths")
    point = EntryPoint("lengths", f"{__name__}:Lengths", text.GROUP)
    monkeypatch.setattr(text, "entry_points", lambda group, name="lengths": [point] * (name == "lengths"))
    config = ConditionConfig(text="lengths")
    known = conditions_of(config, 2, texts=("ab", "abc"))
    assert known.values["text"].tolist() == [[2.0], [3.0]]
    assert Conditioner(config, 4)(known).shape == (2, 4)


def test_an_encoder_that_is_not_there_is_named() -> None:
    with pytest.raises(ConditionError, match=r"called 'ngram'; did you mean 'ngrams'"):
        text.text_encoder("ngram")
