"""The web page: static files of this package, held in memory, under an address that changes with them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter, Request
from starlette.responses import Response

from serving.catalog import Missing
from serving.ranges import matches

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
INDEX = "index.html"
ASSETS = "{{assets}}"
"""In the index: the folder of the files, relative to the page."""
IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "vary": "Accept",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page, and its entity tag."""

    content: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, content: bytes, name: str) -> Asset:
        """Prepare a file to be sent."""
        return cls(content, MEDIA_TYPES[PurePath(name).suffix], hashlib.sha256(content).hexdigest()[:32])

    def answer(self, request: Request, caching: str) -> Response:
        """Send the file, or say that the client's is still right."""
        headers = {**HEADERS, "cache-control": caching, "etag": f'"{self.tag}"'}
        if matches(request.headers.get("if-none-match"), self.tag):
            return Response(status_code=304, headers=headers)
        return Response(self.content, 200, headers, self.media_type)


@dataclass(frozen=True)
class Page:
    """The index and the files that it names; `version` follows from all of them."""

    index: Asset
    assets: Mapping[str, Asset]
    version: str

    @classmethod
    def load(cls) -> Page:
        """Read the files that come with the package."""
        folder = files("serving") / "web"
        found = {f.name: f.read_bytes() for f in folder.iterdir() if PurePath(f.name).suffix in MEDIA_TYPES}
        total = hashlib.sha256()
        for name, content in sorted(found.items()):
            total.update(f"{name}\0{len(content)}\0".encode() + content)
        version = total.hexdigest()[:16]
        index = found.pop(INDEX).replace(ASSETS.encode(), f"web/{version}".encode())
        assets = {name: Asset.of(content, name) for name, content in found.items()}
        return cls(Asset.of(index, INDEX), assets, version)

    def answer(self, request: Request) -> Response:
        """Send the index."""
        return self.index.answer(request, REVALIDATE)


def page_routes(page: Page) -> APIRouter:
    """The route of the page's files; the index is answered at the root, beside its JSON."""
    router = APIRouter(tags=["page"])

    @router.get("/web/{version}/{name}", include_in_schema=False)
    async def asset(request: Request, version: str, name: str) -> Response:
        found = page.assets.get(name)
        if found is None:
            raise Missing(f"the page has no file {name!r}")
        # A page that was opened before an upgrade gets today's files, which it must not keep as yesterday's.
        return found.answer(request, IMMUTABLE if version == page.version else REVALIDATE)

    return router
