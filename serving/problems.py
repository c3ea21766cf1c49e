"""Errors as application/problem+json (RFC 9457): one table from exception to answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from metainit.errors import (
    CheckpointError,
    ConditionError,
    CopyError,
    EndpointError,
    GraphError,
    MetainitError,
    RegistryError,
)
from serving.catalog import Missing
from serving.generation import NoGenerator, Ungenerated
from serving.making import Busy, TooLarge
from serving.prediction import NoPredictor, Unpredictable
from serving.refusals import (
    BodyTooLarge,
    Forbidden,
    HeadersTooLarge,
    KeysUnreadable,
    NoMethod,
    NoRoute,
    Overloaded,
    Refusal,
    TooLong,
    TooMany,
    TooSlow,
    Unauthorized,
)
from serving.seen import NOTE, Seen
from serving.store import NotReady
from serving.tries import BadImage, Stopped, TooManyTries, Untriable

LOGGER = logging.getLogger("metainit.serving")
MEDIA_TYPE = "application/problem+json"


class RangeNotSatisfiable(EndpointError):
    """The asked range lies outside the file of `size` bytes."""

    def __init__(self, header: str, size: int) -> None:
        """Keep the size, which the answer has to name."""
        super().__init__(f"the range {header!r} lies outside the {size} bytes of the file")
        self.size = size


@dataclass(frozen=True)
class Kind:
    """What an exception becomes: status, a stable name for machines, a title for people."""

    status: int
    name: str
    title: str
    retry_after: int | None = None


TABLE: Mapping[type[Exception], Kind] = {
    Missing: Kind(404, "missing", "There is no such thing here"),
    RangeNotSatisfiable: Kind(416, "range", "The range lies outside the file"),
    NotReady: Kind(503, "not-ready", "Not ready yet", retry_after=2),
    RegistryError: Kind(503, "registry", "The registry cannot be reached", retry_after=5),
    CheckpointError: Kind(502, "damaged", "The registry holds a damaged version"),
    RequestValidationError: Kind(422, "invalid", "The request is not valid"),
    TooLarge: Kind(413, "too-large", "The request is too large"),
    GraphError: Kind(422, "graph", "The architecture graph is not valid"),
    Unpredictable: Kind(422, "unpredictable", "There is no prediction for this graph"),
    ConditionError: Kind(422, "condition", "The generator does not take such a condition"),
    CopyError: Kind(409, "copies", "The generator gives copies of what it was trained on"),
    NoPredictor: Kind(409, "no-predictor", "This initialization does not predict"),
    NoGenerator: Kind(409, "no-generator", "This initialization does not generate"),
    Ungenerated: Kind(422, "ungenerated", "The generator gives nothing for this"),
    Unauthorized: Kind(401, "unauthorized", "A key is needed"),
    Forbidden: Kind(403, "forbidden", "This is not allowed"),
    NoRoute: Kind(404, "http", "Not Found"),
    NoMethod: Kind(405, "http", "Method Not Allowed"),
    BodyTooLarge: Kind(413, "too-large", "The request is too large"),
    TooLong: Kind(414, "too-long", "The address is too long"),
    TooMany: Kind(429, "rate", "Too many requests"),
    HeadersTooLarge: Kind(431, "headers", "The headers are too large"),
    Overloaded: Kind(503, "overloaded", "Too many requests are under way"),
    TooSlow: Kind(503, "slow", "No answer in time"),
    KeysUnreadable: Kind(503, "keys", "Nobody can be let in"),
    Busy: Kind(429, "busy", "Too many orders are under way", retry_after=2),
    Untriable: Kind(409, "untriable", "Live fits do not start from this"),
    BadImage: Kind(422, "image", "The image cannot be used"),
    TooManyTries: Kind(429, "busy", "Too many live fits are under way", retry_after=5),
    Stopped: Kind(409, "stopped", "The live fit was stopped"),
    EndpointError: Kind(422, "invalid", "The request is not valid"),
    MetainitError: Kind(500, "internal", "The endpoint failed"),
    Exception: Kind(500, "internal", "The endpoint failed"),
}
"""The most special class that an exception belongs to wins."""


def kind_of(error: Exception) -> Kind:
    """Return the row of the table for an exception.

    Example:
        >>> kind_of(Missing('no such name')).status
        404
        >>> kind_of(ZeroDivisionError()).status
        500
    """
    return next(TABLE[base] for base in type(error).__mro__ if base in TABLE)


def problem(status: int, name: str, title: str, detail: str, instance: str) -> dict[str, Any]:
    """Return the body of a problem answer."""
    return {
        "type": f"urn:metainit:problem:{name}",
        "title": title,
        "status": status,
        "detail": detail,
        "instance": instance,
    }


def detail_of(error: Exception) -> str:
    """Return what may be told of an error; of what nobody expected, nothing."""
    if isinstance(error, RequestValidationError):
        return "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors()
        )
    return str(error) if isinstance(error, MetainitError) else "see the log of the endpoint"


def _headers(error: Exception, kind: Kind) -> dict[str, str]:
    headers = {"cache-control": "no-store"}
    if kind.retry_after is not None:
        headers["retry-after"] = str(kind.retry_after)
    if isinstance(error, Refusal):
        headers.update(error.headers)
    if isinstance(error, RangeNotSatisfiable):
        headers["content-range"] = f"bytes */{error.size}"
    return headers


def _noted(request: Request, name: str) -> dict[str, str]:
    """Note which problem a request met, and return its id as a part of the answer."""
    note: Seen | None = request.scope.get(NOTE)
    if note is None:
        return {}
    note.problem = name
    return {"request_id": note.request_id}


def answer(request: Request, error: Exception) -> JSONResponse:
    """Answer an exception; what nobody expected is logged in full and told without detail."""
    kind = kind_of(error)
    if kind.status == 500:
        LOGGER.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    body = problem(kind.status, kind.name, kind.title, detail_of(error), request.scope["path"])
    body.update(_noted(request, kind.name))
    return JSONResponse(body, kind.status, _headers(error, kind), MEDIA_TYPE)


def answer_http(request: Request, error: Exception) -> JSONResponse:
    """Answer what the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    detail = f"{request.method} {request.scope['path']}: {error.detail}; the routes are listed at /docs"
    body = problem(error.status_code, "http", phrase, detail, request.scope["path"])
    body.update(_noted(request, "http"))
    headers = {**(error.headers or {}), "cache-control": "no-store"}
    return JSONResponse(body, error.status_code, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make an app answer every error as a problem."""
    for kind in TABLE:
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_http)
