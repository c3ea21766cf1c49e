"""Which code a result was made with."""

from __future__ import annotations

from functools import cache

import metainit


@cache
def code_version() -> str:
    """Return the versions that the bytes of a result depend on; the first call imports torch.

    Example:
        >>> code_version()  # doctest: +ELLIPSIS
        'metainit ..., torch ...'
    """
    import torch

    return f"metainit {metainit.__version__}, torch {torch.__version__}"
