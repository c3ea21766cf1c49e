"""The HTTP API as a FastAPI app over a store: `create_app(store)` is all that a server needs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response

from metainit import __version__
from metainit.client import KIND_HEADER
from metainit.references import Reference
from metainit.variants import Dtype
from serving import answers, problems
from serving.bounds import Load
from serving.cache import PICTURE_TYPES, Entry
from serving.catalog import Missing
from serving.derived import Deriving, named
from serving.details import Details
from serving.edge import surround
from serving.fetching import Fetching
from serving.files import answer_file
from serving.generation import Generating, GenerationLimits
from serving.generation_routes import generations
from serving.generator import Drawer, LocalDrawer
from serving.metrics import Metrics
from serving.overview import graph_routes, overview_routes
from serving.page import IMMUTABLE, REVALIDATE, Page, page_routes
from serving.peers import Door
from serving.prediction import Limits, Predicting
from serving.prediction_routes import predictions
from serving.predictor import LocalPredictor, Predictor
from serving.readiness import readiness
from serving.reference_page import POLICY, reference_page
from serving.seen import seen
from serving.selection import Family, Selection, entry_of, part_of
from serving.settings import EndpointSettings
from serving.snapshots import Snapshots
from serving.store import Store
from serving.tries import Tries
from serving.try_routes import tries_routes
from serving.version_routes import version_pages
from serving.warming import warm

WEIGHTS_TYPE = "application/vnd.safetensors"
PRIVATE = "private, max-age=31536000, immutable"


def create_app(
    store: Store,
    predictor: Predictor | None = None,
    limits: Limits | None = None,
    settings: EndpointSettings | None = None,
    door: Door | None = None,
    drawer: Drawer | None = None,
    generation_limits: GenerationLimits | None = None,
    names_answers: bool = True,
) -> FastAPI:
    """Return the app over a store; its lifespan starts and stops the store.

    Args:
        store: what is served.
        predictor: answers requests for predictions; one in this process where it is None.
        limits: of a prediction.
        settings: keys, limits and what the endpoint tells of itself.
        door: the proxy that every request has to come through, if there is one.
        drawer: answers requests for generated weights; one in this process where it is None.
        generation_limits: of such a request.
        names_answers: False where the server adds X-Request-Id to answers, as Ray Serve does.
    """
    settings = settings or EndpointSettings()
    store.keep_free(settings.least_free_bytes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(store.start)
        snapshots.start()
        warm()
        yield
        await anyio.to_thread.run_sync(snapshots.stop)
        await anyio.to_thread.run_sync(tries.close)
        await anyio.to_thread.run_sync(store.stop)
        await anyio.to_thread.run_sync(edge.stop)

    app = FastAPI(
        title="metainit",
        summary="Initial weights over HTTP",
        lifespan=lifespan,
        redirect_slashes=False,  # the redirect would name whatever host the client names
        docs_url=None,  # FastAPI's pages load their scripts from other servers
        redoc_url=None,
    )
    problems.install(app)
    limits = limits or Limits(waiting=settings.queue)
    predicting = Predicting(predictor or LocalPredictor(), store.predictions, limits)
    deriving = Deriving(store.predictions)
    generating = Generating(drawer or LocalDrawer(), store.predictions, generation_limits)
    fetching = Fetching(store)
    tries, page = Tries(store.predictions), Page.load()
    load = Load()
    metrics = Metrics(store, load, lambda: predicting.under_way + generating.under_way)
    snapshots = Snapshots(store.folder / "metrics", metrics.text)
    edge = surround(app, settings, load, metrics.count, store.stale_for, door, names_answers)
    app.include_router(_operations(store, snapshots, settings, page))
    app.include_router(page_routes(page))
    app.include_router(overview_routes(store))
    app.include_router(_list(store))
    app.include_router(version_pages(store))
    for prefix, pick in (
        ("/v1/inits/{name}/versions/{version}", _pick_version(fetching)),
        ("/v1/inits/{reference}", _pick_reference(fetching)),
    ):
        app.include_router(_init(store, deriving, pick, prefix))
        app.include_router(predictions(predicting, pick, prefix))
        app.include_router(generations(generating, pick, prefix))
        app.include_router(graph_routes(pick, prefix))
    app.include_router(tries_routes(tries, fetching.entry))
    app.include_router(_blobs(fetching, PRIVATE if settings.keys else IMMUTABLE))
    return app


Pick = Callable[..., object]


def _pick_reference(fetching: Fetching) -> Pick:
    async def pick(reference: str) -> Entry:
        return await fetching.entry(Reference.parse(reference))

    return pick


def _pick_version(fetching: Fetching) -> Pick:
    async def pick(name: str, version: int) -> Entry:
        return await fetching.entry(Reference.parse(f"{name}/{version}"))

    return pick


def _list(store: Store) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["initializations"])

    @router.get("/inits")
    async def list_inits(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        after: Annotated[str, Query(max_length=200)] = "",
        family: Family | None = None,
        domain: Annotated[str | None, Query(max_length=100)] = None,
        q: Annotated[str, Query(max_length=200, description="words of names, methods and networks")] = "",
    ) -> answers.InitPage:
        """Names, their versions and aliases, in alphabetical order, a page at a time."""
        part = part_of(store, Selection(family, domain, q), after, limit)
        base = answers.base_of(request)
        return answers.InitPage(
            items=[answers.init_line(init, base, entry_of(store, init)) for init in part.inits],
            next=f"{base}/v1/inits?{part.following}" if part.following else None,
            total=part.total,
        )

    return router


def _init(store: Store, deriving: Deriving, pick: Pick, prefix: str) -> APIRouter:
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
        headers = {"cache-control": REVALIDATE}
        if media_type == "image/svg+xml":
            headers["content-security-policy"] = "default-src 'none'; style-src 'unsafe-inline'"
        return FileResponse(path, media_type=media_type, headers=headers)

    @router.head("/weights", include_in_schema=False)
    @router.get("/weights", response_class=FileResponse)
    async def weights(
        request: Request,
        entry: Entry = picked,
        redirect: bool = False,
        dtype: Dtype | None = None,
        tensors: Annotated[str | None, Query(description="names with commas between them")] = None,
        tensor: Annotated[list[str] | None, Query(description="a name; may be repeated")] = None,
    ) -> Response:
        """The checkpoint file. ETag is its SHA-256; Range, HEAD and If-None-Match work.

        With `dtype`, `tensors` or `tensor` it is a checkpoint of its own, with its own SHA-256.
        """
        path, sha256 = entry.blob, entry.facts.sha256
        if dtype is not None or tensors is not None or tensor:
            kept = await deriving.derived(entry, dtype, named(tensors, tensor or []))
            if kept is not None:
                path, sha256 = await anyio.to_thread.run_sync(store.blob, kept.sha256), kept.sha256
        blob = f"{answers.base_of(request)}/v1/blobs/{sha256}"
        if redirect:
            return RedirectResponse(blob, 307, {"cache-control": REVALIDATE})
        headers = {
            "content-location": blob,
            "cache-control": REVALIDATE,
            KIND_HEADER: entry.facts.kind,
            "content-disposition": f'attachment; filename="{entry.facts.name}.safetensors"',
        }
        return answer_file(request, path, sha256, WEIGHTS_TYPE, headers)

    return router


def _blobs(fetching: Fetching, caching: str) -> APIRouter:
    router = APIRouter(prefix="/v1/blobs", tags=["blobs"])

    @router.head("/{sha256}", include_in_schema=False)
    @router.get("/{sha256}", response_class=FileResponse)
    async def blob(request: Request, sha256: str) -> Response:
        """The bytes with this SHA-256: they never change, so any cache may keep them for ever."""
        path = await fetching.blob(sha256)
        return answer_file(request, path, sha256, WEIGHTS_TYPE, {"cache-control": caching})

    return router


def _operations(store: Store, snapshots: Snapshots, settings: EndpointSettings, page: Page) -> APIRouter:
    router = APIRouter(tags=["operations"])

    @router.get("/healthz")
    async def health() -> answers.Health:
        """Whether the process lives."""
        return answers.Health()

    @router.get("/readyz", response_model_exclude_none=True)
    async def ready(request: Request) -> answers.Readiness:
        """Whether requests can be answered, and what is wrong behind: registry, disk, damaged versions."""
        return readiness(store, settings.least_free_bytes, told=seen(request.scope).may("read"))

    @router.get("/metrics", include_in_schema=False)
    async def show_metrics() -> Response:
        text = await anyio.to_thread.run_sync(snapshots.shown)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        text = reference_page(request.app.openapi())
        return Response(text, headers={"content-security-policy": POLICY}, media_type="text/html")

    @router.get("/", include_in_schema=False)
    async def index(request: Request) -> Response:
        base = answers.base_of(request)
        if "text/html" in request.headers.get("accept", ""):
            return page.answer(request)
        links = {
            "inits": f"{base}/v1/inits",
            "openapi": f"{base}/openapi.json",
            "docs": f"{base}/docs",
        }
        found = {"name": "metainit", "version": __version__, **links}
        return JSONResponse(found, headers={"vary": "Accept"})

    return router
