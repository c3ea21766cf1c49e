"""What a client asks of some weights beyond their name: another dtype, or some of the tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias
from urllib.parse import urlencode

from safetensors import SafetensorError, safe_open

from metainit.checkpoint import STEP_SIZE_PREFIX
from metainit.errors import EndpointError, suggestion

Dtype: TypeAlias = Literal["float32", "bfloat16"]
"""What weights can be asked for in."""
DTYPES: Mapping[str, str] = MappingProxyType({"float32": "F32", "bfloat16": "BF16"})
"""Its name in a safetensors file."""
FLOATING = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that weights are converted from, as safetensors writes them."""
MAX_QUERY = 1_800
"""Endpoints and proxies refuse longer addresses."""


@dataclass(frozen=True)
class Variant:
    """Weights in a dtype, or some of the tensors; with neither, as they were registered.

    Example:
        >>> Variant.of('bfloat16', ['b', 'a', 'b']).query
        '?dtype=bfloat16&tensor=a&tensor=b'
        >>> Variant().query
        ''
    """

    dtype: str | None = None
    tensors: tuple[str, ...] = ()

    @classmethod
    def of(cls, dtype: str | None, tensors: Iterable[str] | None) -> Variant:
        """Return the variant; the order of the names does not matter.

        Raises:
            EndpointError: the dtype is not one that is served, no tensor is named, or too many are.
        """
        if dtype is not None and dtype not in DTYPES:
            raise EndpointError(f"no weights are served in {dtype!r}: {suggestion(dtype, DTYPES)}")
        names = named(tensors) if tensors is not None else ()
        variant = cls(dtype, names)
        if len(variant.query) > MAX_QUERY:
            raise EndpointError(
                f"{len(names)} names of tensors make an address of {len(variant.query)} bytes, expected at "
                f"most {MAX_QUERY}: ask in several calls, or with fetch_tensors"
            )
        return variant

    @property
    def query(self) -> str:
        """The query of its address, which is the same for equal variants."""
        pairs = [("dtype", self.dtype)] if self.dtype else []
        pairs += [("tensor", name) for name in self.tensors]
        return f"?{urlencode(pairs)}" if pairs else ""

    def check(self, path: Path, what: object) -> None:
        """Refuse a verified file that is something else, as an endpoint gives that knows of no variants.

        Raises:
            EndpointError: the file holds other tensors or another dtype.
        """
        if not self.query:
            return
        try:
            with safe_open(path, framework="pt") as stored:
                found = {name: stored.get_slice(name).get_dtype() for name in stored.keys()}
                weights = {k: v for k, v in found.items() if not k.startswith(STEP_SIZE_PREFIX)}
        except SafetensorError as error:
            raise EndpointError(f"the weights of {what} are no safetensors file: {error}") from error
        if self.tensors and set(found) != set(self.tensors):
            raise EndpointError(
                f"asked for {len(self.tensors)} tensors of {what}, got {len(found)}: the endpoint is older "
                "than this client; fetch all, or use fetch_tensors"
            )
        wanted = DTYPES.get(self.dtype or "")
        others = {kind for kind in weights.values() if kind in FLOATING} - {wanted}
        if wanted and others:
            raise EndpointError(
                f"asked for {what} in {self.dtype}, got {', '.join(sorted(others))}: the endpoint is older "
                "than this client; fetch it as it is"
            )


WHOLE = Variant()
"""Weights as they were registered."""


def named(tensors: Iterable[str]) -> tuple[str, ...]:
    """Return names in order, each once.

    Raises:
        EndpointError: there is none, or a string was given instead of several.
    """
    names = tuple(sorted(set(tensors))) if not isinstance(tensors, str) else ()
    if not names or not all(isinstance(name, str) and name for name in names):
        raise EndpointError(f"tensors={tensors!r} names no tensor; expected names of the state dict")
    return names


def missing(names: Collection[str], known: Collection[str], what: object) -> EndpointError | None:
    """Return the error for names that are not there, if any."""
    absent = sorted(set(names) - set(known))
    if not absent:
        return None
    return EndpointError(f"{what} has no tensor {absent[0]!r}: {suggestion(absent[0], known)}")
