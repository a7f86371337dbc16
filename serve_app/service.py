"""The service behind the routes: takes requests in, answers for them. No HTTP, no Ray, no torch."""

import asyncio
import base64
import binascii
import hashlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from serve_app import images, plan
from serve_app.adapters.formats import read_layout
from serve_app.adapters.receipts import make_receipt, refuse_integers, refuse_unfit
from serve_app.adapters.sources import AdmittedFile, LoraSources
from serve_app.artifacts import Artifacts
from serve_app.config import AppConfig
from serve_app.dispatch import Dispatcher, EditorCount, Editors, record_key
from serve_app.effective import effective
from serve_app.errors import (
    ControlImageInvalid,
    FetchFailed,
    HistoryUnavailable,
    ImageNotFound,
    LoraDownloadFailed,
    LoraIncompatible,
    LoraInvalidFile,
    LoraNotFound,
    LoraPathForbidden,
    LoraUnknown,
    RequestNotFound,
)
from serve_app.events import RequestEvent, events_since
from serve_app.fetch import Fetcher
from serve_app.jobs.records import (
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
from serve_app.keys import Caller
from serve_app.models.architecture import architecture_of
from serve_app.models.profile import PROFILES, TRAINER
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas import Explanation, InferenceRequest, Lora, LoraInfo, LoraList
from serve_app.tasks import AdapterUse, EditDone, EditPlan, Event, Receipt
from serve_app.watch import Watch

T = TypeVar("T")

# What a client may send by mistake where a picture's content belongs.
MAX_PATH, IMAGE_SUFFIXES = 1000, (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

# How long a watcher's view of its place in the queue may be old, and how long an unchanged request is believed (s).
POSITION_S, UNCHANGED_S = 1.0, 15.0


class Service:
    """One ingress' worth of service. An async context manager: it works between entry and exit."""

    def __init__(self, config: AppConfig, editors: Editors, editor_count: EditorCount) -> None:
        self.config = config
        self._editors = editors
        self._editor_count = editor_count
        self._architectures = {model.id: architecture_of(model) for model in config.models}
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        config = self.config
        self._artifacts = Artifacts(config.artifacts_url)
        self._fetcher = Fetcher(config.fetch)
        self._exits.push_async_callback(self._fetcher.close)
        self._loras = LoraSources(config.lora_root, self._fetcher, self._artifacts, config.fetch.hub_hosts)
        self._store = JobStore(config.jobs)
        self._exits.push_async_callback(self._store.close)
        await self._store.open()
        self._watch = Watch(self._store)
        self._run_until_exit(self._watch.run())
        self._dispatcher = Dispatcher(
            self._store, self._editors, self._artifacts, config.jobs, self._editors_of_each_model
        )
        self._run_until_exit(self._dispatcher.run())
        return self

    def _run_until_exit(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)

        async def stop() -> None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        self._exits.push_async_callback(stop)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    def caller(self, key: str | None) -> Caller:
        """Whose key it is. Raises Unauthorized."""
        return Caller()

    async def submit(
        self, request: InferenceRequest, caller: Caller, base_url: str, idempotency_key: str | None = None
    ) -> RequestRecord:
        """Check a request in the contract's order, fetch what it names, commit it, and have it worked on.

        With an idempotency key that was used for the same body, it is the request of then. Raises RequestError.
        """
        digest = digest_of(request)
        if idempotency_key is not None:
            earlier = await self._store.requests.earlier(caller.tenant, idempotency_key, digest)
            if earlier is not None:
                return earlier
        webhook = self._webhook(request, base_url)
        admitted = await self._admit(request)
        controls = {f"controls/{digest}": file.data for digest, file in admitted.control_files.items()}
        await self._keep(controls)
        record = await self._store.requests.create(
            NewRequest(
                id=uuid.uuid4().hex,
                tenant=caller.tenant,
                model=admitted.spec.id,
                images=tuple(NewImage(edit, self._work(admitted, edit)) for edit in admitted.plans),
                deadline_s=request.deadline_s or self.config.jobs.deadline_s,
                priority=request.priority,
                notes=self._notes(request, admitted),
                files={key: len(data) for key, data in controls.items()} | self._adapter_files(admitted),
                idempotency_key=idempotency_key,
                body_sha256=digest,
                webhook=webhook,
            )
        )
        # What an earlier request no longer needed may have been deleted just before this one was there to need it.
        await self._keep(controls)
        self._dispatcher.wake()
        return record

    def _webhook(self, request: InferenceRequest, base_url: str) -> Webhook | None:
        if request.webhook_url is None:
            return None
        return Webhook(request.webhook_url, tuple(request.webhook_events), base_url)

    async def _keep(self, controls: dict[str, bytes]) -> None:
        await _all(asyncio.to_thread(self._artifacts.put_new, key, data) for key, data in controls.items())

    def _adapter_files(self, admitted: "Admitted") -> dict[str, int]:
        """The adapters that were downloaded into artifact storage, with their sizes."""
        uses = (use for edit in admitted.plans for use in edit.adapters)
        keys = {self._artifacts.key_of(use.url): use.receipt.size_bytes for use in uses if use.receipt}
        return {key: size for key, size in keys.items() if key is not None}

    def _notes(self, request: InferenceRequest, admitted: "Admitted") -> dict[str, Any]:
        notes: dict[str, Any] = {}
        if ignored := plan.ignored_fields(request, admitted.spec):
            notes["ignored"] = ignored
        if admitted.notes:
            notes["notes"] = admitted.notes
        return notes

    def _work(self, admitted: "Admitted", edit: EditPlan) -> float:
        """What a picture is predicted to take (FLOP)."""
        return float(self._effective(admitted, edit)["transformer_flops_estimated"])

    async def explain(self, request: InferenceRequest) -> Explanation:
        """What `submit` would have done with the same request: the same checks and errors, and no job.

        A LoRA that the request names by URL is downloaded and kept, for the request that follows.
        """
        admitted = await self._admit(request)
        return Explanation(
            model=admitted.spec.id,
            effective=[self._effective(admitted, edit) for edit in admitted.plans],
            ignored=plan.ignored_fields(request, admitted.spec),
            notes=admitted.notes,
        )

    def _effective(self, admitted: "Admitted", edit: EditPlan) -> dict[str, Any]:
        spec = admitted.spec
        images = [admitted.control_files[digest].facts for digest in edit.control_images]
        recipe = make_recipe(spec, PROFILES[edit.profile], edit, [image.size for image in images])
        return effective(edit, spec, recipe, self._architectures[spec.id], images)

    async def _admit(self, request: InferenceRequest) -> "Admitted":
        """Everything up to the plans, in the contract's order of checks."""
        spec = plan.find_model(request, self.config)
        plan.check_loras(request, spec, self.config)
        for lora in request.loras:
            self._loras.check_path(lora.path)
        for lora in request.loras:
            await asyncio.to_thread(self._loras.check_exists, lora.path)
        plan.check_control_images(request, spec)
        control_files = await self._control_files(request, spec)
        plan.check_parameters(request, spec, self.config)
        token = request.hf_token.get_secret_value() if request.hf_token else None
        adapters = await _all(self._adapter(lora, token, spec) for lora in request.loras)
        digests = {image: file.sha256 for image, file in control_files.items()}
        plans = plan.plan_edits(request, spec, self.config, digests, adapters)
        notes = plan.exif_notes(plans, {file.sha256: file.facts for file in control_files.values()})
        notes += plan.trigger_notes(request, adapters)
        return Admitted(spec, plans, {file.sha256: file for file in control_files.values()}, notes)

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
        """The request once it has ended, or as it is after so long."""
        until = time.monotonic() + seconds
        while not record.status.ended and (left := until - time.monotonic()) > 0:
            await self._watch.changed(record.id, record.version, min(left, UNCHANGED_S))
            record = await self._store.requests.get(record.id)
        return record

    async def events(self, record: RequestRecord, since: int, base_url: str) -> AsyncIterator[RequestEvent]:
        """What happens to a request from its version `since` on, until it ends."""
        position: int | None = None
        while True:
            for event in events_since(record, since, base_url):
                yield event
            since = record.version
            if record.status.ended:
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
        """End a request that has not ended, and with `purge` delete its pictures. Raises RequestNotFound."""
        record = await self.request(request_id, caller)
        await self._store.requests.cancel(request_id)
        self._dispatcher.wake()
        if purge:
            await self._store.retention.purge(request_id, self._artifacts.delete)
            records = [record_key(request_id, image.index) for image in record.images]
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

    async def picture(self, request_id: str, index: int, caller: Caller) -> tuple[EditDone, bytes]:
        """A finished picture and its file. Raises RequestNotFound or ImageNotFound."""
        record = await self.request(request_id, caller)
        details = {"request_id": request_id, "image": index}
        if not 0 <= index < len(record.images):
            raise ImageNotFound(f"request {request_id!r} has {len(record.images)} images, counted from 0", details)
        done = record.images[index].result
        if done is None:
            what = "was deleted" if record.purged else f"is {record.images[index].status}, not finished"
            raise ImageNotFound(f"image {index} of request {request_id!r} {what}", details)
        try:
            return done, await asyncio.to_thread(self._artifacts.get, done.key)
        except FileNotFoundError as error:
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
        page: list[LoraInfo] = []
        for path in await asyncio.to_thread(self._loras.paths):
            if path <= cursor:
                continue
            # In turn, so that no page reads more headers than it shows or searches.
            info = await asyncio.to_thread(self._lora_info, path)
            words = (path, info.receipt.trigger_word or "", info.receipt.kind) if info.receipt else (path,)
            if any(search.lower() in word.lower() for word in words):
                page.append(info)
            if len(page) > limit:
                break
        return LoraList(loras=page[:limit], next_cursor=page[limit - 1].path if len(page) > limit else None)

    async def lora(self, path: str) -> LoraInfo:
        """One file under the LoRA root. Raises LoraUnknown."""
        try:
            self._loras.check_path(path)
            await asyncio.to_thread(self._loras.check_exists, path)
        except (LoraNotFound, LoraPathForbidden) as error:
            raise LoraUnknown(error.message, error.details) from error
        return await asyncio.to_thread(self._lora_info, path)

    def _lora_info(self, path: str) -> LoraInfo:
        receipt, problem, fits = None, None, []
        try:
            file = self._loras.read(path)
            for spec in self.models():
                try:
                    receipt = self._understand(file, path, spec)
                    fits.append(spec.id)
                except LoraIncompatible as error:
                    problem = error.message
        except (LoraInvalidFile, LoraNotFound, LoraDownloadFailed) as error:
            problem = error.message
        return LoraInfo(path=path, fits=fits, receipt=receipt, problem=None if fits else problem)

    async def waiting_for(self) -> list[str]:
        """The configured models that have no running editor."""
        running = await self._editors_of_each_model()
        return [model for model, editors in running.items() if not editors]

    async def _editors_of_each_model(self) -> dict[str, int]:
        running = await self._editor_count()
        return {model.id: running.get(model.id, 0) for model in self.config.models}

    async def _adapter(self, lora: Lora, token: str | None, spec: ModelSpec) -> AdapterUse:
        """Raises LoraInvalidFile, LoraDownloadFailed or LoraIncompatible."""
        file = await self._loras.admit(lora.path, token)
        receipt = await asyncio.to_thread(self._understand, file, lora.path, spec)
        return AdapterUse(file.id, lora.path, file.url, lora.network_multiplier, receipt)

    def _understand(self, file: AdmittedFile, path: str, spec: ModelSpec) -> Receipt:
        layout = read_layout(file.header.tensors, self._architectures[spec.id].linears)
        refuse_unfit(layout, path, spec.id)
        refuse_integers(file.header, layout, path, spec.id)
        return make_receipt(file.header, layout, file.size_bytes)

    async def _control_files(self, request: InferenceRequest, spec: ModelSpec) -> dict[str, "ControlFile"]:
        """The file behind each distinct image string, all fetched at once. Raises ControlImageInvalid."""
        if not spec.requires_control_image:
            return {}
        # The first prompt that uses an image is the one that an error names.
        first_use: dict[str, int] = {}
        for index, prompt in enumerate(request.prompts):
            for image in prompt.control_images:
                first_use.setdefault(image, index)
        files = await _all(self._control_file(image, index, request.exif) for image, index in first_use.items())
        return dict(zip(first_use, files, strict=True))

    async def _control_file(self, image: str, prompt_index: int, exif: Literal["ignore", "apply"]) -> "ControlFile":
        limits = self.config.fetch
        try:
            data = await self._fetcher.get(image) if image.startswith("http") else decode_base64(image)
            if len(data) > limits.max_bytes:
                raise ControlImageInvalid(f"it is larger than {limits.max_bytes} bytes")
            return await asyncio.to_thread(ControlFile.of, data, exif, limits.max_pixels)
        except (FetchFailed, ControlImageInvalid) as error:
            raise ControlImageInvalid(
                f"the control image of prompt {prompt_index} cannot be used: {error.message}",
                {"prompt_index": prompt_index, "reason": error.message},
            ) from error


@dataclass(frozen=True)
class ControlFile:
    """A control image that was fetched and can be edited. `data` is the file as the client sent it."""

    data: bytes
    sha256: str
    facts: images.ControlImage

    @classmethod
    def of(cls, data: bytes, exif: Literal["ignore", "apply"], max_pixels: int) -> Self:
        """Raises ControlImageInvalid, with the reason alone. The pixels are not kept."""
        return cls(data, hashlib.sha256(data).hexdigest(), images.read(data, exif, max_pixels).facts)


@dataclass(frozen=True)
class Admitted:
    """A request that passed every check. `control_files` are by sha256."""

    spec: ModelSpec
    plans: list[EditPlan]
    control_files: dict[str, ControlFile]
    notes: list[str]


def refuse_others(tenant: str, request_id: str, caller: Caller) -> None:
    """Raise RequestNotFound for another tenant's request, as if it were not there."""
    if tenant != caller.tenant and not caller.is_operator:
        raise RequestNotFound(f"there is no request {request_id!r}", {"request_id": request_id})


def digest_of(request: InferenceRequest) -> str:
    """What makes two bodies the same request: all but the token, of which nothing is stored."""
    body = request.model_dump(mode="json", exclude={"hf_token"})
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def decode_base64(text: str) -> bytes:
    """The bytes of raw base64 or of a `data:` URL. Raises ControlImageInvalid."""
    payload = text.partition(",")[2] if text.startswith("data:") else text
    if len(text) < MAX_PATH and PurePath(text).suffix.lower() in IMAGE_SUFFIXES:
        raise ControlImageInvalid(f"{text!r} looks like a path, and none is read: send base64 or an http(s) URL")
    try:
        return base64.b64decode(payload)
    except (binascii.Error, ValueError) as error:
        raise ControlImageInvalid("it is neither an http(s) URL nor base64") from error


async def _all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order; the first error in order is raised, after every one has ended."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    values = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
