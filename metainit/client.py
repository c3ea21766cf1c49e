"""The HTTP client of the endpoint: finds an initialization, fetches, verifies and keeps it.

A fetch is one HEAD (an unchanged alias costs one 304) and one GET of an immutable blob. Bytes land
in a ``.part`` file that a later call resumes with Range and If-Range; only a file whose SHA-256 is
the announced one enters the cache, which is content-addressed and shared by all of a user's
processes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import httpx

from metainit.asking import MAX_BYTES, Generation, blob_of, blobs_of
from metainit.bounded import MAX_EVIDENCE_BYTES, parse_object
from metainit.card import canonical_json
from metainit.errors import CheckpointError, EndpointError
from metainit.kept import SHA256, Kept, copied
from metainit.places import cache_folder
from metainit.references import Reference, parse_url
from metainit.transfer import Blob, Retry, Transfer, check

if TYPE_CHECKING:
    from torch import nn

    from metainit.checkpoint import Checkpoint

LOGGER = logging.getLogger("metainit.client")
CACHE = "endpoint"
PATIENT = Retry()
PREDICTION_TIMEOUT = httpx.Timeout(connect=5.0, read=180.0, write=30.0, pool=5.0)
KIND_HEADER = "x-metainit-kind"
"""What the answer for some weights says of their kind."""
_TAG = re.compile(r'"(?P<sha256>[0-9a-f]{64})"')


class Resolved(NamedTuple):
    """What lies at an address: its kind, and the verified file of the checkpoint with its evidence.

    There is no file of a kind that is left on the endpoint.
    """

    path: Path | None
    evidence: dict[str, Any] | None
    kind: str = ""


class Located(NamedTuple):
    """What a reference means now: its file where that was fetched before, else the kind and the blob."""

    reference: Reference
    path: Path | None
    kind: str = ""
    blob: Blob | None = None


def resolve_url(source: str, left_there: Collection[str] = ()) -> Resolved:
    """Fetch the checkpoint at an address, and its evidence; both are kept in the cache.

    Evidence that cannot be had is logged and left out: the weights are good without it, and a pinned version
    whose weights were fetched before needs no endpoint.

    Args:
        source: the address.
        left_there: kinds of checkpoints that are not fetched.

    Raises:
        EndpointError: the address has another form, the endpoint cannot be reached, or it answers
            with a problem.
    """
    base, reference = parse_url(source)
    with Client(base) as client:
        found = client.located(str(reference))
        if found.path is None and found.kind in left_there:
            return Resolved(None, None, found.kind)
        path = client.fetched(found)
        try:
            return Resolved(path, client.evidence(str(reference), path.stem), found.kind)
        except EndpointError as error:
            LOGGER.warning("no evidence for %s: %s", source, error)
            return Resolved(path, None, found.kind)


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
        self._kept = Kept(cache or cache_folder(CACHE))
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
            url = self._following(url, str(page["next"]))
        raise EndpointError(f"{self.url} lists more than 10000 pages; expected an end")

    def show(self, reference: str) -> dict[str, Any]:
        """Return card, evidence, pictures and addresses of one initialization.

        Raises:
            EndpointError: it does not exist, or the endpoint cannot be reached.
        """
        return self._json(f"{self.url}{self._reference(reference).path}")

    def evidence(self, reference: str, sha256: str) -> dict[str, Any] | None:
        """Return the evidence of an initialization, asked for once for each reference and its weights.

        Args:
            reference: as for `fetch`.
            sha256: of the checkpoint that `fetch` gave; None is returned where an alias has moved on since.

        Raises:
            EndpointError: it does not exist, the endpoint cannot be reached, or the disk is full.
        """
        where = self._reference(reference)
        address = self._address(where)
        try:
            found = self._kept.evidence(address, sha256).get("evidence")
        except CheckpointError:  # none is kept, or it was damaged: ask again
            shown = self.show(reference)
            if shown.get("sha256") != sha256:
                return None
            found = shown.get("evidence")
            with self._kept.storing(f"the evidence of {where}"):
                self._kept.keep_evidence(address, sha256, found)
        return found if isinstance(found, dict) else None

    def fetch(self, reference: str, path: str | Path | None = None) -> Path:
        """Return the verified checkpoint file of an initialization.

        A pinned version that is in the cache needs no endpoint; anything else asks it once. With
        `path`, the file is copied there.

        Raises:
            EndpointError: it does not exist, the endpoint cannot be reached, the bytes stay wrong
                after a second clean download, or the disk is full (what has arrived is kept and
                resumed).
        """
        return self.fetched(self.located(reference), path)

    def located(self, reference: str) -> Located:
        """Return what a reference means now; a pinned version that is in the cache needs no endpoint.

        Raises:
            EndpointError: it does not exist, or the endpoint cannot be reached.
        """
        where = self._reference(reference)
        with self._kept.storing(where):
            known = self._kept.remembered(self._address(where))
        if known is not None and where.version is not None:
            return Located(where, self._kept.file(known))
        return self._transfer.attempt(lambda: self._locate(where, known))

    def fetched(self, located: Located, path: str | Path | None = None) -> Path:
        """Return the verified file of what was located, as `fetch` does."""
        where = located.reference
        with self._kept.storing(where):
            if located.blob is not None:
                blob = self._brought(located.blob, where)
                self._kept.remember(self._address(where), located.blob.sha256)
            else:
                assert located.path is not None
                blob = located.path
            return blob if path is None else copied(blob, Path(path))

    def blob(self, sha256: str) -> Path:
        """Return the verified file of a blob; one that is in the cache needs no endpoint.

        Raises:
            EndpointError: as for `fetch`.
        """
        if not SHA256.fullmatch(sha256):
            raise EndpointError(f"{sha256!r} is no SHA-256; expected 64 hexadecimal digits")
        with self._kept.storing(sha256):
            if self._kept.has(sha256):
                return self._kept.file(sha256)
            url = f"{self.url}/v1/blobs/{sha256}"
            size = self._transfer.attempt(lambda: self._measured(url))
            return self._brought(Blob(sha256, size, url), sha256)

    def predicted(
        self, reference: str, graph: Mapping[str, Any], *, seed: int = 0, exact: bool = False
    ) -> Path:
        """Return the verified file of the weights that a hypernetwork there predicts.

        Args:
            reference: of the hypernetwork, as for `fetch`.
            graph: the architecture graph of a network, as JSON.
            seed: of the residual that keeps neurons from being alike.
            exact: leave the residual out.

        Raises:
            EndpointError: as for `fetch`; or there is no hypernetwork, the graph is refused, or too many
                predictions are under way.
        """
        where = self._reference(reference)
        url = f"{self.url}{where.path}/predict"
        content = canonical_json({"graph": graph, "seed": seed, "exact": exact}).encode()
        answer = parse_object(self._transfer.attempt(lambda: self._posted(url, content)), url)
        with self._kept.storing(where):
            return self._brought(blob_of(answer, url, self.url), where)

    def generated(self, reference: str, count: int = 1, **asked: Any) -> Sequence[Path]:
        """Return the verified files of weights that a generator there draws, one network each.

        Args:
            reference: of the generator, as for `fetch`.
            count: networks; number i has the seed ``seed + i``, and asked for alone the same bytes.
            asked: `seed` (0 unless given), `condition`, `observation` and `what`, as for
                `metainit.asking.Generation`.

        Raises:
            DataError: the observation is no array of numbers.
            EndpointError: as for `fetch`; or there is no generator, it does not take the condition, or too
                many networks are under way.
        """
        where = self._reference(reference)
        files = []
        for part in Generation(count, **asked).parts():
            url, content = f"{self.url}{where.path}/generate", part.body()
            answer = parse_object(self._transfer.attempt(partial(self._posted, url, content)), url)
            with self._kept.storing(where):
                files += [self._brought(blob, where) for blob in blobs_of(answer, part, url, self.url)]
            where = Reference.parse(str(answer.get("reference")))  # an alias may move before the next part
        return files

    def part(self, reference: str, tensors: Sequence[str] = (), dtype: str | None = None) -> Path:
        """Return the verified file of some tensors of an initialization, or of its weights in another type.

        Args:
            reference: as for `fetch`.
            tensors: their names; all where there are none.
            dtype: ``float32`` or ``bfloat16``; as they are where it is None.

        Raises:
            EndpointError: as for `fetch`; or there are no such tensors.
        """
        where = self._reference(reference)
        asked = [*(("tensor", name) for name in tensors), *([("dtype", dtype)] if dtype else [])]
        found = self._transfer.attempt(lambda: self._locate(where, None, f"?{urlencode(asked)}"))
        assert found.blob is not None
        with self._kept.storing(where):
            return self._brought(found.blob, where)

    def predict(
        self, network: nn.Module, reference: str, *, example_inputs: Any, **arguments: Any
    ) -> nn.Module:
        """Fill a network, in place, with the weights that a hypernetwork there predicts for it.

        The network is traced here; its graph travels, and nothing else of it.

        Args:
            network: any module that can be traced.
            reference: of the hypernetwork, as for `fetch`.
            example_inputs: what the network is called with; only shapes and types matter.
            arguments: as for the `init_` of a hypernetwork: `seed`, `exact`, `keep`, `observation`,
                `overwrite`.

        Raises:
            EndpointError: as for `predicted`.
            GraphError: the network cannot be traced; nothing is changed.
            MismatchError: the network looks trained; nothing is changed.
            SourceError: the package that traces is not installed.
        """
        from metainit.initialization import extension

        remote = extension("metainit.remotes", "ghn")(self, reference)
        filled: nn.Module = remote.init_(network, example_inputs=example_inputs, **arguments)
        return filled

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

    def _address(self, reference: Reference) -> str:
        return f"{self.url}{reference.path}"

    def _brought(self, blob: Blob, what: object) -> Path:
        return self._kept.brought(blob, what, self._transfer.download)

    def _measured(self, url: str) -> int:
        """Ask for the size of what lies at an address."""
        response = self._http.head(url)
        if response.status_code == 404:  # a HEAD has no body
            raise EndpointError(f"{self.url} has no blob {url.rpartition('/')[2]}")
        check(response)
        length = response.headers.get("content-length", "")
        if not length.isdigit() or int(length) > MAX_BYTES:
            raise EndpointError(f"{url} announces {length!r} bytes, expected at most {MAX_BYTES}")
        return int(length)

    def _posted(self, url: str, content: bytes) -> bytes:
        """Post JSON and return the answer's content; a prediction may take a while."""
        headers = {"Content-Type": "application/json"}
        answer = self._http.post(url, content=content, headers=headers, timeout=PREDICTION_TIMEOUT)
        check(answer)
        return answer.content

    def _locate(self, reference: Reference, known: str | None, query: str = "") -> Located:
        """Ask what a reference means now; a query asks for a part of it."""
        url = f"{self.url}{reference.path}/weights{query}"
        response = self._http.head(url, headers={"If-None-Match": f'"{known}"'} if known else {})
        if response.status_code == 304 and known:
            return Located(reference, self._kept.file(known))
        if response.status_code >= 400:  # a HEAD has no body: ask for the reason
            check(self._http.get(url if query else f"{self.url}{reference.path}"))
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
        # Not the Content-Location: behind a proxy the endpoint does not know the path that it is asked under.
        blob = Blob(tag["sha256"], int(length), f"{self.url}/v1/blobs/{tag['sha256']}")
        return Located(reference, None, response.headers.get(KIND_HEADER, ""), blob)

    def _json(self, url: str) -> dict[str, Any]:
        content = self._transfer.attempt(lambda: self._body(url))
        try:
            return parse_object(content, url)
        except CheckpointError as error:
            raise EndpointError(f"{error}; is this a metainit endpoint?") from error

    def _body(self, url: str) -> bytes:
        """Return an answer's content, which is left off once it is larger than any that is of use."""
        with self._http.stream("GET", url) as response:
            if response.status_code >= 400:
                response.read()
            check(response)
            content = bytearray()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_EVIDENCE_BYTES:
                    raise EndpointError(f"{url} sends more than {MAX_EVIDENCE_BYTES} bytes")
        return bytes(content)

    def _following(self, url: str, following: str) -> str:
        """Return the address of the next page: the query is the endpoint's, the place is ours."""
        ours, theirs = urlsplit(url), urlsplit(urljoin(url, following))
        if (ours.scheme, ours.netloc) != (theirs.scheme, theirs.netloc):
            raise EndpointError(f"{url} goes on at {following}, which is not on {self.url}: not followed")
        if ours.query == theirs.query:
            raise EndpointError(f"{url} names itself as the next page; is this a metainit endpoint?")
        return f"{self.url}/v1/inits?{theirs.query}"
