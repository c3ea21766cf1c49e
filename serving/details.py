"""What a look-up of one version answers, made once and kept as bytes until the catalog changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from serving import answers
from serving.cache import Entry
from serving.catalog import Catalog
from serving.ranges import matches
from serving.store import Store

MOST = 4096
"""Answers that are kept; the paths that an app is mounted at are few, but not ours to count."""


@dataclass(frozen=True)
class _Kept:
    entry: Entry
    body: bytes
    tag: str


class Details:
    """The look-ups of a store's versions: JSON bytes with an entity tag, for one state of the catalog."""

    def __init__(self, store: Store) -> None:
        """Keep nothing yet."""
        self._store = store
        self._catalog: Catalog | None = None
        self._kept: dict[tuple[str, str], _Kept] = {}

    def answer(self, request: Request, entry: Entry, cache_control: str) -> Response:
        """Answer a GET for a version: 200, or 304 where the client has these very bytes."""
        kept = self._of(entry, answers.base_of(request))
        headers = {"etag": f'"{kept.tag}"', "cache-control": cache_control}
        if matches(request.headers.get("if-none-match"), kept.tag):
            return Response(status_code=304, headers=headers)
        return Response(kept.body, headers=headers, media_type="application/json")

    def _of(self, entry: Entry, base: str) -> _Kept:
        catalog = self._store.catalog
        if catalog is not self._catalog or len(self._kept) >= MOST:
            self._catalog, self._kept = catalog, {}
        key = (entry.facts.reference, base)
        kept = self._kept.get(key)
        if kept is None or kept.entry is not entry:
            detail = answers.init_detail(catalog.inits.get(entry.facts.name), entry, base)
            body = detail.model_dump_json().encode()
            kept = self._kept[key] = _Kept(entry, body, hashlib.sha256(body).hexdigest())
        return kept
