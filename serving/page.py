"""The web page: static files of this package, held in memory, under an address that changes with them."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

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
    "vary": "Accept, Accept-Encoding",
}


@dataclass(frozen=True)
class Asset:
    """A file of the page: its bytes as they are and compressed, and their entity tag."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str

    @classmethod
    def of(cls, content: bytes, name: str) -> Asset:
        """Prepare a file to be sent."""
        media_type = MEDIA_TYPES[name[name.rindex(".") :]]
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, gzip.compress(content, 9, mtime=0), media_type, tag)

    def answer(self, request: Request, caching: str) -> Response:
        """Send the file, or say that the client's is still right."""
        zipped = "gzip" in request.headers.get("accept-encoding", "")
        # Strong tags tell encodings apart.
        tag = f"{self.tag}-gzip" if zipped else self.tag
        headers = {**HEADERS, "cache-control": caching, "etag": f'"{tag}"'}
        if matches(request.headers.get("if-none-match"), tag):
            return Response(status_code=304, headers=headers)
        if zipped:
            headers["content-encoding"] = "gzip"
        return Response(self.compressed if zipped else self.content, 200, headers, self.media_type)


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
        found = {name: content for name, content in _read(folder)}
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


def _read(folder: Traversable) -> list[tuple[str, bytes]]:
    return [
        (item.name, item.read_bytes()) for item in folder.iterdir() if item.name.endswith((*MEDIA_TYPES,))
    ]
