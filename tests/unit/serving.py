"""An application behind a real HTTP server in this process: for clients of others, and for connections that break."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from tests.unit.conftest import Application

START_S = 10.0


class Server(uvicorn.Server):
    """uvicorn that says in which event loop it runs."""

    loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[Any] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


@dataclass
class Served:
    """`url` is the server's, without a slash at the end."""

    application: Application
    url: str
    server: Server

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function of the application in its own event loop."""
        self.server.loop.call_soon_threadsafe(function, *arguments)

    def run(self, coroutine: Any, seconds: float = 10) -> Any:
        """What a coroutine of the application returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.server.loop).result(seconds)

    def hold_back(self) -> None:
        """Let editors begin and then wait, until `let_go`."""
        self.call(self.application.editors.gate.clear)

    def let_go(self) -> None:
        self.call(self.application.editors.gate.set)


@contextmanager
def serving(application: Application, port: int = 0) -> Iterator[Served]:
    config = uvicorn.Config(application.app, port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive(), START_S)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Served(application, f"http://127.0.0.1:{port}", server)
    finally:
        server.should_exit = True
        thread.join()


def wait_until(is_so: Callable[[], Any], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
