"""The HTTP API as a FastAPI app over a store: `create_app(store)` is all that a server needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response

from metainit.client import KIND_HEADER
from metainit.references import Reference
from serving import answers, problems
from serving.cache import PICTURE_TYPES, Entry
from serving.catalog import Missing
from serving.details import Details
from serving.files import answer_file
from serving.metrics import Measured, Metrics
from serving.prediction import Limits, Predicting
from serving.prediction_routes import predictions
from serving.predictor import LocalPredictor, Predictor
from serving.store import NotReady, Store

WEIGHTS_TYPE = "application/vnd.safetensors"
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"


def create_app(store: Store, predictor: Predictor | None = None, limits: Limits | None = None) -> FastAPI:
    """Return the app over a store; its lifespan starts and stops the store.

    Args:
        store: what is served.
        predictor: answers requests for predictions; one in this process where it is None.
        limits: of a prediction.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(store.start)
        yield
        await anyio.to_thread.run_sync(store.stop)

    app = FastAPI(title="metainit", summary="Initial weights over HTTP", lifespan=lifespan)
    problems.install(app)
    metrics = Metrics(store)
    predicting = Predicting(predictor or LocalPredictor(), store.predictions, limits)
    app.add_middleware(Measured, metrics=metrics)
    app.include_router(_operations(store, metrics))
    app.include_router(_list(store))
    for prefix, pick in (
        ("/v1/inits/{name}/versions/{version}", _pick_version(store)),
        ("/v1/inits/{reference}", _pick_reference(store)),
    ):
        app.include_router(_init(store, pick, prefix))
        app.include_router(predictions(predicting, pick, prefix))
    app.include_router(_blobs(store))
    return app


Pick = Callable[..., object]


def _pick_reference(store: Store) -> Pick:
    async def pick(reference: str) -> Entry:
        return await _entry(store, Reference.parse(reference))

    return pick


def _pick_version(store: Store) -> Pick:
    async def pick(name: str, version: int) -> Entry:
        return await _entry(store, Reference.parse(f"{name}/{version}"))

    return pick


async def _entry(store: Store, reference: Reference) -> Entry:
    """Return a version; only one that is not at hand takes a thread and waits for the registry."""
    try:
        entry = store.at_hand(reference)
    except Missing:
        entry = None
    if entry is None:
        entry = await anyio.to_thread.run_sync(store.get, reference)
    return entry


def _list(store: Store) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["initializations"])

    @router.get("/inits")
    async def list_inits(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        after: Annotated[str, Query(max_length=200)] = "",
    ) -> answers.InitPage:
        """Names, their versions and aliases, in alphabetical order, a page at a time."""
        inits = store.catalog.inits
        names = sorted(name for name in inits if name > after)
        page = names[:limit]
        base = answers.base_of(request)
        follow = f"{base}/v1/inits?limit={limit}&after={page[-1]}" if len(names) > limit else None
        return answers.InitPage(items=[answers.init_line(inits[name], base) for name in page], next=follow)

    return router


def _init(store: Store, pick: Pick, prefix: str) -> APIRouter:
    """The routes of one initialization, below the prefix that names it."""
    router = APIRouter(prefix=prefix, tags=["initializations"])
    picked = Depends(pick)
    details = Details(store)

    @router.get("", response_model=answers.InitDetail)
    async def show(request: Request, entry: Entry = picked) -> Response:
        """Card, evidence, pictures, and where the weights are. If-None-Match works."""
        return details.answer(request, entry, REVALIDATE)

    @router.get("/pictures")
    async def list_pictures(request: Request, entry: Entry = picked) -> answers.Pictures:
        """The pictures of the evidence."""
        return answers.Pictures(items=answers.pictures(entry, answers.base_of(request)))

    @router.get("/pictures/{picture}", response_class=FileResponse)
    async def show_picture(picture: str, entry: Entry = picked) -> Response:
        """One picture."""
        path = entry.pictures.get(picture)
        if path is None:
            have = ", ".join(entry.pictures) or "none"
            raise Missing(f"{entry.facts.reference} has no picture {picture!r}; it has: {have}")
        media_type = PICTURE_TYPES[path.suffix.lower()]
        headers = {"cache-control": REVALIDATE, "x-content-type-options": "nosniff"}
        if media_type == "image/svg+xml":
            headers["content-security-policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        return FileResponse(path, media_type=media_type, headers=headers)

    @router.head("/weights", include_in_schema=False)
    @router.get("/weights", response_class=FileResponse)
    async def weights(request: Request, entry: Entry = picked, redirect: bool = False) -> Response:
        """The checkpoint file. ETag is its SHA-256; Range, HEAD and If-None-Match work."""
        blob = f"{answers.base_of(request)}/v1/blobs/{entry.facts.sha256}"
        if redirect:
            return RedirectResponse(blob, 307, {"cache-control": REVALIDATE})
        headers = {
            "content-location": blob,
            "cache-control": REVALIDATE,
            KIND_HEADER: entry.facts.kind,
            "content-disposition": f'attachment; filename="{entry.facts.name}.safetensors"',
        }
        return answer_file(request, entry.blob, entry.facts.sha256, WEIGHTS_TYPE, headers)

    return router


def _blobs(store: Store) -> APIRouter:
    router = APIRouter(prefix="/v1/blobs", tags=["blobs"])

    @router.head("/{sha256}", include_in_schema=False)
    @router.get("/{sha256}", response_class=FileResponse)
    async def blob(request: Request, sha256: str) -> Response:
        """The bytes with this SHA-256: they never change, so any cache may keep them for ever."""
        path = store.blob_at_hand(sha256)
        if path is None:
            path = await anyio.to_thread.run_sync(store.blob, sha256)
        return answer_file(request, path, sha256, WEIGHTS_TYPE, {"cache-control": IMMUTABLE})

    return router


def _operations(store: Store, metrics: Metrics) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def health() -> answers.Health:
        """Whether the process lives."""
        return answers.Health()

    @router.get("/readyz")
    async def ready() -> answers.Readiness:
        """Whether requests can be answered, and whether the registry is in reach."""
        if not store.ready:
            raise NotReady(f"the registry was never reached: {store.status.error or 'still looking'}")
        return answers.Readiness(
            ready=True,
            stale=store.status.stale,
            inits=len(store.catalog.inits),
            registry_error=store.status.error,
            quarantined=store.counts.quarantined,
        )

    @router.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        base = answers.base_of(request)
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_page(store, base))
        links = {
            "inits": f"{base}/v1/inits",
            "openapi": f"{base}/openapi.json",
            "docs": f"{base}/docs",
        }
        return JSONResponse({"name": "metainit", **links})

    return router


def _page(store: Store, base: str) -> str:
    """A plain page of links; names are safe in HTML, since their pattern admits no markup."""
    lines = "".join(
        f'<li><a href="{base}/v1/inits/{name}">{name}</a> ({len(init.versions)} versions)</li>'
        for name, init in sorted(store.catalog.inits.items())
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>metainit</title>'
        "<h1>metainit</h1>"
        f"<ul>{lines or '<li>nothing is registered yet</li>'}</ul>"
        f'<p><a href="{base}/docs">API</a> <a href="{base}/metrics">metrics</a></p></html>'
    )
