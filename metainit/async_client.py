"""The HTTP client of the endpoint for an event loop: `AsyncClient` does what `Client` does, and awaits.

Both run the same steps (`metainit.protocol`). Hashing and copying files happens in threads, so the loop goes
on meanwhile; a call that is cancelled leaves what has arrived to the next one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import anyio.to_thread
import httpx

from metainit.asking import Generation
from metainit.bounded import MAX_EVIDENCE_BYTES
from metainit.client import PATIENT, TIMEOUT, endpoint_at, http_options
from metainit.protocol import Endpoint, Located, Pages
from metainit.transfer import Progress, Retry
from metainit.variants import Variant
from metainit.wire import Steps, T, run_async

if TYPE_CHECKING:
    from torch import Tensor, nn

    from metainit.checkpoint import Checkpoint


class AsyncClient:
    """A client of one endpoint for asyncio or trio; arguments and methods are those of `metainit.Client`.

    One client serves many tasks at once: two that want the same file download it once.

    Example:
        >>> AsyncClient('http://127.0.0.1:8000')
        AsyncClient('http://127.0.0.1:8000')
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
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
        self.url = self._endpoint.url
        self._http = httpx.AsyncClient(transport=transport, **http_options(self.url, key, timeout))

    def __repr__(self) -> str:
        """Name the endpoint; the key stays secret."""
        return f"AsyncClient({self.url!r})"

    async def __aenter__(self) -> AsyncClient:
        """Return the client; leaving the block closes its connections."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client cannot be used afterwards."""
        await self._http.aclose()

    async def list(self) -> list[dict[str, Any]]:
        """Return what the endpoint serves, as `Client.list` does."""
        pages, call = Pages(self.url), self._call()
        while pages.wanted is not None:
            pages.add(await self._run(call.json(pages.wanted, MAX_EVIDENCE_BYTES)))
        return pages.items

    async def show(self, reference: str) -> dict[str, Any]:
        """Return card, evidence, pictures and addresses, as `Client.show` does."""
        call = self._call()
        return await self._run(call.json(call.address(call.reference(reference)), MAX_EVIDENCE_BYTES))

    async def evidence(self, reference: str, sha256: str) -> dict[str, Any] | None:
        """Return the evidence of some weights, as `Client.evidence` does."""
        call = self._call()
        return await self._run(call.evidence(call.reference(reference), sha256))

    async def fetch(
        self,
        reference: str,
        path: str | Path | None = None,
        *,
        dtype: str | None = None,
        tensors: Iterable[str] | None = None,
        progress: Progress | None = None,
    ) -> Path:
        """Return the verified checkpoint file, as `Client.fetch` does; `progress` is called in the loop."""
        call, variant = self._call(), Variant.of(dtype, tensors)
        return await self._run(call.fetch(call.reference(reference), variant, path, progress))

    async def fetch_tensors(self, reference: str, names: Iterable[str]) -> dict[str, Tensor]:
        """Return some tensors by their byte ranges, which are not verified: see `Client.fetch_tensors`."""
        from metainit.ranged import tensors

        call = self._call()
        return await self._run(tensors(call, call.reference(reference), names))

    @property
    def offline(self) -> bool:
        """Whether it answers from the cache alone."""
        return self._endpoint.offline

    async def located(self, reference: str) -> Located:
        """Return what a reference means now, as `Client.located` does."""
        call = self._call()
        return await self._run(call.located(call.reference(reference)))

    async def fetched(
        self, located: Located, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> Path:
        """Return the verified file of what was located, as `fetch` does."""
        return await self._run(self._call().fetched(located, path, progress))

    async def blob(self, sha256: str, *, progress: Progress | None = None) -> Path:
        """Return the verified file of a blob, as `Client.blob` does."""
        return await self._run(self._call().blob(sha256, progress))

    async def predicted(
        self, reference: str, graph: Mapping[str, Any], *, seed: int = 0, exact: bool = False
    ) -> Path:
        """Return the verified file of predicted weights, as `Client.predicted` does."""
        order = {"graph": graph, "seed": seed, "exact": exact}
        call = self._call()
        return await self._run(call.predicted(call.reference(reference), order))

    async def generated(self, reference: str, count: int = 1, **asked: Any) -> Sequence[Path]:
        """Return the verified files of generated weights, as `Client.generated` does."""
        call = self._call()
        return await self._run(call.generated(call.reference(reference), Generation(count, **asked)))

    async def predict(
        self, network: nn.Module, reference: str, *, example_inputs: Any, **arguments: Any
    ) -> nn.Module:
        """Fill a network with predicted weights, as `Client.predict` does; it is traced in a thread."""
        from metainit.initialization import extension

        remote = extension("metainit.remotes", "ghn")(_InThread(self), reference)
        fill = partial(remote.init_, network, example_inputs=example_inputs, **arguments)
        filled: nn.Module = await anyio.to_thread.run_sync(fill)
        return filled

    async def checkpoint(self, reference: str) -> Checkpoint:
        """Fetch an initialization and return its tensors and card, as `Client.checkpoint` does."""
        from metainit.checkpoint import load

        return await anyio.to_thread.run_sync(load, await self.fetch(reference))

    async def _run(self, steps: Steps[T]) -> T:
        return await run_async(steps, self._http)

    def _call(self) -> Endpoint:
        """Return the endpoint for one call, which has a patience of its own."""
        return self._endpoint.anew()


class _InThread:
    """The client as a thread of its event loop's sees it: calls block, and the loop answers them."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    def show(self, reference: str) -> dict[str, Any]:
        return anyio.from_thread.run(self._client.show, reference)

    def predicted(
        self, reference: str, graph: Mapping[str, Any], *, seed: int = 0, exact: bool = False
    ) -> Path:
        return anyio.from_thread.run(
            partial(self._client.predicted, reference, graph, seed=seed, exact=exact)
        )
