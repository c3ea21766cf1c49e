"""A synchronous httpx transport that calls an ASGI app in this process, its lifespan included."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import anyio.from_thread
import httpx
from fastapi import FastAPI


class InProcess(httpx.BaseTransport):
    """Runs the app in an event loop of its own thread, so that a sync client can call it."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app
        self._inner = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._stack = ExitStack()

    def __enter__(self) -> InProcess:
        self._portal = self._stack.enter_context(anyio.from_thread.start_blocking_portal())
        lifespan = self._app.router.lifespan_context(self._app)
        self._stack.enter_context(self._portal.wrap_async_context_manager(lifespan))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._stack.close()

    def close(self) -> None:
        """The fixture that entered it ends it; a client that is closed does not."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return self._portal.call(self._answer, request)

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        inner = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
        answer = await self._inner.handle_async_request(inner)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers.raw, content=content)
