"""The HTTP client of the endpoint: finds an initialization, fetches, verifies and keeps it.

A fetch is one HEAD (an unchanged alias costs one 304) and one GET of an immutable blob. Bytes land
in a ``.part`` file that a later call resumes with Range and If-Range; only a file whose SHA-256 is
the announced one enters the cache, which is content-addressed and shared by all of a user's
processes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import httpx
from filelock import FileLock, Timeout

from metainit.errors import EndpointError
from metainit.places import cache_folder
from metainit.references import Reference, parse_url
from metainit.transfer import Blob, Retry, Transfer, check, checked, file_sha256

if TYPE_CHECKING:
    from metainit.checkpoint import Checkpoint

CACHE = "endpoint"
MAX_BYTES = 64 << 30
PATIENT = Retry()
_TAG = re.compile(r'"(?P<sha256>[0-9a-f]{64})"')


def resolve_url(source: str) -> Path:
    """Fetch the checkpoint at an address and return its verified file in the cache.

    Raises:
        EndpointError: the address has another form, the endpoint cannot be reached, or it answers
            with a problem.
    """
    base, reference = parse_url(source)
    with Client(base) as client:
        return client.fetch(str(reference))


class Client:
    """A client of one endpoint. All its waits are finite, and its cache is shared by processes.

    Args:
        url: address of the endpoint, e.g. ``http://127.0.0.1:8000``.
        key: sent as a bearer token, to this endpoint only.
        transport: an httpx transport, e.g. one that calls an app in the same process.
        retry: how often and how patiently failed requests are repeated.
        cache: folder of the cache instead of the user's.

    Example:
        >>> Client('http://127.0.0.1:8000')
        Client('http://127.0.0.1:8000')
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        transport: httpx.BaseTransport | None = None,
        *,
        retry: Retry = PATIENT,
        cache: Path | None = None,
    ) -> None:
        """Open no connection yet.

        Raises:
            EndpointError: `url` is no address of an endpoint.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"{url!r} is no endpoint; expected e.g. http://127.0.0.1:8000")
        self.url = url.rstrip("/")
        self._cache = (cache or cache_folder(CACHE)).absolute()
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else None,
            timeout=httpx.Timeout(connect=5.0, read=30.0, write=30.0, pool=5.0),
            transport=transport,
        )
        self._transfer = Transfer(self._http, self.url, retry)

    def __repr__(self) -> str:
        """Name the endpoint; the key stays secret."""
        return f"Client({self.url!r})"

    def __enter__(self) -> Client:
        """Return the client; leaving the block closes its connections."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        self._http.close()

    def list(self) -> list[dict[str, Any]]:
        """Return what the endpoint serves, one entry a name, following its pages.

        Raises:
            EndpointError: the endpoint cannot be reached, or answers with a problem.
        """
        items: list[dict[str, Any]] = []
        url = f"{self.url}/v1/inits?limit=200"
        for _ in range(10_000):
            page = self._json(url)
            items.extend(page.get("items", []))
            if not page.get("next"):
                return items
            url = self._same_origin(urljoin(url, page["next"])) or url
        raise EndpointError(f"{self.url} lists more than 10000 pages; expected an end")

    def show(self, reference: str) -> dict[str, Any]:
        """Return card, evidence, pictures and addresses of one initialization.

        Raises:
            EndpointError: it does not exist, or the endpoint cannot be reached.
        """
        return self._json(f"{self.url}{self._reference(reference).path}")

    def fetch(self, reference: str, path: str | Path | None = None) -> Path:
        """Return the verified checkpoint file of an initialization.

        A pinned version that is in the cache needs no endpoint; anything else asks it once. With
        `path`, the file is copied there.

        Raises:
            EndpointError: it does not exist, the endpoint cannot be reached, the bytes stay wrong
                after a second clean download, or the disk is full (what has arrived is kept and
                resumed).
        """
        where = self._reference(reference)
        try:
            blob = self._from_cache(where) or self._from_endpoint(where)
            return blob if path is None else _copy(blob, Path(path))
        except OSError as error:
            raise EndpointError(
                f"cannot store {where}: {error.strerror or error} "
                f"({error.filename or self._cache}); what has arrived is kept: free some space or "
                "point METAINIT_CACHE elsewhere, and call again"
            ) from error

    def checkpoint(self, reference: str) -> Checkpoint:
        """Fetch an initialization and return its tensors and card.

        Raises:
            EndpointError: as for `fetch`.
            CheckpointError: what the endpoint serves is no checkpoint that this metainit reads.
        """
        from metainit.checkpoint import load

        return load(self.fetch(reference))

    def _reference(self, text: str) -> Reference:
        if not text.startswith(("http://", "https://")):
            return Reference.parse(text)
        base, reference = parse_url(text)
        if base != self.url:
            raise EndpointError(f"{text} is not on {self.url}; make a Client of {base}")
        return reference

    def _blob_path(self, sha256: str) -> Path:
        return self._cache / "blobs" / f"{sha256}.safetensors"

    def _memo_path(self, reference: Reference) -> Path:
        address = hashlib.sha256(f"{self.url}{reference.path}".encode()).hexdigest()
        return self._cache / "references" / f"{address}.json"

    def _remembered(self, reference: Reference) -> str | None:
        """SHA-256 of what a reference meant when last fetched, if that file is still good."""
        try:
            sha256 = json.loads(self._memo_path(reference).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            return None
        path = self._blob_path(sha256)
        if not path.is_file():
            return None
        if file_sha256(path) == sha256:
            return sha256
        path.unlink(missing_ok=True)
        return None

    def _remember(self, reference: Reference, sha256: str) -> None:
        path = self._memo_path(reference)
        path.parent.mkdir(parents=True, exist_ok=True)
        with _temporary(path) as temporary:
            temporary.write_text(json.dumps({"url": f"{self.url}{reference.path}", "sha256": sha256}))

    def _from_cache(self, reference: Reference) -> Path | None:
        sha256 = self._remembered(reference) if reference.version is not None else None
        return self._blob_path(sha256) if sha256 else None

    def _from_endpoint(self, reference: Reference) -> Path:
        known = self._remembered(reference)
        blob = self._transfer.attempt(lambda: self._locate(reference, known))
        if blob is None:
            assert known is not None
            return self._blob_path(known)
        path = self._blob_path(blob.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock"), timeout=600):
                if not path.is_file() or file_sha256(path) != blob.sha256:
                    self._transfer.download(blob, path)
        except Timeout as error:
            raise EndpointError(
                f"another process has been fetching {reference} for 10 minutes; "
                f"if none is, delete {error.lock_file}"
            ) from error
        self._remember(reference, blob.sha256)
        return path

    def _locate(self, reference: Reference, known: str | None) -> Blob | None:
        """Ask what a reference means now; None says that it still means what is known."""
        url = f"{self.url}{reference.path}/weights"
        response = self._http.head(url, headers={"If-None-Match": f'"{known}"'} if known else {})
        if response.status_code == 304 and known:
            return None
        if response.status_code >= 400:  # a HEAD has no body: ask for the reason
            check(self._http.get(f"{self.url}{reference.path}"))
        check(response)
        tag = _TAG.fullmatch(response.headers.get("etag", ""))
        length = response.headers.get("content-length", "")
        if tag is None or not length.isdigit():
            raise EndpointError(
                f"{url} gave no SHA-256 and length for the weights (ETag "
                f"{response.headers.get('etag')!r}); is this a metainit endpoint?"
            )
        if int(length) > MAX_BYTES:
            raise EndpointError(f"{url} announces {length} bytes, expected at most {MAX_BYTES}")
        location = response.headers.get("content-location")
        blob = self._same_origin(urljoin(url, location)) if location else None
        return Blob(tag["sha256"], int(length), blob or url)

    def _json(self, url: str) -> dict[str, Any]:
        response = self._transfer.attempt(lambda: checked(self._http.get(url)))
        try:
            value = response.json()
        except ValueError as error:
            raise EndpointError(f"{url} answered no JSON; is this a metainit endpoint?") from error
        if not isinstance(value, dict):
            raise EndpointError(f"{url} answered a JSON {type(value).__name__}, expected an object")
        return value

    def _same_origin(self, url: str) -> str | None:
        """Return the URL if it lies on this endpoint: the key goes nowhere else."""
        ours, theirs = urlsplit(self.url), urlsplit(url)
        return url if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc) else None


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(target) as temporary:
        shutil.copyfile(source, temporary)
    return target


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place when the block ends well, and is gone otherwise."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
