"""Which scope each route asks of a key: one table, and what is not in it stays closed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Literal, get_args

Scope = Literal["read", "predict", "generate", "admin"]
Need = Literal["free", "read", "predict", "generate", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
Route = tuple[str, str]
"""Method and path; ``{}`` stands for one part of the path, ``{path}`` for all that is left of it."""

_OF_AN_INIT: Mapping[Route, Need] = {
    ("GET", ""): "read",
    ("GET", "/pictures"): "read",
    ("GET", "/pictures/{}"): "read",
    ("GET", "/weights"): "read",
    ("GET", "/graph"): "read",
    ("POST", "/predict"): "predict",
    ("POST", "/generate"): "generate",
}

TABLE: Mapping[Route, Need] = {
    ("GET", "/"): "free",
    ("GET", "/web/{}/{}"): "free",
    ("GET", "/healthz"): "free",
    ("GET", "/readyz"): "free",
    ("GET", "/metrics"): "admin",
    ("GET", "/openapi.json"): "read",
    ("GET", "/docs"): "read",
    ("GET", "/v1/inits"): "read",
    ("GET", "/v1/overview"): "read",
    ("GET", "/v1/inits/{}/versions"): "read",
    **{(method, "/v1/inits/{}" + tail): need for (method, tail), need in _OF_AN_INIT.items()},
    **{(method, "/v1/inits/{}/versions/{}" + tail): need for (method, tail), need in _OF_AN_INIT.items()},
    ("GET", "/v1/blobs/{}"): "read",
    ("POST", "/v1/try"): "predict",
    ("GET", "/v1/try"): "predict",
    ("GET", "/v1/try/{}"): "predict",
    ("GET", "/v1/try/samples/{}"): "predict",
    ("GET", "/v1/try/{}/events"): "predict",
    ("DELETE", "/v1/try/{}"): "predict",
}
"""The page at ``/`` and what it loads below ``/web`` hold no data: what they show comes through the API."""


def shape(template: str) -> str:
    """Return a router's path template without the names of its parameters.

    Example:
        >>> shape('/v1/inits/{reference}/weights'), shape('/web/{rest:path}')
        ('/v1/inits/{}/weights', '/web/{path}')
    """
    return re.sub(r"\{[^{}:]*(:[^{}]*)?\}", lambda m: "{path}" if m[1] == ":path" else "{}", template)


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], dict[str, Need]], ...]:
    """The table as one pattern a path, with what each of its methods needs."""
    paths: dict[str, dict[str, Need]] = {}
    for (method, path), need in TABLE.items():
        paths.setdefault(path, {})[method] = need
    return tuple((re.compile(_pattern(path)), needs) for path, needs in paths.items())


def _pattern(path: str) -> str:
    return re.escape(path).replace(r"\{path\}", ".+").replace(r"\{\}", "[^/]+")


@lru_cache(maxsize=4096)
def needs_of(path: str) -> Mapping[str, Need]:
    """Return what each method of a path needs, empty where the table does not know the path.

    The table alone decides, never the router: a route that is missing in the table cannot be reached.

    Example:
        >>> needs_of('/v1/inits/faces@champion/weights')
        {'GET': 'read'}
        >>> needs_of('/v1/secret')
        {}
    """
    return next((needs for pattern, needs in _patterns() if pattern.fullmatch(path)), {})
