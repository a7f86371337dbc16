"""The Python client against an application that is served in this process: what its tests share."""

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from anyio.from_thread import BlockingPortal
from edits_client import AsyncClient, AsyncJob, Retries
from starlette.types import ASGIApp, Receive, Scope, Send

# No test waits longer than this for a call that does not work (s).
RETRIES = Retries(for_s=10.0, first_s=0.01, longest_s=0.2)


class Recorded:
    """Middleware that notes each request as `METHOD path`."""

    def __init__(self, app: ASGIApp, calls: list[str]) -> None:
        self._app = app
        self._calls = calls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self._calls.append(f"{scope['method']} {scope['path']}")
        await self._app(scope, receive, send)


class Blocking:
    """An async client, or its job, with methods that block: so that a test says the same to both clients."""

    def __init__(self, portal: BlockingPortal, target: Any) -> None:
        self._portal = portal
        self._target = target

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        return partial(self._call, found) if callable(found) else found

    def _call(self, method: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        result = method(*arguments, **options)
        if inspect.isasyncgen(result):
            return self._items(result)
        if inspect.isawaitable(result):
            result = self._portal.call(_awaited, result)
        return Blocking(self._portal, result) if isinstance(result, AsyncClient | AsyncJob) else result

    def _items(self, items: Any) -> Iterator[Any]:
        try:
            while True:
                yield self._portal.call(_awaited, anext(items))
        except StopAsyncIteration:
            return
        finally:
            self._portal.call(_awaited, items.aclose())


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
