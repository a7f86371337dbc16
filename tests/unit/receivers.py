"""What tests of webhooks share: a receiver, a deliverer at work, and a look at what is to be delivered."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from aiohttp import web
from pydantic import SecretStr

from serve_app.config import WebhooksConfig
from serve_app.jobs import tables
from serve_app.jobs.records import Delivery, NewImage, NewRequest, WebhookTarget
from serve_app.jobs.store import JobStore
from serve_app.workers.webhooks import Deliverer, PayloadOf

SECRET = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
LOOPBACK = {"secret": SecretStr(SECRET), "allowed_networks": ["127.0.0.0/8"], "timeout_s": 5}


class Receiver:
    """Answers posts with `statuses`, one after the other, then with 200. `gate` holds answers back."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def answer(self, request: web.Request) -> web.Response:
        self.posts.append((dict(request.headers), await request.read()))
        await self.gate.wait()
        headers = {"Location": "/elsewhere"}
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200, headers=headers)

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.posts]


async def payload(delivery: Delivery) -> dict[str, Any] | None:
    return {"request_id": delivery.request_id}


@asynccontextmanager
async def delivering(store: JobStore, payload: PayloadOf = payload, **config: object) -> AsyncIterator[None]:
    work = asyncio.create_task(
        Deliverer(store.webhooks, WebhooksConfig.model_validate(LOOPBACK | config), payload).run()
    )
    try:
        yield
        assert not work.done()
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def announce(store: JobStore, make_plan: Callable[..., Any], url: str) -> str:
    """A request that was cancelled, and whose owner is to be told so; its id."""
    id_ = uuid.uuid4().hex
    webhook = WebhookTarget(url, ("canceled",), "http://base")
    await store.requests.create(
        NewRequest(id_, "", "m", (NewImage(make_plan(), 1.0),), 60.0, webhook=webhook), lambda key: True
    )
    await store.requests.cancel(id_)
    return id_


async def rows(store: JobStore) -> list[sa.Row[Any]]:
    statement = sa.select(tables.deliveries, (tables.deliveries.c.due_at - tables.now()).label("due_in"))
    async with store._database.reading() as connection:
        return list((await connection.execute(statement.order_by(tables.deliveries.c.created_at))).all())


async def make_due(store: JobStore) -> None:
    """Have the time pass until everything is to be tried again."""
    later = tables.deliveries.update().where(tables.deliveries.c.due_at.is_not(None)).values(due_at=0.0)
    async with store._database.writing() as connection:
        await connection.execute(later)


async def until(holds: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def all_settled(store: JobStore) -> bool:
    return all(row.due_at is None for row in await rows(store))


async def all_failed(store: JobStore) -> bool:
    return all(row.error for row in await rows(store))


async def holds(value: bool) -> bool:
    return value
