"""Submissions: a request is checked, its files are stored, and it is committed as a job; or it is only explained."""

import asyncio
import hashlib
import json
import logging
import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from opentelemetry.trace import SpanKind

from serve_app.concurrency import background
from serve_app.config import AppConfig
from serve_app.errors import FilesGone, describe
from serve_app.intake.admission.admission import Admission, Admitted, gather_all, sha256_of
from serve_app.intake.admission.new_files import MAX_TRIES, discarding_new_files
from serve_app.intake.admission.parts import NO_PARTS, PART, Parts
from serve_app.intake.callers.audited import record_adapters
from serve_app.intake.presets import Presets, blaming_preset
from serve_app.intake.resources import Resources
from serve_app.intake.tenants import Caller
from serve_app.jobs.limits.quotas import Stored
from serve_app.jobs.records import NewImage, NewRequest, RequestRecord, WebhookTarget
from serve_app.schemas.answers import Explanation
from serve_app.schemas.requests import InferenceRequest, Tolerant
from serve_app.storage import artifact_keys
from serve_app.storage.step_previews import StepPreviewStorage
from serve_app.tasks import Status
from serve_app.telemetry import tracing
from serve_app.telemetry.metrics import ACCEPTED, NO_MODEL, REPEATED, REQUESTS, SUBMISSIONS, Meter
from serve_app.workers.dispatcher import Dispatcher, EditorCount
from serve_app.workers.sweeper import Sweeper

logger = logging.getLogger(__name__)

# Fields that came after the first idempotency keys were stored. They count only where they were sent, so that a retry
# after an upgrade is still the same request. A new field of a request belongs here.
LATER_FIELDS = frozenset(("preset", "quality", "max_loss", "size"))


@dataclass(frozen=True)
class Submission:
    """A request that is being submitted.

    `digest` is that of its body, known where there is an idempotency key. `call_sha256`: see `NewRequest`.
    `calibrates`: it is made to measure a tier, whose loss need not be known.
    """

    id: str
    request: InferenceRequest
    parts: Parts
    caller: Caller
    base_url: str
    idempotency_key: str | None = None
    digest: str | None = None
    call_sha256: str | None = None
    calibrates: bool = False


class Submissions:
    """Takes requests in, explains them, and cancels them."""

    def __init__(
        self,
        config: AppConfig,
        resources: Resources,
        admission: Admission,
        presets: Presets,
        dispatcher: Dispatcher,
        sweeper: Sweeper,
        editor_counts: EditorCount,
        meter: Meter,
    ) -> None:
        self._config = config
        self._admission = admission
        self._presets = presets
        self._image_memory = resources.image_memory
        self._store = resources.store
        self._artifacts = resources.artifacts
        self._previews = StepPreviewStorage(resources.artifacts)
        self._dispatcher = dispatcher
        self._sweeper = sweeper
        self._editor_counts = editor_counts
        self._meter = meter

    async def submit(
        self,
        request: InferenceRequest,
        caller: Caller,
        base_url: str,
        idempotency_key: str | None = None,
        parts: Parts = NO_PARTS,
        call_sha256: str | None = None,
        *,
        calibrates: bool = False,
    ) -> tuple[RequestRecord, bool]:
        """Check a request in the contract's order, fetch what it names, commit it, and wake the dispatcher.

        Returns the request, and whether it is new: with an idempotency key that was used for the same body, it is the
        earlier request. `call_sha256` lets a repeat of the HTTP call find the request. With `calibrates`, the request
        may have a tier whose loss nobody has measured. Raises RequestError, Overloaded, StoreUnavailable and
        StorageFailed.
        """
        submission = Submission(
            uuid.uuid4().hex,
            request,
            parts,
            caller,
            base_url,
            idempotency_key,
            call_sha256=call_sha256,
            calibrates=calibrates,
        )
        model = self._presets.model_of(request, caller)
        model = model if model in self._admission.models else NO_MODEL
        makes = tracing.Generation(model, images=len(request.prompts))
        span = tracing.span("POST /v1/inference", SpanKind.SERVER, makes=makes, model=model)
        with tracing.for_request(submission.id), span:
            try:
                record = await self._accept(submission)
            except Exception as error:
                self._meter.record(SUBMISSIONS, model=model, code=describe(error).code)
                raise
            is_new = record.id == submission.id
            outcome = ACCEPTED if is_new else REPEATED
            self._meter.record(SUBMISSIONS, model=model, code=outcome)
            logger.info("request %s: %s, %s images", record.id, outcome, len(record.images))
            if is_new:
                record_adapters(caller, "request", record.id, (image.plan.adapters for image in record.images))
            return record, is_new

    async def explain(self, request: InferenceRequest, caller: Caller, parts: Parts = NO_PARTS) -> Explanation:
        """What `submit` would do with the request. The queue is not asked, so QUEUE_FULL is never raised.

        A LoRA that the request names by a URL with secrets is downloaded, and deleted again.
        """
        filled = self._presets.apply(request, caller)
        with blaming_preset(request):
            await self._admission.check(filled, self._max_images(caller), caller)
            async with discarding_new_files(self._artifacts, self._sweeper):
                with self._image_memory.hold(caller.tenant) as hold:
                    admitted = await self._admission.admit(filled, parts, caller, hold)
                    return Explanation(
                        model=admitted.spec.id,
                        effective=[self._admission.effective(admitted, edit) for edit in admitted.edits],
                        ignored=admitted.ignored,
                        notes=admitted.notes,
                    )

    async def cancel(self, record: RequestRecord, *, purge: bool) -> None:
        """End a request that has not ended, and with `purge` delete its images and control images."""
        if await self._store.requests.cancel(record.id):
            self._meter.record(REQUESTS, model=record.model, status=Status.CANCELED)
            self._previews.delete_all_soon(record.id)
        self._dispatcher.wake()
        if purge:
            await self._store.retention.purge(record.id, self._artifacts.delete)
            records = [artifact_keys.record(record.id, image.index) for image in record.images]
            await asyncio.to_thread(self._artifacts.delete, records)
            await asyncio.to_thread(self._previews.delete_all, record.id)

    def _max_images(self, caller: Caller) -> int:
        """How many images of one request of this caller may wait in an empty queue."""
        in_all, of_tenant = self._store.requests.max_queued, caller.limits.max_queued
        return in_all if of_tenant is None else min(in_all, of_tenant)

    async def _accept(self, submission: Submission) -> RequestRecord:
        """The committed request, or the earlier one with the same idempotency key and body."""
        request, caller = submission.request, submission.caller
        if submission.idempotency_key is not None:
            # Bodies hold images, so the digest takes time: only requests with a key need it.
            digest = await asyncio.to_thread(digest_of, request, submission.parts)
            earlier = await self._store.requests.earlier(caller.tenant, submission.idempotency_key, digest)
            if earlier is not None:
                return earlier
            submission = replace(submission, digest=digest)
        with blaming_preset(request):
            return await self._accept_new(replace(submission, request=self._presets.apply(request, caller)))

    async def _accept_new(self, submission: Submission) -> RequestRecord:
        """The committed request. Its preset is applied."""
        request, caller = submission.request, submission.caller
        needs_lora = not submission.calibrates
        await self._admission.check(request, self._max_images(caller), caller, needs_lora=needs_lora)
        # A full queue is reported before anything is fetched or stored.
        stored = await self._store.requests.refuse_when_full(
            caller.tenant, len(request.prompts), caller.limits.max_queued, caller.limits.quotas
        )
        async with discarding_new_files(self._artifacts, self._sweeper) as new_files:
            record = await self._commit(submission, stored)
            if record.id == submission.id:
                new_files.clear()
        return record

    async def _commit(self, submission: Submission, stored: Stored | None) -> RequestRecord:
        """Do the rest of the checks, store the request's files and commit it.

        `stored` is what the tenant's requests kept before.
        """
        limits = submission.caller.limits
        editors = await self._editor_counts()
        for tries in range(1, MAX_TRIES + 1):
            try:
                new = await self._prepare(submission)
                new = replace(new, editors=editors.get(new.editor_group, 0))
                record = await self._store.requests.create(
                    new, self._artifacts.exists, limits.max_queued, limits.quotas, stored
                )
            except FilesGone:
                # A file that no other request needed was deleted just before this request came to need it.
                if tries == MAX_TRIES:
                    raise
            else:
                self._dispatcher.wake()
                return record
        raise AssertionError("unreachable")

    async def _prepare(self, submission: Submission) -> NewRequest:
        """Do the rest of the checks and store the request's files. Their bytes are free when this returns."""
        with self._image_memory.hold(submission.caller.tenant) as hold:
            request, parts, caller = submission.request, submission.parts, submission.caller
            admitted = await self._admission.admit(request, parts, caller, hold, calibrates=submission.calibrates)
            await gather_all(
                background.shielded(
                    asyncio.to_thread(self._artifacts.put_missing, artifact_keys.control_image(sha256), file.data)
                )
                for sha256, file in admitted.control_files.items()
                if file.data is not None
            )
            return self._new_request(submission, admitted)

    def _new_request(self, submission: Submission, admitted: Admitted) -> NewRequest:
        request = submission.request
        controls = {
            artifact_keys.control_image(sha256): file.size_bytes for sha256, file in admitted.control_files.items()
        }
        return NewRequest(
            id=submission.id,
            tenant=submission.caller.tenant,
            model=admitted.spec.id,
            images=tuple(NewImage(edit.plan, self._admission.work(admitted, edit)) for edit in admitted.edits),
            deadline_s=request.deadline_s or self._config.jobs.deadline_s,
            priority=request.priority,
            notes=notes_of(admitted),
            files=controls | self._adapter_files(admitted),
            idempotency_key=submission.idempotency_key,
            body_sha256=submission.digest,
            webhook=webhook_of(request, submission.base_url),
            traceparent=tracing.traceparent(),
            call_sha256=submission.call_sha256,
        )

    def _adapter_files(self, admitted: Admitted) -> dict[str, int]:
        """The adapters that were downloaded into artifact storage: size (bytes) by key."""
        uses = (use for edit in admitted.edits for use in edit.plan.adapters)
        keys = {self._artifacts.key_of(use.url): use.receipt.size_bytes for use in uses if use.receipt}
        return {key: size for key, size in keys.items() if key is not None}


def webhook_of(request: InferenceRequest, base_url: str) -> WebhookTarget | None:
    """The webhook that a request asks for."""
    if request.webhook_url is None:
        return None
    return WebhookTarget(request.webhook_url, tuple(request.webhook_events), base_url)


def notes_of(admitted: Admitted) -> dict[str, Any]:
    """What a result's metadata says about the request itself."""
    notes = {"ignored": admitted.ignored, "notes": admitted.notes}
    return {name: texts for name, texts in notes.items() if texts}


def digest_of(request: InferenceRequest, parts: Parts = NO_PARTS) -> str:
    """The SHA-256 (hex) of everything that a body asks for. The token is left out, since nothing of it is stored."""
    body = as_sent(request, exclude={"hf_token", "loras", "prompts"})
    body |= {"loras": list(map(as_sent, request.loras)), "prompts": list(map(as_sent, request.prompts))}
    if parts.files:
        body |= {PART: {name: sha256_of(data) for name, data in parts.files.items()}}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def as_sent(part: Tolerant, exclude: Collection[str] = ()) -> dict[str, Any]:
    """What was sent, unknown fields included. Those stay as they came: pydantic cannot dump deeply nested values."""
    unsent_later_ones = LATER_FIELDS - part.model_fields_set
    known = part.model_dump(mode="json", include=set(type(part).model_fields) - set(exclude) - unsent_later_ones)
    return known | (part.model_extra or {})
