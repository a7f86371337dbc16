"""The service behind the routes: takes requests in, answers for them. No HTTP, no Ray, no torch."""

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from opentelemetry.trace import SpanKind

from serve_app.adapters.lora_root import LoraRoot
from serve_app.adapters.sources import LoraSources
from serve_app.concurrency import background
from serve_app.concurrency.budget import Budget
from serve_app.config import AppConfig, IngressSettings
from serve_app.errors import (
    FilesGone,
    HistoryUnavailable,
    ImageNotFound,
    RequestNotFound,
    StoreUnavailable,
    describe,
)
from serve_app.images.decoder_pool import PROCESSES, Decoders
from serve_app.intake import plan
from serve_app.intake.admission import Admission, Admitted, gather_all
from serve_app.intake.answers import Place
from serve_app.intake.catalogue import Shelf
from serve_app.intake.events import RequestEvent, events_since, payload_of
from serve_app.intake.keys import Caller, Keys
from serve_app.intake.stored_images import StoredControls
from serve_app.intake.watch import Watch
from serve_app.jobs.records import (
    Delivery,
    HistoryFilter,
    NewImage,
    NewRequest,
    RequestRecord,
    Standing,
    Summary,
    Usage,
    Webhook,
)
from serve_app.jobs.store import JobStore
from serve_app.models.architecture import architecture_of
from serve_app.models.profile import PROFILES, TRAINER
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.policy.scaling import Backlog
from serve_app.schemas import Explanation, InferenceRequest, LoraInfo, LoraList, Tolerant
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.fetch import Fetcher
from serve_app.tasks import EditDone, EditPlan, Event, Status
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import ACCEPTED, NO_METER, NO_MODEL, REPEATED, REQUESTS, SUBMISSIONS, Meter
from serve_app.workers.backlog_report import BacklogReport
from serve_app.workers.dispatcher import Dispatcher, EditorCount, Editors
from serve_app.workers.sweeper import Sweeper
from serve_app.workers.warm_list import Warmth
from serve_app.workers.webhooks import Deliverer

logger = logging.getLogger(__name__)

# How often a request is admitted whose files were deleted before it was committed.
TRIES = 3
# How long a watcher's view of its place in the queue may be old, and how long an unchanged request is believed (s).
POSITION_S, UNCHANGED_S = 1.0, 15.0
# How long a stream of events lasts (s), so that an ingress which is to go is not held by its watchers; they resume with
# another. Less than a drained pod has (120 s).
STREAM_S = 90.0


class Service:
    """One ingress' worth of service. An async context manager: it works between entry and exit."""

    def __init__(
        self,
        config: AppConfig,
        editors: Editors,
        editor_count: EditorCount,
        meter: Meter = NO_METER,
        asleep: Callable[[], Collection[str]] = frozenset,
        drain_s: float = 0.0,
    ) -> None:
        """`asleep` says which models were without an editor on purpose when `editor_count` was last asked.

        At the exit, edits that editors have begun get `drain_s` to end.
        """
        self.config = config
        self._editors = editors
        self._editor_count = editor_count
        self._asleep = asleep
        self._meter = meter
        self._drain_s = drain_s
        self._keys = Keys(config.auth)
        # Before anything is started: a LoRA root or a checkpoint that is not there fails the deploy.
        config.refuse_missing_folders()
        self._architectures = {model.id: architecture_of(model) for model in config.models}
        self._exits = AsyncExitStack()
        limits = config.fetch
        # Without keys all callers are one tenant, and there is nobody to keep anything for.
        self._tenants_part = 2 if config.auth.keys_file else 1
        share = limits.budget_bytes // self._tenants_part
        # Nobody waits for it: see `BodyLimit`.
        self.bodies = Budget(limits.budget_bytes, share, 0.0, "this request's body")
        self._images = Budget(limits.budget_bytes, share, limits.patience_s, "this request's control images")

    async def __aenter__(self) -> Self:
        # What was started is stopped as well if the start fails or is cancelled half way.
        async with AsyncExitStack() as exits:
            await self._start(exits)
            self._exits = exits.pop_all()
        return self

    async def _start(self, exits: AsyncExitStack) -> None:
        config = self.config
        self._artifacts = Artifacts(config.artifacts_url)
        self._fetcher = Fetcher(config.fetch, config.fetch.connections // self._tenants_part)
        exits.push_async_callback(self._fetcher.close)
        # Without keys all callers are one tenant, and there is nobody to keep a process for.
        decoders = Decoders(config.fetch, PROCESSES - 1 if config.auth.keys_file else PROCESSES)
        exits.push_async_callback(decoders.close)
        lora_root = LoraRoot(config.lora_root)
        sources = LoraSources(lora_root, self._fetcher, self._artifacts, config.fetch.hub_hosts)
        self._store = JobStore(config.jobs)
        exits.push_async_callback(self._store.close)
        controls = StoredControls(self._store.requests, self._artifacts)
        self._admission = Admission(config, self._fetcher, decoders, sources, self._architectures, controls)
        self._shelf = Shelf(lora_root, self._architectures)
        await self._store.open()
        self._watch = Watch(self._store, self._meter)
        _run(exits, self._watch.run())
        self._dispatcher = Dispatcher(
            self._store, self._editors, self._artifacts, config.jobs, self._editors_of_each_model, self._meter
        )
        _run(exits, self._dispatcher.run())
        _run(exits, BacklogReport(self.backlogs, self._editors_of_each_model, self._meter).run())
        models = [model.id for model in config.models]
        self._warmth = Warmth(self._store, self._artifacts, self._admission.named_adapter, models, self._meter)
        _run(exits, self._warmth.run())
        self._sweeper = Sweeper(self._store, self._artifacts, config.jobs, self._meter)
        _run(exits, self._sweeper.run())
        if config.webhooks.secret is not None:
            _run(exits, Deliverer(self._store.outbox, config.webhooks, self._payload, self._meter).run())
        # The first thing at the exit: all the rest still works for what drains.
        exits.push_async_callback(self._dispatcher.drain, self._drain_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    def reconfigure(self, settings: IngressSettings) -> None:
        """Take on what changes in place. The service has been entered."""
        jobs, requests = self.config.jobs, self._store.requests
        requests.max_queued_per_tenant = settings.max_queued_per_tenant or jobs.max_queued_per_tenant
        requests.max_queued = settings.max_queued or jobs.max_queued
        self._warmth.keep(settings.keep_warm)

    @property
    def _most_waiting(self) -> int:
        """How many images of one request may wait, at most."""
        requests = self._store.requests
        return min(requests.max_queued_per_tenant, requests.max_queued)

    def caller(self, authorization: str | None, x_api_key: str | None) -> Caller:
        """Who sends these two headers. Raises Unauthorized."""
        return self._keys.caller(authorization, x_api_key)

    def place(self, base_url: str) -> Place:
        """What answers may tell a client that reaches the service at `base_url`: with API keys, no server paths."""
        return Place(base_url, tells_paths=self.config.auth.keys_file is None)

    async def submit(
        self, request: InferenceRequest, caller: Caller, base_url: str, idempotency_key: str | None = None
    ) -> tuple[RequestRecord, bool]:
        """Check a request in the contract's order, fetch what it names, commit it, and have it worked on.

        With an idempotency key that was used for the same body, it is the request of then; the second value says
        whether it is new. Raises RequestError, StoreUnavailable and StorageFailed.
        """
        request_id = uuid.uuid4().hex
        model = request.model if request.model in self._architectures else NO_MODEL
        with tracing.about(request_id), tracing.span("POST /v1/inference", SpanKind.SERVER, model=model):
            try:
                record = await self._accept(request_id, request, caller, base_url, idempotency_key)
            except Exception as error:
                self._meter.record(SUBMISSIONS, model=model, code=describe(error).code)
                raise
            is_new = record.id == request_id
            self._meter.record(SUBMISSIONS, model=model, code=ACCEPTED if is_new else REPEATED)
            logger.info("request %s: %s, %s images", record.id, ACCEPTED if is_new else REPEATED, len(record.images))
            return record, is_new

    async def _accept(
        self, request_id: str, request: InferenceRequest, caller: Caller, base_url: str, idempotency_key: str | None
    ) -> RequestRecord:
        digest = None
        if idempotency_key is not None:
            # Bodies hold images: only who asks for it pays for the digest.
            digest = await asyncio.to_thread(digest_of, request)
            earlier = await self._store.requests.earlier(caller.tenant, idempotency_key, digest)
            if earlier is not None:
                return earlier
        await self._admission.check(request, self._most_waiting)
        # Before anything is fetched or stored: a full queue must not cost the sender's files their room.
        await self._store.requests.refuse_when_full(caller.tenant, len(request.prompts))
        async with self._discarding_new_files() as new_files:
            record = await self._commit(request_id, request, caller, base_url, (idempotency_key, digest))
            if record.id == request_id:
                new_files.clear()
        return record

    async def _commit(
        self,
        request_id: str,
        request: InferenceRequest,
        caller: Caller,
        base_url: str,
        same: tuple[str | None, str | None],
    ) -> RequestRecord:
        """Check a request, store its files and commit it; `same` are its idempotency key and the body's digest."""
        for tries in range(1, TRIES + 1):
            try:
                new = await self._prepare(request_id, request, caller, base_url)
                new = replace(new, idempotency_key=same[0], body_sha256=same[1])
                record = await self._store.requests.create(new, self._artifacts.exists)
            except FilesGone:
                # What no request needed any more was deleted just before this one came to need it.
                if tries == TRIES:
                    raise
            else:
                self._dispatcher.wake()
                return record
        raise AssertionError("unreachable")

    async def _prepare(self, request_id: str, request: InferenceRequest, caller: Caller, base_url: str) -> NewRequest:
        """Do the rest of the checks and store the request's files. Their bytes are free when this returns."""
        with self._images.hold(caller.tenant) as room:
            admitted = await self._admission.admit(request, caller, room)
            await gather_all(
                background.to_the_end(
                    asyncio.to_thread(self._artifacts.put_missing, artifact_keys.control_image(sha256), file.data)
                )
                for sha256, file in admitted.control_files.items()
            )
            return self._new_request(request_id, request, admitted, caller, base_url)

    @asynccontextmanager
    async def _discarding_new_files(self) -> AsyncIterator[set[str]]:
        """Delete the files that the code inside newly stores, unless it takes them out of the set that it is given.

        A file that a request needs by then stays. What cannot be deleted now is left to the sweeper.
        """
        with self._artifacts.noting_new() as new_files:
            try:
                yield new_files
            finally:
                try:
                    await self._sweeper.discard(sorted(new_files))
                except Exception:
                    logger.exception("could not delete what a refused request stored; the sweeper does so later")

    def _new_request(
        self, request_id: str, request: InferenceRequest, admitted: Admitted, caller: Caller, base_url: str
    ) -> NewRequest:
        controls = {
            artifact_keys.control_image(sha256): len(file.data) for sha256, file in admitted.control_files.items()
        }
        return NewRequest(
            id=request_id,
            tenant=caller.tenant,
            model=admitted.spec.id,
            images=tuple(NewImage(edit, self._work(admitted, edit)) for edit in admitted.plans),
            deadline_s=request.deadline_s or self.config.jobs.deadline_s,
            priority=request.priority,
            notes=notes_of(admitted),
            files=controls | self._adapter_files(admitted),
            webhook=self._webhook(request, base_url),
            traceparent=tracing.traceparent(),
        )

    def _webhook(self, request: InferenceRequest, base_url: str) -> Webhook | None:
        if request.webhook_url is None:
            return None
        return Webhook(request.webhook_url, tuple(request.webhook_events), base_url)

    async def _payload(self, delivery: Delivery) -> dict[str, Any] | None:
        """What a webhook tells; None if there is nothing left to tell of."""
        try:
            record = await self._store.requests.get(delivery.request_id)
        except RequestNotFound:
            return None
        return payload_of(record, delivery, self.place(delivery.webhook.base_url))

    def _adapter_files(self, admitted: Admitted) -> dict[str, int]:
        """The adapters that were downloaded into artifact storage, with their sizes."""
        uses = (use for edit in admitted.plans for use in edit.adapters)
        keys = {self._artifacts.key_of(use.url): use.receipt.size_bytes for use in uses if use.receipt}
        return {key: size for key, size in keys.items() if key is not None}

    def _work(self, admitted: Admitted, edit: EditPlan) -> float:
        """What an image is predicted to take (FLOP)."""
        return float(self._admission.effective(admitted, edit)["transformer_flops_estimated"])

    async def explain(self, request: InferenceRequest, caller: Caller) -> Explanation:
        """What `submit` would do with the request. The queue is not asked, so QUEUE_FULL is never raised.

        A LoRA that the request names by a URL with secrets is downloaded, and deleted again.
        """
        await self._admission.check(request, self._most_waiting)
        async with self._discarding_new_files():
            with self._images.hold(caller.tenant) as room:
                admitted = await self._admission.admit(request, caller, room)
                return Explanation(
                    model=admitted.spec.id,
                    effective=[self._admission.effective(admitted, edit) for edit in admitted.plans],
                    ignored=admitted.ignored,
                    notes=admitted.notes,
                )

    async def standing(self, request_id: str, caller: Caller) -> tuple[Standing, int]:
        """Where a request stands, and how many editors its model has. Raises RequestNotFound."""
        standing = await self._store.requests.standing(request_id)
        refuse_others(standing.tenant, request_id, caller)
        return standing, (await self._editors_of_each_model()).get(standing.model, 0)

    async def request(self, request_id: str, caller: Caller) -> RequestRecord:
        """Raises RequestNotFound."""
        record = await self._store.requests.get(request_id)
        refuse_others(record.tenant, request_id, caller)
        return record

    async def ended(self, record: RequestRecord, seconds: float) -> RequestRecord:
        """The request once it has ended, or as it is after so long, or was when the store was last there."""
        until = time.monotonic() + seconds
        with suppress(StoreUnavailable):
            while not record.status.ended and (left := until - time.monotonic()) > 0:
                await self._watch.changed(record.id, record.version, min(left, UNCHANGED_S))
                record = await self._store.requests.get(record.id)
        return record

    async def events(self, record: RequestRecord, since: int, base_url: str) -> AsyncIterator[RequestEvent]:
        """What happens to a request from its version `since` on, until it ends or `STREAM_S` are over."""
        position: int | None = None
        until = time.monotonic() + STREAM_S
        while True:
            for event in events_since(record, since, self.place(base_url)):
                yield event
            since = record.version
            if record.status.ended or time.monotonic() > until:
                return
            standing, _ = await self.standing(record.id, Caller(record.tenant))
            if standing.queue_position is not None and standing.queue_position != position:
                position = standing.queue_position
                yield RequestEvent(Event.QUEUED, None, {"request_id": record.id, "queue_position": position})
            waits = standing.queue_position is not None
            await self._watch.changed(record.id, since, POSITION_S if waits else UNCHANGED_S)
            try:
                record = await self._store.requests.get(record.id)
            except RequestNotFound:
                return

    async def cancel(self, request_id: str, caller: Caller, *, purge: bool) -> tuple[Standing, int]:
        """End a request that has not ended, and with `purge` delete its images. Raises RequestNotFound."""
        record = await self.request(request_id, caller)
        if await self._store.requests.cancel(request_id):
            self._meter.record(REQUESTS, model=record.model, status=Status.CANCELED)
        self._dispatcher.wake()
        if purge:
            await self._store.retention.purge(request_id, self._artifacts.delete)
            records = [artifact_keys.record(request_id, image.index) for image in record.images]
            await asyncio.to_thread(self._artifacts.delete, records)
        return await self.standing(request_id, caller)

    async def history(
        self, which: HistoryFilter, before: tuple[float, str] | None, limit: int, caller: Caller
    ) -> list[Summary]:
        """Requests, newest first: the caller's own, or for an operator anybody's. Raises HistoryUnavailable."""
        return await self._store.requests.history(self._own(which, caller), before, limit)

    async def usage(self, caller: Caller) -> list[Usage]:
        """What the caller, or for an operator each tenant, has used. Raises HistoryUnavailable."""
        return await self._store.requests.usage(self._own(HistoryFilter(), caller).tenant)

    def _own(self, which: HistoryFilter, caller: Caller) -> HistoryFilter:
        if not caller.has_key:
            raise HistoryUnavailable("this service has no API keys, so it does not tell who has asked for what")
        return which if caller.is_operator else replace(which, tenant=caller.tenant)

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

    def models(self) -> list[ModelSpec]:
        """The models that the config serves, as they are under its profile."""
        profile = PROFILES.get(self.config.preview_profile, TRAINER)
        specs = (MODELS[model.id] for model in self.config.models)
        return [replace(spec, resolution_divisor=plan.divisor_of(spec, profile)) for spec in specs]

    async def loras(self, search: str, cursor: str, limit: int) -> LoraList:
        """A page of the files under the LoRA root, by path, each with its receipt.

        `search` is looked for in the path, the trigger word and the kind, whatever the case; the page begins
        after the path `cursor`.
        """
        return await self._shelf.page(search, cursor, limit)

    async def lora(self, path: str) -> LoraInfo:
        """One file under the LoRA root. Raises LoraUnknown."""
        return await self._shelf.one(path)

    async def waiting_for(self) -> list[str]:
        """The configured models that have no running editor, though they should."""
        running = await self._editors_of_each_model()
        asleep = self._asleep()
        return [model for model, editors in running.items() if not editors and model not in asleep]

    async def backlogs(self) -> dict[str, Backlog]:
        """What there is to do for each configured model, whoever took it in. Raises StoreUnavailable."""
        known = await self._store.queue.backlogs()
        return {model.id: known.get(model.id, Backlog()) for model in self.config.models}

    async def _editors_of_each_model(self) -> dict[str, int]:
        running = await self._editor_count()
        return {model.id: running.get(model.id, 0) for model in self.config.models}


def _run(exits: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` from now on until the exit."""
    exits.push_async_callback(background.end, background.begin(work))


def refuse_others(tenant: str, request_id: str, caller: Caller) -> None:
    """Raise RequestNotFound for another tenant's request, as if it were not there."""
    if tenant != caller.tenant and not caller.is_operator:
        raise RequestNotFound(f"there is no request {request_id!r}", {"request_id": request_id})


def notes_of(admitted: Admitted) -> dict[str, Any]:
    """What a result's metadata says about the request itself."""
    notes = {"ignored": admitted.ignored, "notes": admitted.notes}
    return {name: texts for name, texts in notes.items() if texts}


def digest_of(request: InferenceRequest) -> str:
    """What makes two bodies the same request: all but the token, of which nothing is stored."""
    body = _as_json(request, exclude={"hf_token", "loras", "prompts"})
    body |= {"loras": list(map(_as_json, request.loras)), "prompts": list(map(_as_json, request.prompts))}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _as_json(part: Tolerant, exclude: Collection[str] = ()) -> dict[str, Any]:
    """What was sent, unknown fields included: as they came, since pydantic does not write what is nested deep."""
    known = part.model_dump(mode="json", include=set(type(part).model_fields) - set(exclude))
    return known | (part.model_extra or {})
