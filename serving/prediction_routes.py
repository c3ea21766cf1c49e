"""The route that predicts: an architecture graph comes, and the address of weights for it goes."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from serving import answers
from serving.bodies import body, described, parsed
from serving.cache import Entry
from serving.prediction import Predicting, Question


def predictions(predicting: Predicting, pick: Callable[..., object], prefix: str) -> APIRouter:
    """The route that predicts with one initialization, below the prefix that names it."""
    router = APIRouter(prefix=prefix, tags=["predictions"])
    picked = Depends(pick)

    @router.post("/predict", status_code=201, openapi_extra=described(Question), responses=_responses())
    async def predict(request: Request, response: Response, entry: Entry = picked) -> answers.Prediction:
        """Predict weights for an architecture graph; Location is their blob.

        The same graph, version and seed give the same bytes: 201 when they were computed, 200 when they had
        been before.
        """
        question = parsed(Question, await body(request, predicting.limits.body_bytes))
        found = await predicting.answer(entry, question)
        described = answers.prediction(found, entry.facts.reference, answers.base_of(request))
        response.status_code = 200 if found.made_before else 201
        response.headers["location"] = described.blob
        response.headers["cache-control"] = "no-store"
        return described

    return router


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
