"""The HTTP client of the endpoint: finds an initialization, fetches, verifies and keeps it.

A fetch is one HEAD (an unchanged alias costs one 304) and one GET of an immutable blob. Bytes land
in a ``.part`` file that a later call resumes with Range and If-Range; only a file whose SHA-256 is
the announced one enters the cache, which is content-addressed and shared by all of a user's
processes. What is asked and how answers are read lies in `metainit.protocol`; `metainit.AsyncClient`
runs the same.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from metainit import settings
from metainit.asking import Generation
from metainit.bounded import MAX_EVIDENCE_BYTES
from metainit.errors import EndpointError
from metainit.kept import Kept
from metainit.places import cache_folder
from metainit.protocol import KIND_HEADER as KIND_HEADER
from metainit.protocol import Endpoint, Pages
from metainit.protocol import Located as Located
from metainit.references import parse_url
from metainit.transfer import Patience, Progress, Retry
from metainit.variants import Variant
from metainit.wire import Steps, T, run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metainit.checkpoint import Checkpoint

LOGGER = logging.getLogger("metainit.client")
CACHE = "endpoint"
PATIENT = Retry()
TIMEOUT = httpx.Timeout(connect=5.0, read=30.0, write=30.0, pool=5.0)


class Resolved(NamedTuple):
    """What lies at an address: its kind, and the verified file of the checkpoint with its evidence.

    There is no file of a kind that is left on the endpoint.
    """

    path: Path | None
    evidence: dict[str, Any] | None
    kind: str = ""


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
        call, run = client._call(), client._run
        found = run(call.located(reference))
        if found.path is None and found.kind in left_there:
            return Resolved(None, None, found.kind)
        path = run(call.fetched(found))
        try:
            return Resolved(path, run(call.evidence(reference, path.stem)), found.kind)
        except EndpointError as error:
            LOGGER.warning("no evidence for %s: %s", source, error)
            return Resolved(path, None, found.kind)


def endpoint_at(url: str, retry: Retry, cache: Path | None, offline: bool | None) -> Endpoint:
    """Return the protocol of an endpoint.

    Raises:
        EndpointError: `url` is no address of an endpoint.
    """
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        known = False
    if not known:
        raise EndpointError(f"{url!r} is no endpoint; expected e.g. http://127.0.0.1:8000")
    kept = Kept(cache or cache_folder(CACHE))
    url = url.rstrip("/")
    return Endpoint(url, kept, Patience(retry, url), settings.offline() if offline is None else offline)


def http_options(url: str, key: str | None, timeout: httpx.Timeout) -> dict[str, Any]:
    """Return what both kinds of httpx clients are made with: a key, which errors do not show, and time-outs.

    Raises:
        EndpointError: the key holds what no header can carry.
    """
    key = settings.key_for(url) if key is None else key
    if key and not (key.isascii() and key.isprintable()):
        raise EndpointError("the key holds other characters than a header can carry: copy it once more")
    return {"headers": {"Authorization": f"Bearer {key}"} if key else None, "timeout": timeout}


class Client:
    """A client of one endpoint. All its waits are finite, and its cache is shared by processes.

    Proxies and certificates follow the environment as httpx reads it (``HTTPS_PROXY``, ``NO_PROXY``,
    ``SSL_CERT_FILE``).

    Args:
        url: address of the endpoint, e.g. ``http://127.0.0.1:8000``.
        key: sent as a bearer token, to this endpoint only; METAINIT_KEY where METAINIT_SERVER is this one.
        transport: an httpx transport, e.g. one that calls an app in the same process.
        retry: how often and how patiently a call repeats requests that failed, all of them together.
        cache: folder of the cache instead of the user's.
        offline: answer from the cache alone; METAINIT_OFFLINE unless given.
        timeout: of one exchange: to connect, and between bytes.

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
        offline: bool | None = None,
        timeout: httpx.Timeout = TIMEOUT,
    ) -> None:
        """Open no connection yet.

        Raises:
            EndpointError: `url` is no address of an endpoint.
        """
        self._endpoint = endpoint_at(url, retry, cache, offline)
        self.url, self._kept = self._endpoint.url, self._endpoint.kept
        self._http = httpx.Client(transport=transport, **http_options(self.url, key, timeout))

    @property
    def offline(self) -> bool:
        """Whether it answers from the cache alone."""
        return self._endpoint.offline

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
        pages, call = Pages(self.url), self._call()
        while pages.wanted is not None:
            pages.add(self._run(call.json(pages.wanted, MAX_EVIDENCE_BYTES)))
        return pages.items

    def show(self, reference: str) -> dict[str, Any]:
        """Return card, evidence, pictures and addresses of one initialization.

        Raises:
            EndpointError: it does not exist, or the endpoint cannot be reached.
        """
        call = self._call()
        return self._run(call.json(call.address(call.reference(reference)), MAX_EVIDENCE_BYTES))

    def evidence(self, reference: str, sha256: str) -> dict[str, Any] | None:
        """Return the evidence of an initialization, asked for once for each reference and its weights.

        Args:
            reference: as for `fetch`.
            sha256: of the checkpoint that `fetch` gave; None is returned where an alias has moved on since.

        Raises:
            EndpointError: it does not exist, the endpoint cannot be reached, or the disk is full.
        """
        call = self._call()
        return self._run(call.evidence(call.reference(reference), sha256))

    def fetch(
        self,
        reference: str,
        path: str | Path | None = None,
        *,
        dtype: str | None = None,
        tensors: Iterable[str] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Return the verified checkpoint file of an initialization.

        A pinned version that is in the cache needs no endpoint; anything else asks it once. With
        `path`, the file is copied there.

        Args:
            reference: ``name``, ``name@alias``, ``name/version``, or an address on this endpoint.
            path: where a copy goes.
            dtype: ``'float32'`` or ``'bfloat16'``: the endpoint converts, and announces that file's SHA-256.
            tensors: names of the tensors to fetch; all of them unless given.
            progress: called with how many bytes are here and how many there will be.

        Raises:
            EndpointError: it does not exist, the endpoint cannot be reached, the bytes stay wrong
                after a second clean download, or the disk is full (what has arrived is kept and
                resumed).
        """
        call, variant = self._call(), Variant.of(dtype, tensors)
        return self._run(call.fetch(call.reference(reference), variant, path, progress))

    def fetch_tensors(self, reference: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Return some tensors, reading only their bytes; a file that is in the cache is read instead.

        What comes by ranges is *not verified*: the SHA-256 of a file says nothing about a part of it, and
        neither does the digest on its card. Place, length, type and shape are checked, and each range is
        asked for under the announced SHA-256, but a byte that was damaged on the way is not noticed, and
        nothing is kept. Where all tensors are asked for, or a proxy strips ranges, the whole file is fetched
        and verified.
        ``fetch(reference, tensors=names)`` gives a file with a SHA-256 of its own.

        Args:
            reference: as for `fetch`.
            names: of tensors, as in the state dict.

        Raises:
            EndpointError: as for `fetch`; or there is no such tensor.
        """
        from metainit.ranged import tensors

        call = self._call()
        return self._run(tensors(call, call.reference(reference), names))

    def located(self, reference: str) -> Located:
        """Return what a reference means now; a pinned version that is in the cache needs no endpoint.

        Raises:
            EndpointError: it does not exist, or the endpoint cannot be reached.
        """
        call = self._call()
        return self._run(call.located(call.reference(reference)))

    def fetched(
        self, located: Located, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Return the verified file of what was located, as `fetch` does."""
        return self._run(self._call().fetched(located, path, progress))

    def blob(self, sha256: str, *, progress: Progress | None = None) -> Path:
        """Return the verified file of a blob; one that is in the cache needs no endpoint.

        Raises:
            EndpointError: as for `fetch`.
        """
        return self._run(self._call().blob(sha256, progress))

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
        order = {"graph": graph, "seed": seed, "exact": exact}
        call = self._call()
        return self._run(call.predicted(call.reference(reference), order))

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
        call = self._call()
        return self._run(call.generated(call.reference(reference), Generation(count, **asked)))

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

    def _run(self, steps: Steps[T]) -> T:
        return run(steps, self._http)

    def _call(self) -> Endpoint:
        """Return the endpoint for one call, which has a patience of its own."""
        return self._endpoint.anew()
