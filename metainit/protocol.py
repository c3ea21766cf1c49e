"""What is asked of an endpoint and how its answers are read: steps that both clients run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

import httpx

from metainit.asking import MAX_BYTES, Generation, blob_of, blobs_of
from metainit.bounded import MAX_EVIDENCE_BYTES, parse_object
from metainit.card import canonical_json
from metainit.errors import CheckpointError, EndpointError
from metainit.kept import SHA256, Kept, copied
from metainit.references import Reference, parse_url
from metainit.transfer import PASSING, Blob, Patience, Progress, check, downloaded, tried
from metainit.variants import WHOLE, Variant
from metainit.wire import Answer, Ask, Steps, ask, work

MAX_PAGES = 10_000
PREDICTION_TIMEOUT = httpx.Timeout(connect=5.0, read=180.0, write=30.0, pool=5.0)
UNPACKED = {"Accept-Encoding": "identity"}
"""The length and the ETag that are announced are those of the file only where nothing packs it."""
KIND_HEADER = "x-metainit-kind"
"""What the answer for some weights says of their kind."""
SHA256_TAG = re.compile(r'(?:W/)?"(?P<sha256>[0-9a-f]{64})"')
"""A proxy that packs content weakens the tag, which still names the bytes that are then verified."""


class Located(NamedTuple):
    """What a reference means now: its file where that was fetched before, else the kind and the blob."""

    reference: Reference
    path: Path | None
    kind: str = ""
    blob: Blob | None = None
    variant: Variant = WHOLE


@dataclass(frozen=True)
class Endpoint:
    """One endpoint with the cache of what it gave, for one call; its methods are steps, and none waits.

    Args:
        url: its address, without a slash at the end.
        kept: the cache.
        patience: counts the failures of the call; `anew` begins another.
        offline: answer from the cache alone.
    """

    url: str
    kept: Kept
    patience: Patience
    offline: bool = False

    def anew(self) -> Endpoint:
        """Return the same endpoint for another call."""
        return replace(self, patience=self.patience.anew())

    def reference(self, text: str) -> Reference:
        """Read a reference, or an address on this endpoint."""
        if not text.startswith(("http://", "https://")):
            return Reference.parse(text)
        base, reference = parse_url(text)
        if base != self.url:
            raise EndpointError(f"{text} is not on {self.url}; make a Client of {base}")
        return reference

    def address(self, reference: Reference, variant: Variant = WHOLE) -> str:
        """Return the address of an initialization, under which the cache knows it."""
        return f"{self.url}{reference.path}{variant.query}"

    # --- JSON

    def json(self, url: str, limit: int = MAX_EVIDENCE_BYTES) -> Steps[dict[str, Any]]:
        """Return the JSON object at an address."""
        return self._object((yield from self._asked(Ask("GET", url, limit=limit))))

    def shown(self, reference: Reference) -> Steps[dict[str, Any]]:
        """Return what the endpoint shows of an initialization."""
        return (yield from self.json(self.address(reference)))

    def evidence(self, reference: Reference, sha256: str) -> Steps[dict[str, Any] | None]:
        """Return the evidence of some weights, asked for once; None where the alias has moved on."""
        address = self.address(reference)
        try:
            found = (yield from work(partial(self.kept.evidence, address, sha256))).get("evidence")
        except CheckpointError:  # none is kept, or it was damaged: ask again
            if self.offline:
                raise self._absent(f"the evidence of {reference}") from None
            shown = yield from self.shown(reference)
            if shown.get("sha256") != sha256:
                return None
            found = shown.get("evidence")
            with self.kept.storing(f"the evidence of {reference}"):
                self.kept.keep_evidence(address, sha256, found)
        return found if isinstance(found, dict) else None

    # --- weights

    def located(self, reference: Reference, variant: Variant = WHOLE) -> Steps[Located]:
        """Return what a reference means now; a pinned version that is in the cache needs no endpoint."""
        address = self.address(reference, variant)
        with self.kept.storing(reference):
            known = yield from work(partial(self.kept.remembered, address))
        if known is not None and (self.offline or reference.version is not None):
            return Located(reference, self.kept.file(known), variant=variant)
        if self.offline:
            raise self._absent(str(reference) + (f" with {variant.query[1:]}" if variant.query else ""))
        return (yield from tried(partial(self._locate, reference, variant, known), self.patience))

    def fetch(
        self,
        reference: Reference,
        variant: Variant = WHOLE,
        path: str | Path | None = None,
        progress: Progress | None = None,
    ) -> Steps[Path]:
        """Return the verified file of what a reference means now, or a copy of it at `path`."""
        located = yield from self.located(reference, variant)
        return (yield from self.fetched(located, path, progress))

    def fetched(
        self, located: Located, path: str | Path | None = None, progress: Progress | None = None
    ) -> Steps[Path]:
        """Return the verified file of what was located, or a copy of it at `path`."""
        where, variant = located.reference, located.variant
        with self.kept.storing(where):
            if located.blob is not None:
                file = yield from self._brought(located.blob, where, progress)
                yield from work(partial(variant.check, file, where))
                self.kept.remember(self.address(where, variant), located.blob.sha256)
            else:
                assert located.path is not None
                file = located.path
                _all_here(file, progress)
            return file if path is None else (yield from work(partial(copied, file, Path(path))))

    def blob(self, sha256: str, progress: Progress | None = None) -> Steps[Path]:
        """Return the verified file of a blob; one that is in the cache needs no endpoint."""
        if not SHA256.fullmatch(sha256):
            raise EndpointError(f"{sha256!r} is no SHA-256; expected 64 hexadecimal digits")
        with self.kept.storing(sha256):
            if (yield from work(partial(self.kept.has, sha256))):
                _all_here(self.kept.file(sha256), progress)
                return self.kept.file(sha256)
            if self.offline:
                raise self._absent(f"the blob {sha256}")
            url = self._blob_url(sha256)
            size = yield from tried(partial(self._measured, url), self.patience)
            return (yield from self._brought(Blob(sha256, size, url), sha256, progress))

    def predicted(self, reference: Reference, order: Mapping[str, Any]) -> Steps[Path]:
        """Return the verified file of the weights that are predicted for an order."""
        url = f"{self.address(reference)}/predict"
        content = canonical_json(order).encode()
        address = f"{url}#{hashlib.sha256(content).hexdigest()}"
        with self.kept.storing(reference):
            if self.offline:
                known = yield from work(partial(self.kept.remembered, address))
                if known is None:
                    raise self._absent(f"the prediction of {reference} for this graph and seed")
                return self.kept.file(known)
            answer = yield from self._posted(url, content)
            blob = blob_of(answer, url, self.url)
            file = yield from self._brought(blob, reference)
            self.kept.remember(address, blob.sha256)
            return file

    def generated(self, reference: Reference, asked: Generation) -> Steps[list[Path]]:
        """Return the verified files of the networks that are generated, one each, by their seeds."""
        files = []
        for part in asked.parts():
            url = f"{self.address(reference)}/generate"
            answer = yield from self._posted(url, part.body())
            with self.kept.storing(reference):
                for blob in blobs_of(answer, part, url, self.url):
                    files.append((yield from self._brought(blob, reference)))
            reference = Reference.parse(
                str(answer.get("reference"))
            )  # an alias may move before the next part
        return files

    # --- single exchanges

    def _asked(self, question: Ask) -> Steps[Answer]:
        """Exchange until it succeeds or may not any more."""
        if self.offline:
            raise EndpointError(
                f"{question.url} is answered by the endpoint alone, and this client is offline: unset "
                "METAINIT_OFFLINE, and leave offline=True out"
            )
        return (yield from tried(partial(_checked, question), self.patience))

    def _posted(self, url: str, content: bytes) -> Steps[dict[str, Any]]:
        """Post JSON and return the JSON object that is answered; that may take a while."""
        headers = {"Content-Type": "application/json"}
        question = Ask("POST", url, headers, content, PREDICTION_TIMEOUT, limit=MAX_EVIDENCE_BYTES)
        return self._object((yield from self._asked(question)))

    def _measured(self, url: str) -> Steps[int]:
        """Ask for the size of what lies at an address."""
        answer = yield from ask(Ask("HEAD", url, UNPACKED))
        if answer.status == 404:  # a HEAD has no body
            raise EndpointError(f"{self.url} has no blob {url.rpartition('/')[2]}")
        check(answer)
        return _length(answer)

    def _locate(self, reference: Reference, variant: Variant, known: str | None) -> Steps[Located]:
        """Ask what a reference means now."""
        url = f"{self.url}{reference.path}/weights{variant.query}"
        answer = yield from ask(
            Ask("HEAD", url, UNPACKED | ({"If-None-Match": f'"{known}"'} if known else {}))
        )
        if answer.status == 304 and known:
            return Located(reference, self.kept.file(known), variant=variant)
        if answer.status >= 400 and answer.status not in PASSING:  # a HEAD has no body: ask for the reason
            yield from _checked(self._reason(reference, variant))
        check(answer)
        tag = SHA256_TAG.fullmatch(answer.headers.get("etag", ""))
        if tag is None:
            raise EndpointError(
                f"{url} gave no SHA-256 for the weights (ETag {answer.headers.get('etag')!r}); "
                "is this a metainit endpoint, and does no proxy change its answers?"
            )
        # Not the Content-Location: behind a proxy the endpoint does not know the path that it is asked under.
        blob = Blob(tag["sha256"], _length(answer), self._blob_url(tag["sha256"]))
        return Located(reference, None, answer.headers.get(KIND_HEADER, ""), blob, variant)

    def _reason(self, reference: Reference, variant: Variant) -> Ask:
        """Return the request that is refused for the same reason, with a body that says it."""
        if variant.query:
            return Ask("GET", f"{self.url}{reference.path}/weights{variant.query}", {"Range": "bytes=0-0"})
        return Ask("GET", self.address(reference), limit=MAX_EVIDENCE_BYTES)

    def _brought(self, blob: Blob, what: object, progress: Progress | None = None) -> Steps[Path]:
        def download(blob: Blob, path: Path) -> Steps[None]:
            return downloaded(blob, path, self.patience, progress)

        file = yield from self.kept.brought(blob, what, download)
        _all_here(file, progress)
        return file

    def _blob_url(self, sha256: str) -> str:
        return f"{self.url}/v1/blobs/{sha256}"

    def _object(self, answer: Answer) -> dict[str, Any]:
        try:
            return parse_object(answer.content, answer.url)
        except CheckpointError as error:
            raise EndpointError(f"{error}; is this a metainit endpoint?") from error

    def _absent(self, what: str) -> EndpointError:
        return EndpointError(
            f"{what} of {self.url} is not in the cache ({self.kept.folder}), and this client is offline: ask "
            "for it once with METAINIT_OFFLINE unset and offline=True left out, or point METAINIT_CACHE to a "
            "cache that has it"
        )


class Pages:
    """The addresses of a list that comes in pages: ask for `wanted` until it is None."""

    def __init__(self, url: str) -> None:
        """Begin with the first page of an endpoint."""
        self.items: list[dict[str, Any]] = []
        self.wanted: str | None = f"{url}/v1/inits?limit=200"
        self._url, self._left = url, MAX_PAGES

    def add(self, page: Mapping[str, Any]) -> None:
        """Take the page at `wanted`.

        Raises:
            EndpointError: the pages have no end, or lead elsewhere.
        """
        self.items.extend(page.get("items", []))
        self._left -= 1
        if page.get("next") and not self._left:
            raise EndpointError(f"{self._url} lists more than {MAX_PAGES} pages; expected an end")
        assert self.wanted is not None
        self.wanted = self._following(self.wanted, str(page["next"])) if page.get("next") else None

    def _following(self, url: str, following: str) -> str:
        """Return the address of the next page: the query is the endpoint's, the place is ours."""
        ours, theirs = urlsplit(url), urlsplit(urljoin(url, following))
        if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
            raise EndpointError(f"{url} goes on at {following}, which is not on {self._url}: not followed")
        if ours.query == theirs.query:
            raise EndpointError(f"{url} names itself as the next page; is this a metainit endpoint?")
        return f"{self._url}/v1/inits?{theirs.query}"


def _checked(question: Ask) -> Steps[Answer]:
    answer = yield from ask(question)
    check(answer)
    return answer


def _length(answer: Answer) -> int:
    """Read how long the weights are that an answer is about."""
    length = answer.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 20) or int(length) > MAX_BYTES:
        raise EndpointError(
            f"{answer.url} announces {length or 'no'!r} bytes, expected a number up to {MAX_BYTES}; "
            "is this a metainit endpoint, and does no proxy change its answers?"
        )
    return int(length)


def _all_here(path: Path, progress: Progress | None) -> None:
    if progress is not None:
        size = path.stat().st_size
        progress(size, size)
