"""Queries: what callers may see of requests. A tenant sees its own requests, an operator sees all."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from serve_app.config import AppConfig
from serve_app.errors import HistoryUnavailable, ImageNotFound, PreviewNotReady, RequestNotFound, StoreUnavailable
from serve_app.intake.answers.bodies import Links, control_images_of
from serve_app.intake.answers.events import payload_of
from serve_app.intake.answers.previews import Previews
from serve_app.intake.answers.watch import MAX_UNCHANGED_S, Watch
from serve_app.intake.signed_urls import SignedUrls
from serve_app.intake.tenants import Caller
from serve_app.intake.workload import Workload
from serve_app.jobs.records import Delivery, HistoryFilter, ImageRecord, RequestRecord, RequestState, Summary, Usage
from serve_app.jobs.store import JobStore
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.step_previews import StepPreview
from serve_app.tasks import EditDone


class Queries:
    """Answers questions about requests. Nothing here changes one."""

    def __init__(
        self,
        config: AppConfig,
        store: JobStore,
        artifacts: Artifacts,
        watch: Watch,
        workload: Workload,
        previews: Previews,
        signed_urls: SignedUrls,
    ) -> None:
        self._previews = previews
        self._signed_urls = signed_urls
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
        """The progress of a request, and how many editors that can make its images run. Raises RequestNotFound."""
        state = await self._store.requests.state(request_id)
        refuse_others(state.tenant, request_id, caller)
        return state, (await self._workload.editor_counts()).get(state.editor_group, 0)

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

    async def changed(self, record: RequestRecord, seconds: float) -> RequestRecord:
        """The request once it has changed, or as it is after `seconds`. Raises RequestNotFound, StoreUnavailable."""
        await self._watch.changed(record.id, record.version, min(seconds, MAX_UNCHANGED_S))
        return await self._store.requests.get(record.id)

    async def history(
        self, which: HistoryFilter, before: tuple[float, str] | None, limit: int, caller: Caller
    ) -> list[Summary]:
        """Requests, newest first: the caller's own, or all for an operator. Raises HistoryUnavailable."""
        return await self._store.requests.history(visible_to(caller, which), before, limit)

    async def usage(self, caller: Caller) -> list[Usage]:
        """What the caller, or for an operator each tenant, has used. Raises HistoryUnavailable."""
        return await self._store.requests.usage(visible_to(caller, HistoryFilter()).tenant)

    async def image(self, request_id: str, index: int, caller: Caller) -> EditDone:
        """A finished image. Raises RequestNotFound or ImageNotFound."""
        record = await self.request(request_id, caller)
        image = _image_of(record, index)
        if image.result is None:
            what = "was deleted" if record.purged else f"is {image.status}, not finished"
            raise ImageNotFound(f"image {index} of request {request_id!r} {what}", _place(request_id, index))
        return image.result

    async def preview(self, request_id: str, index: int, caller: Caller) -> tuple[StepPreview, int]:
        """The newest step preview of an image that is being made, and the number of the edit's steps.

        Who asks counts as watching for 10 s. Raises RequestNotFound, ImageNotFound, PreviewNotReady and StorageFailed.
        """
        record = await self.request(request_id, caller)
        image = _image_of(record, index)
        if record.purged:
            raise ImageNotFound(f"image {index} of request {request_id!r} was deleted", _place(request_id, index))
        details = _place(request_id, index) | {"status": image.status}
        if image.status.ended:
            what = f"image {index} of request {request_id!r} is {image.status}: it has no step preview any more"
            if image.result is not None:
                what += f"; the image itself is at /v1/requests/{request_id}/images/{index}"
            raise PreviewNotReady(what, details)
        await self._previews.watch(request_id)
        preview = await self._previews.latest(request_id, index)
        if preview is None:
            raise PreviewNotReady(
                f"image {index} of request {request_id!r} has no step preview yet; ask again in a second", details
            )
        return preview, image.plan.steps

    async def image_file(self, request_id: str, index: int, done: EditDone) -> bytes:
        """The file of a finished image. Raises ImageNotFound."""
        try:
            return await asyncio.to_thread(self._artifacts.get, done.key)
        except FileNotFoundError as error:
            what = f"image {index} of request {request_id!r} is no longer stored"
            raise ImageNotFound(what, _place(request_id, index)) from error

    async def control_image(self, request_id: str, index: int, caller: Caller) -> str:
        """The digest (hex) of a request's control image. Raises RequestNotFound or ImageNotFound."""
        record = await self.request(request_id, caller)
        if record.purged:
            what = f"control image {index} of request {request_id!r} was deleted"
            raise ImageNotFound(what, _place(request_id, index))
        digests = control_images_of(record)
        if not 0 <= index < len(digests):
            what = f"request {request_id!r} has {len(digests)} control images, counted from 0"
            raise ImageNotFound(what, _place(request_id, index))
        return digests[index]

    async def control_image_file(self, request_id: str, index: int, sha256: str) -> bytes:
        """The file of a request's control image. Raises ImageNotFound."""
        try:
            return await asyncio.to_thread(self._artifacts.get, artifact_keys.control_image(sha256))
        except FileNotFoundError as error:
            what = f"control image {index} of request {request_id!r} is no longer stored"
            raise ImageNotFound(what, _place(request_id, index)) from error

    async def webhook_payload(self, delivery: Delivery) -> dict[str, Any] | None:
        """The payload of a webhook; None if its request or its image no longer exists."""
        try:
            record = await self._store.requests.get(delivery.request_id)
        except RequestNotFound:
            return None
        return payload_of(record, delivery, Links.of(self._config, delivery.webhook.base_url, self._signed_urls))


def _place(request_id: str, index: int) -> dict[str, Any]:
    return {"request_id": request_id, "image": index}


def _image_of(record: RequestRecord, index: int) -> ImageRecord:
    """The image number `index` of a request. Raises ImageNotFound."""
    if not 0 <= index < len(record.images):
        what = f"request {record.id!r} has {len(record.images)} images, counted from 0"
        raise ImageNotFound(what, _place(record.id, index))
    return record.images[index]


def refuse_others(tenant: str, request_id: str, caller: Caller) -> None:
    """Raise RequestNotFound for another tenant's request, as if it were not there."""
    if tenant != caller.tenant and not caller.is_operator:
        raise RequestNotFound(f"there is no request {request_id!r}", {"request_id": request_id})


def visible_to(caller: Caller, which: HistoryFilter) -> HistoryFilter:
    """The filter, narrowed to the requests that the caller may see. Raises HistoryUnavailable if it sees no history."""
    if not caller.may_list:
        raise HistoryUnavailable(
            "this service has no API keys, so it does not show who has asked for what; with history_without_keys it "
            "does, on the machine itself"
        )
    if caller.is_operator:
        return which
    return replace(which, tenant=caller.tenant)
