"""Bodies of requests that are read by hand: within a limit, and into a model."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from serving.making import TooLarge

Model = TypeVar("Model", bound=BaseModel)


async def body(request: Request, most: int, remedy: str = "ask for something smaller") -> bytes:
    """Return the body of a request, which is left off once it is larger than the limit.

    Raises:
        TooLarge: it is; the text ends with the remedy.
    """
    text = f"the request has more than {most} bytes: {remedy}"
    announced = request.headers.get("content-length", "")
    if announced.isascii() and announced.isdigit() and int(announced[:19]) > most:
        raise TooLarge(text)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise TooLarge(text)
    return bytes(content)


def parsed(model: type[Model], content: bytes) -> Model:
    """Return what a body says.

    Raises:
        RequestValidationError: it is no such model.
    """
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()]) from error


def described(model: type[BaseModel]) -> dict[str, object]:
    """Return what the API page says of such a body."""
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": model.model_json_schema()}},
        }
    }
