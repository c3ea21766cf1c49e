"""The route that generates: a condition and a seed come, and the addresses of new networks' weights go."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from serving import answers
from serving.bodies import body, described, parsed
from serving.cache import Entry
from serving.generation import Generating, GenerationQuestion


def generations(generating: Generating, pick: Callable[..., object], prefix: str) -> APIRouter:
    """The route that generates with one initialization, below the prefix that names it."""
    router = APIRouter(prefix=prefix, tags=["generation"])
    picked = Depends(pick)

    @router.post(
        "/generate", status_code=201, openapi_extra=described(GenerationQuestion), responses=_responses()
    )
    async def generate(request: Request, response: Response, entry: Entry = picked) -> answers.Generation:
        """Generate weights under a condition: one blob for each network, of its own seed.

        The same version, condition, observation, seed and kind of draw give the same bytes, in whatever
        company they are asked for: 201 when some were drawn, 200 when all had been before.
        """
        question = parsed(GenerationQuestion, await body(request, generating.limits.body_bytes))
        answer = await generating.answer(entry, question)
        response.status_code = 200 if answer.made_before else 201
        response.headers["cache-control"] = "no-store"
        return answers.generation(answer, entry.facts.reference, answers.base_of(request))

    return router


def _responses() -> dict[int | str, dict[str, object]]:
    """What the API page says of other answers than 201."""
    made = {"model": answers.Generation}
    problems = {
        409: "the initialization is no generator, or gives copies of what it was trained on",
        413: "the body, the count or the networks are too large",
        422: "the request is not valid, or the generator does not take it",
        429: "too many networks are under way",
        503: "nothing can be generated right now",
    }
    return {
        200: {**made, "description": "All were generated before"},
        201: {**made, "description": "Weights were generated"},
        **{status: {"description": text} for status, text in problems.items()},
    }
