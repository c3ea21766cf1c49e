"""Bodies of requests, read within a limit."""

from __future__ import annotations

from fastapi import Request

from serving.prediction import TooLarge


async def read_body(request: Request, most: int, remedy: str) -> bytes:
    """Return the body of a request, which is left off once it is larger than the limit.

    Raises:
        TooLarge: it is; the text ends with the remedy.
    """
    text = f"the request has more than {most} bytes: {remedy}"
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > most:
        raise TooLarge(text)
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > most:
            raise TooLarge(text)
    return bytes(content)
