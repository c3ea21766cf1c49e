"""The versions of a name, newest first, a page at a time: there may be thousands."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request

from metainit.references import Reference
from serving import answers
from serving.store import Store


def version_pages(store: Store) -> APIRouter:
    """Return the route that lists the versions of one name."""
    router = APIRouter(prefix="/v1", tags=["initializations"])

    @router.get("/inits/{name}/versions")
    async def list_versions(
        request: Request,
        name: str,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[int | None, Query(ge=1, description="only versions below this number")] = None,
    ) -> answers.VersionPage:
        """The versions of a name, newest first, a page at a time."""
        wanted = Reference.parse(name).name
        init = store.catalog.init(wanted)
        left = [facts for facts in init.versions if before is None or facts.version < before]
        page = left[:limit]
        base = answers.base_of(request)
        more = f"{base}/v1/inits/{wanted}/versions?limit={limit}&before={page[-1].version}" if page else None
        return answers.VersionPage(
            items=[answers.version_line(init, facts) for facts in page],
            next=more if len(left) > limit else None,
        )

    return router
