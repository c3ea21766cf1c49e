"""Filling a network: everything, or nothing where a tensor does not take values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from metainit.errors import MismatchError
from metainit.fill import fill, fill_parameters


def parameters_only(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    return fill_parameters(network, tensors, (), source)


def expanded() -> Tensor:
    return torch.zeros(1, 2).expand(3, 2)


def inference() -> Tensor:
    with torch.inference_mode():
        return torch.zeros(3, 2)


def without_storage() -> Tensor:
    return torch.zeros(3, 2, device="meta")


@pytest.mark.parametrize("filled", [fill, parameters_only])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (expanded, r"last is expanded.*clone"),
        (inference, r"last was made in inference mode"),
        (without_storage, r"meta device \(last has.*to_empty"),
    ],
)
def test_a_tensor_that_takes_no_values_leaves_the_others_as_they_are(
    filled: Callable[[nn.Module, Mapping[str, Tensor], str], nn.Module],
    make: Callable[[], Tensor],
    words: str,
) -> None:
    network = nn.Module()
    network.first = nn.Parameter(torch.zeros(2))
    network.last = nn.Parameter(make(), requires_grad=False)
    with pytest.raises(MismatchError, match=words):
        filled(network, {"first": torch.ones(2), "last": torch.ones(3, 2)}, "ones")
    assert torch.equal(network.first, torch.zeros(2))
