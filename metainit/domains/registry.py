"""Domains by name, and the function that builds one from its spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from metainit.card import Spec
from metainit.domains.base import Domain
from metainit.domains.classification import ClassificationConfig, ClassificationDomain
from metainit.domains.ct import CTConfig, CTDomain
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.errors import RecipeError, suggestion

if TYPE_CHECKING:
    from metainit.fitting.base import Fit


def _signals() -> Fit:
    """Return the fit of one network to each signal; read when it is asked for, as only `fit` needs it."""
    from metainit.fitting.signals import fit_signals

    return fit_signals


def _masks() -> Fit:
    """Return the fit that marks a class in files, after some in which it is marked."""
    from metainit.fitting.masks import fit_masks

    return fit_masks


@dataclass(frozen=True)
class Entry:
    """A domain's config class, how the domain is made from one, and what `metainit fit` does with files.

    `fit` None: there are no files to fit in this domain.
    """

    config: type[BaseModel]
    make: Callable[[Any], Domain]
    fit: Callable[[], Fit] | None = None


DOMAINS: Mapping[str, Entry] = MappingProxyType(
    {
        "image": Entry(ImageConfig, ImageDomain, _signals),
        "ct": Entry(CTConfig, CTDomain, _signals),
        "segmentation": Entry(SegmentationConfig, SegmentationDomain, _masks),
        "classification": Entry(ClassificationConfig, ClassificationDomain),
    }
)
"""The domains that a spec can name."""

DATA = "data"
"""The argument that says where the data lie, in every domain; it is no part of what a domain *is*."""


PLACES = (DATA, "folder", "npz")
"""Arguments that say where data lie on some machine; the data's fingerprint says which data they are."""


def without_places(spec: Spec) -> Spec:
    """Return the spec without the places of its data, as it stands on a card.

    Example:
        >>> without_places(Spec(name='ct', arguments={'data': 'scans', 'size': 16})).arguments
        {'size': 16}
    """
    return Spec(name=spec.name, arguments={k: v for k, v in spec.arguments.items() if k not in PLACES})


def domain_config(spec: Spec) -> BaseModel:
    """Return the validated config of the domain that a spec names.

    The argument ``data`` is a folder or an npz file, whatever the domain.

    Raises:
        RecipeError: the name is not in `DOMAINS`, or an argument is unknown or has a wrong value; the text
            names it as ``domain.<argument>``.
        DataError: arguments contradict each other.

    Example:
        >>> domain_config(Spec(name='image', arguments={'data': 'scans', 'height': 32})).folder.name
        'scans'
        >>> domain_config(Spec(name='image', arguments={'hight': 32}))
        Traceback (most recent call last):
        ...
        metainit.errors.RecipeError: domain.hight: 'image' takes no such argument; did you mean 'height'?
    """
    if spec.name not in DOMAINS:
        raise RecipeError(f"domain.name: no domain is called {spec.name!r}; {suggestion(spec.name, DOMAINS)}")
    entry = DOMAINS[spec.name]
    known = set(entry.config.model_fields) | {DATA}
    for argument in spec.arguments:
        if argument not in known:
            raise RecipeError(
                f"domain.{argument}: {spec.name!r} takes no such argument; {suggestion(argument, known)}"
            )
    try:
        return entry.config.model_validate(_located(spec.arguments, entry))
    except ValidationError as error:
        raise RecipeError("; ".join(_sentence(problem) for problem in error.errors())) from error


def build_domain(spec: Spec) -> Domain:
    """Build the domain that a spec names; its data are read here.

    Raises:
        RecipeError: the spec is not valid.
        DataError: the data cannot be used.

    Example:
        >>> build_domain(Spec(name='ct', arguments={'size': 16})).network_arguments['out_features']
        1
    """
    config = domain_config(spec)
    return DOMAINS[spec.name].make(config)


def _located(arguments: Mapping[str, Any], entry: Entry) -> dict[str, Any]:
    """Turn ``data`` into the name that the config has for it: a folder or an npz file."""
    given = dict(arguments)
    if DATA in given and DATA not in entry.config.model_fields:
        data = given.pop(DATA)
        if data is not None:
            given["npz" if Path(str(data)).suffix == ".npz" else "folder"] = Path(str(data)).expanduser()
    return given


def _sentence(problem: Any) -> str:
    place = ".".join(str(part) for part in ("domain", *problem["loc"]))
    return f"{place}: {problem['msg']}, got {problem['input']!r}" if problem["loc"] else problem["msg"]
