"""Random requests to the application in this process, a round at a time: each round has an application of its own."""

import asyncio
import random
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from fastapi.dependencies import models as fastapi_models
from starlette.types import ASGIApp

from serve_app.config import SQLITE_PREFIX
from serve_app.jobs.database import Database
from tests.conformity import Document
from tests.fuzzing.asgi import Answer, HttpRequest, send
from tests.fuzzing.checks import LoggedErrors, problems
from tests.fuzzing.recipes import Recipes
from tests.fuzzing.tally import Tally
from tests.fuzzing.world import World, world_in
from tests.unit.conftest import config_in

# Requests under way at a time: enough that they meet each other, few enough that none is refused for it.
CLIENTS = 8
# Files that are in memory, where there is such a folder: a round writes thousands of small ones.
MEMORY = Path("/dev/shm")


def fuzz_requests(count: int, seed: int) -> Tally:
    """Send `count` requests that the seed decides to an application of their own."""
    folder = Path(tempfile.mkdtemp(prefix="fuzzing-", dir=MEMORY if MEMORY.is_dir() else None))
    started = time.monotonic()
    try:
        with LoggedErrors() as logged, no_names():
            tally = asyncio.run(_round(folder, count, seed))
        for text in logged.found:
            tally.add_fault(f"seed {seed}: logged: {text}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        # FastAPI remembers each function of a route, and with it all of its application.
        for remembering in (value for value in vars(fastapi_models).values() if hasattr(value, "cache_clear")):
            remembering.cache_clear()
    tally.rounds, tally.next_seed, tally.seconds = 1, seed + 1, time.monotonic() - started
    return tally


@contextmanager
def no_names() -> Iterator[None]:
    """Look up no host name: random ones may exist."""
    real = socket.getaddrinfo

    def numbers_only(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        return real(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)

    with mock.patch.object(socket, "getaddrinfo", numbers_only):
        yield


@asynccontextmanager
async def fresh_world(folder: Path, *, with_keys: bool = True) -> AsyncIterator[World]:
    """A world with an empty database, in this folder."""
    url = f"{SQLITE_PREFIX}{folder}/jobs.sqlite3"
    database = Database(url)
    await database.open()
    await database.close()
    async with world_in(folder, config_in(folder, url), with_keys=with_keys) as world:
        yield world


async def _round(folder: Path, count: int, seed: int) -> Tally:
    # Every fourth round is of a service without keys.
    async with fresh_world(folder, with_keys=seed % 4 != 0) as world:
        recipes, tally, document = Recipes(world, random.Random(seed)), Tally(), Document(world.app)
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                await checked(world.app, document, recipes.next(), tally, f"seed {seed}")

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return tally


async def checked(app: ASGIApp, document: Document, request: HttpRequest, tally: Tally, origin: str) -> None:
    """Send a request, count its answer, and add a fault for each thing that is wrong with it."""
    began, answer = time.monotonic(), Answer()
    try:
        answer = await send(app, request)
        found = list(problems(document, request, answer))
    except Exception as error:
        found = ["raised " + "".join(traceback.format_exception(error))[-1_500:]]
    tally.time(time.monotonic() - began, f"{answer.status} {request}"[:2_000])
    tally.add(str(answer.status))
    for problem in found:
        tally.add_fault(f"{origin}: {problem}: {request}")
