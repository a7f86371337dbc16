"""Queries: what callers may see of requests. A tenant sees its own requests, an operator sees all."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from serve_app.config import AppConfig
from serve_app.errors import HistoryUnavailable, ImageNotFound, RequestNotFound, StoreUnavailable
from serve_app.intake.answers import Links
from serve_app.intake.events import payload_of
from serve_app.intake.tenants import Caller
from serve_app.intake.watch import MAX_UNCHANGED_S, Watch
from serve_app.intake.workload import Workload
from serve_app.jobs.records import Delivery, HistoryFilter, RequestRecord, RequestState, Summary, Usage
from serve_app.jobs.store import JobStore
from serve_app.storage.artifacts import Artifacts
from serve_app.tasks import EditDone


class Queries:
    """Answers questions about requests. Nothing here changes one."""

    def __init__(
        self, config: AppConfig, store: JobStore, artifacts: Artifacts, watch: Watch, workload: Workload
    ) -> None:
        self._config = config
        self._store = store
        self._artifacts = artifacts
        self._watch = watch
        self._workload = workload

    async def request(self, request_id: str, caller: Caller) -> RequestRecord:
        """The whole request. Raises RequestNotFound."""
        record = await self._store.requests.get(request_id)
        refuse_others(record.tenant, request_id, caller)
        return record

    async def state(self, request_id: str, caller: Caller) -> tuple[RequestState, int]:
        """Where a request stands, and how many editors its model has. Raises RequestNotFound."""
        state = await self._store.requests.state(request_id)
        refuse_others(state.tenant, request_id, caller)
        return state, (await self._workload.editor_counts()).get(state.model, 0)

    async def wait_until_ended(self, record: RequestRecord, seconds: float) -> RequestRecord:
        """The request once it has ended, or as it is after `seconds`.

        While the database cannot be reached, it is the request as it was last read.
        """
        until = time.monotonic() + seconds
        with suppress(StoreUnavailable):
            while not record.status.ended and (left := until - time.monotonic()) > 0:
                await self._watch.changed(record.id, record.version, min(left, MAX_UNCHANGED_S))
                record = await self._store.requests.get(record.id)
        return record

    async def history(
        self, which: HistoryFilter, before: tuple[float, str] | None, limit: int, caller: Caller
    ) -> list[Summary]:
        """Requests, newest first: the caller's own, or for an operator anybody's. Raises HistoryUnavailable."""
        return await self._store.requests.history(visible_to(caller, which), before, limit)

    async def usage(self, caller: Caller) -> list[Usage]:
        """What the caller, or for an operator each tenant, has used. Raises HistoryUnavailable."""
        return await self._store.requests.usage(visible_to(caller, HistoryFilter()).tenant)

    async def image(self, request_id: str, index: int, caller: Caller) -> EditDone:
        """A finished image. Raises RequestNotFound or ImageNotFound."""
        record = await self.request(request_id, caller)
        details = {"request_id": request_id, "image": index}
        if not 0 <= index < len(record.images):
            raise ImageNotFound(f"request {request_id!r} has {len(record.images)} images, counted from 0", details)
        done = record.images[index].result
        if done is None:
            what = "was deleted" if record.purged else f"is {record.images[index].status}, not finished"
            raise ImageNotFound(f"image {index} of request {request_id!r} {what}", details)
        return done

    async def image_file(self, request_id: str, index: int, done: EditDone) -> bytes:
        """The file of a finished image. Raises ImageNotFound."""
        try:
            return await asyncio.to_thread(self._artifacts.get, done.key)
        except FileNotFoundError as error:
            details = {"request_id": request_id, "image": index}
            raise ImageNotFound(f"image {index} of request {request_id!r} is no longer stored", details) from error

    async def webhook_payload(self, delivery: Delivery) -> dict[str, Any] | None:
        """The payload of a webhook; None if its request or its image no longer exists."""
        try:
            record = await self._store.requests.get(delivery.request_id)
        except RequestNotFound:
            return None
        return payload_of(record, delivery, Links.of(self._config, delivery.webhook.base_url))


def refuse_others(tenant: str, request_id: str, caller: Caller) -> None:
    """Raise RequestNotFound for another tenant's request, as if it were not there."""
    if tenant != caller.tenant and not caller.is_operator:
        raise RequestNotFound(f"there is no request {request_id!r}", {"request_id": request_id})


def visible_to(caller: Caller, which: HistoryFilter) -> HistoryFilter:
    """The filter, narrowed to the requests that the caller may see. Raises HistoryUnavailable for one without a key."""
    if not caller.has_key:
        raise HistoryUnavailable("this service has no API keys, so it does not show who has asked for what")
    if caller.is_operator:
        return which
    return replace(which, tenant=caller.tenant)
