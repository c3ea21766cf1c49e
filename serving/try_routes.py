"""The routes of live fits: an image comes, and what two starts make of it goes, step by step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Query, Request
from sse_starlette import EventSourceResponse, JSONServerSentEvent
from starlette.responses import JSONResponse, Response

from metainit.errors import EndpointError
from metainit.references import Reference
from serving import answers, problems
from serving.bodies import body
from serving.cache import Entry
from serving.tries import SAMPLES, BadImage, Tries, Try, sample_file

THUMBNAIL = 160
"""Pixels on a side of a sample's picture."""
DAY = "private, max-age=86400"
EVENTS = "text/event-stream"
Find = Callable[[Reference], Awaitable[Entry]]


@dataclass(frozen=True)
class _Base:
    """Addresses below the path that the app is mounted at."""

    path: str

    def of(self, one: Try) -> str:
        return f"{self.path}/v1/try/{one.id}"


def tries_routes(tries: Tries, find: Find) -> APIRouter:
    """The routes of live fits.

    Args:
        tries: runs them.
        find: returns the version that a reference means.
    """
    router = APIRouter(prefix="/v1/try", tags=["live fits"])
    # One image at a time: an unpacked one can be large.
    decoding = anyio.Semaphore(1)

    async def begin(request: Request, init: str, sample: str | None, steps: int) -> Try:
        """Check what was asked for, decode the image, and begin."""
        # They import torch, which the event loop does not wait for.
        await anyio.to_thread.run_sync(import_module, "serving.trying")
        from serving import image_files, trying

        entry = await find(Reference.parse(init))
        facts, limits = entry.facts, tries.limits
        if steps > limits.steps:
            raise EndpointError(f"steps: expected at most {limits.steps}, got {steps}")
        frame = trying.frame_of(facts.kind, entry.card, facts.reference, limits)
        if sample is None:
            content = await body(request, limits.body_bytes, "send a smaller image")
            if not content:
                raise BadImage(f"send an image as the body, or name a sample: {', '.join(SAMPLES)}")
        else:
            content = await anyio.to_thread.run_sync(lambda: sample_file(sample).read_bytes())
        async with decoding:
            pixels = await anyio.to_thread.run_sync(image_files.read_pixels, content, frame, limits.pixels)
        return tries.start(entry, trying.Trial(entry.blob, entry.evidence, pixels, steps))

    @router.get("")
    async def options(request: Request) -> dict[str, Any]:
        """What a live fit takes: samples, and limits."""
        base = answers.base_of(request)
        samples = [
            {"name": name, "shows": shows, "picture": f"{base}/v1/try/samples/{name}"}
            for name, (_, shows) in SAMPLES.items()
        ]
        limits = tries.limits
        return {
            "samples": samples,
            "limits": {"body_bytes": limits.body_bytes, "pixels": limits.pixels, "steps": limits.steps},
        }

    @router.get("/samples/{name}", response_class=Response)
    async def sample_picture(name: str) -> Response:
        """A small picture of a sample."""

        def drawn() -> bytes:
            from serving.image_files import thumbnail

            return thumbnail(sample_file(name), THUMBNAIL)

        content = await anyio.to_thread.run_sync(drawn)
        return Response(content, media_type="image/png", headers={"cache-control": DAY})

    @router.post("", status_code=202, openapi_extra=BODY, responses=_responses())
    async def start(
        request: Request,
        init: Annotated[str, Query(max_length=420, description="name, name@alias or name/version")],
        sample: Annotated[str | None, Query(max_length=40, description="instead of a body")] = None,
        steps: Annotated[int, Query(ge=1, le=100_000)] = 100,
    ) -> Response:
        """Fit an image from a prior and from the ordinary start; the body is a PNG, JPEG or WebP.

        202 and the Location of the fit, whose events follow it. With `Accept: text/event-stream` the answer
        is those events themselves, and the fit ends when the client leaves: that needs no second request,
        which another replica might get.
        """
        one = await begin(request, init, sample, steps)
        base = _Base(answers.base_of(request))
        if EVENTS in request.headers.get("accept", ""):
            return _stream(tries, one, base, 0, stop_on_leave=True)
        body = {"id": one.id, "init": one.reference, "url": base.of(one), "events": f"{base.of(one)}/events"}
        return JSONResponse(body, 202, {"location": base.of(one), "cache-control": "no-store"})

    @router.get("/{identity}")
    async def show(identity: str) -> dict[str, Any]:
        """How a live fit stands, and its last event without pictures."""
        one = tries.find(identity)
        name, value = one.events[-1] if one.events else ("", {})
        last = {k: v for k, v in value.items() if k not in ("picture", "target")}
        return {"id": one.id, "init": one.reference, "state": one.state, "last": {"event": name, **last}}

    @router.delete("/{identity}", status_code=204)
    async def stop(identity: str) -> None:
        """Stop a live fit."""
        tries.stop(tries.find(identity))

    @router.get("/{identity}/events", response_class=EventSourceResponse)
    async def events(request: Request, identity: str) -> Response:
        """The events of a live fit from its begin on, or from behind Last-Event-ID.

        `begin`: sizes, the image as it is fitted, both routines. `frame`: one start after some steps: PSNR
        in dB and a picture. `end`: the checksums of both fitted weights, which are blobs. `problem`: why
        there is no more.
        """
        one = tries.find(identity)
        seen = request.headers.get("last-event-id", "")
        after = min(int(seen), len(one.events)) if seen.isdecimal() and len(seen) < 9 else 0
        return _stream(tries, one, _Base(answers.base_of(request)), after, stop_on_leave=False)

    return router


def _stream(tries: Tries, one: Try, base: _Base, after: int, *, stop_on_leave: bool) -> Response:
    async def told() -> AsyncIterator[JSONServerSentEvent]:
        watching = tries.watch(one, after)
        try:
            async for number, name, value in watching:
                yield JSONServerSentEvent(_completed(name, value, one, base), event=name, id=str(number))
            if one.error is not None:
                yield JSONServerSentEvent(_problem(one.error, base.of(one)), event="problem")
        finally:
            await watching.aclose()
            if stop_on_leave:
                tries.stop(one)

    headers = {"cache-control": "no-store", "location": base.of(one)}
    return EventSourceResponse(told(), headers=headers, ping=15)


def _completed(name: str, value: dict[str, Any], one: Try, base: _Base) -> dict[str, Any]:
    """Add what depends on where the app is mounted."""
    if name == "begin":
        return {"id": one.id, "init": one.reference, **value}
    if name == "end":
        weights = {
            side: {**kept, "blob": f"{base.path}/v1/blobs/{kept['sha256']}"}
            for side, kept in value["weights"].items()
        }
        return {**value, "weights": weights}
    return value


def _problem(error: Exception, instance: str) -> dict[str, Any]:
    kind = problems.kind_of(error)
    if kind.status == 500:
        problems.LOGGER.error("%s failed", instance, exc_info=error)
    return problems.problem(kind.status, kind.name, kind.title, problems.detail_of(error), instance)


BODY = {
    "requestBody": {
        "required": False,
        "content": {
            media: {"schema": {"type": "string", "format": "binary"}}
            for media in ("image/png", "image/jpeg", "image/webp", "application/octet-stream")
        },
    }
}
"""What the API page says of the body, which is read by hand: within a limit."""


def _responses() -> dict[int | str, dict[str, Any]]:
    """What the API page says of other answers than 202."""
    told = {
        200: "The events of the fit, where the client accepts them",
        404: "There is no such initialization or sample",
        409: "The initialization is no prior for images",
        413: "The body is too large",
        422: "The body is no image",
        429: "Too many live fits are under way",
    }
    return {status: {"description": text} for status, text in told.items()}
