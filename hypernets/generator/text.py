"""Descriptions as fixed vectors of numbers, without a model that would have to be fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from metainit.errors import ConditionError, suggestion

if TYPE_CHECKING:
    from torch import Tensor


class TextEncoder(Protocol):
    """Turns texts into vectors; the same text gives the same vector everywhere and always."""

    @property
    def size(self) -> int:
        """How long the vectors are."""
        ...

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return vectors (texts, size) float32."""
        ...


class HashedNgrams:
    """Counts of a text's character n-grams, each at the place and with the sign that its hash says.

    Texts that share parts of words get vectors that are near each other. Letter case and runs of white space
    do not matter. The vectors have unit length; that of an empty text is zero.

    Source: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", arXiv:0902.2206;
    character n-grams as in Bojanowski et al. 2017, arXiv:1607.04606.

    Example:
        >>> one, near, far = HashedNgrams()(['a red circle', 'A  red circles', 'blue'])
        >>> bool(one @ near > 0.7), bool(one @ far < 0.2)
        (True, True)
    """

    lengths = (2, 3, 4, 5)
    size = 512

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return vectors (texts, 512)."""
        import torch

        counts = torch.zeros(len(texts), self.size)
        for row, text in zip(counts, texts, strict=True):
            for word in text.casefold().split():
                marked = f"<{word}>"
                for length in self.lengths:
                    for start in range(len(marked) - length + 1):
                        # Not `hash`, which differs from process to process.
                        digest = hashlib.blake2b(
                            marked[start : start + length].encode(), digest_size=8
                        ).digest()
                        value = int.from_bytes(digest, "big")
                        row[value % self.size] += 1.0 if value >> 63 else -1.0
        return torch.nn.functional.normalize(counts, dim=-1)


GROUP = "metainit.text_encoders"
"""The entry points of packages that bring an encoder: name -> what makes one, called without arguments."""
TEXT_ENCODERS: Mapping[str, Callable[[], TextEncoder]] = MappingProxyType({"ngrams": HashedNgrams})
"""The encoders that are always there."""


def text_encoders() -> tuple[str, ...]:
    """Return the names of all encoders: those that are always there, and those of installed packages."""
    return tuple(sorted({*TEXT_ENCODERS, *(point.name for point in entry_points(group=GROUP))}))


def text_encoder(name: str) -> TextEncoder:
    """Return the encoder of a name.

    Raises:
        ConditionError: there is none; the package that brings it is not installed.

    Example:
        >>> text_encoder('ngrams').size
        512
    """
    if name in TEXT_ENCODERS:
        return TEXT_ENCODERS[name]()
    for point in entry_points(group=GROUP, name=name):
        made: TextEncoder = point.load()()
        return made
    raise ConditionError(
        f"no text encoder is called {name!r}; {suggestion(name, text_encoders())}; others come with packages "
        f"that have an entry point in {GROUP}"
    )
