"""The route that predicts: an architecture graph comes, and the address of weights for it goes."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.responses import Response

from serving import answers
from serving.cache import Entry
from serving.prediction import Predicting, Question, TooLarge

BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": Question.model_json_schema()}},
    }
}
"""What the API page says of the body, which is read by hand: within a limit."""


def predictions(predicting: Predicting, pick: Callable[..., object], prefix: str) -> APIRouter:
    """The route that predicts with one initialization, below the prefix that names it."""
    router = APIRouter(prefix=prefix, tags=["predictions"])
    picked = Depends(pick)

    @router.post("/predict", status_code=201, openapi_extra=BODY, responses=_responses())
    async def predict(request: Request, response: Response, entry: Entry = picked) -> answers.Prediction:
        """Predict weights for an architecture graph; Location is their blob.

        The same graph, version and seed give the same bytes: 201 when they were computed, 200 when they had
        been before.
        """
        question = _question(await _body(request, predicting.limits.body_bytes))
        found = await predicting.answer(entry, question)
        described = answers.prediction(found, entry.facts.reference, answers.base_of(request))
        response.status_code = 200 if found.made_before else 201
        response.headers["location"] = described.blob
        response.headers["cache-control"] = "no-store"
        return described

    return router


async def _body(request: Request, most: int) -> bytes:
    """Return the body of a request, which is left off once it is larger than the limit.

    Raises:
        TooLarge: it is.
    """
    text = f"the request has more than {most} bytes: predict for a smaller network"
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:19]) > most:
        raise TooLarge(text)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise TooLarge(text)
    return bytes(content)


def _question(content: bytes) -> Question:
    try:
        return Question.model_validate_json(content)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from error


def _responses() -> dict[int | str, dict[str, object]]:
    """What the API page says of other answers than 201."""
    location = {"location": {"description": "the blob", "schema": {"type": "string"}}}
    problems = {
        409: "the initialization is no hypernetwork",
        413: "the body is too large",
        422: "the graph is not valid, too large, or has no usable prediction",
        429: "too many predictions are under way",
        503: "no prediction can be made right now",
    }
    made = {"model": answers.Prediction, "headers": location}
    return {
        200: {**made, "description": "The same was predicted before"},
        201: {**made, "description": "Weights were predicted"},
        **{status: {"description": text} for status, text in problems.items()},
    }
