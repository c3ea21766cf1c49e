"""What is seen of a task, as its user has it: a tensor, an array, or nested lists of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from metainit.errors import ConditionError


def observed(value: Any) -> Tensor | None:
    """Return an observation as a tensor; None stays None, and tensors stay the objects that they are.

    Raises:
        ConditionError: it holds anything but numbers, or its rows differ in length.

    Example:
        >>> observed([[0, 0.5]])
        tensor([[0.0000, 0.5000]])
        >>> observed('scan.npy')
        Traceback (most recent call last):
        ...
        metainit.errors.ConditionError: an observation is a tensor or an array of numbers, got str: read \
what it names first, as with numpy.load or metainit's --observation
    """
    if value is None or isinstance(value, Tensor):
        return value
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConditionError(
            f"an observation is a tensor or an array of numbers, got {type(value).__name__}: {error}"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ConditionError(
            f"an observation is a tensor or an array of numbers, got {type(value).__name__}: read what it "
            "names first, as with numpy.load or metainit's --observation"
        )
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
