"""What there is, in numbers; the starts that need no checkpoint; and the graph behind a card."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from metainit.card import Card
from serving.cache import Entry
from serving.graphs import Drawing, drawing_of
from serving.ranges import matches
from serving.selection import counted
from serving.store import Store


class Rule(BaseModel):
    """A computed start: a rule that fills a network where it is, so that there is nothing to fetch."""

    name: str
    paper: str


class Overview(BaseModel):
    """How many initializations there are of each family and domain, and the rules beside them."""

    total: int
    families: dict[str, int]
    domains: dict[str, int]
    rules: list[Rule] = Field(description="sources that `metainit.init_` takes without an endpoint")


def overview_routes(store: Store) -> APIRouter:
    """The route that counts."""
    router = APIRouter(prefix="/v1", tags=["initializations"])

    @router.get("/overview")
    def overview() -> Overview:
        """What there is to choose from."""
        from metainit.initializers import INITIALIZERS  # imports torch: this runs in a thread

        families, domains = counted(store)
        rules = [Rule(name=name, paper=paper) for name, (_, paper) in INITIALIZERS.items()]
        return Overview(total=len(store.catalog.inits), families=families, domains=domains, rules=rules)

    return router


def graph_routes(pick: Callable[..., object], prefix: str) -> APIRouter:
    """The route of one initialization's architecture graph, below the prefix that names it."""
    router = APIRouter(prefix=prefix, tags=["initializations"])
    picked = Depends(pick)
    # Tracing takes a core for a moment.
    tracing = anyio.Semaphore(1)

    @router.get("/graph", response_model=Drawing)
    async def graph(request: Request, entry: Entry = picked) -> Drawing | Response:
        """The architecture graph of its network, laid out; of a hypernetwork, one that it was tested on."""
        tag = f"graph-{entry.facts.sha256[:32]}"
        headers = {"etag": f'"{tag}"', "cache-control": "no-cache"}
        if matches(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        card = Card.model_validate(dict(entry.card))
        async with tracing:
            drawing = await anyio.to_thread.run_sync(drawing_of, card)
        return Response(drawing.model_dump_json(), media_type="application/json", headers=headers)

    return router
