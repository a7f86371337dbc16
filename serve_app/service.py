"""The service behind the routes: takes requests in, answers for them. No HTTP, no Ray, no torch."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import PurePath
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from serve_app import images, plan
from serve_app.adapters.receipts import understand
from serve_app.adapters.shelf import Shelf
from serve_app.adapters.sources import LoraSources
from serve_app.artifacts import Artifacts
from serve_app.config import AppConfig
from serve_app.dispatch import Dispatcher, Editors, result_key
from serve_app.effective import effective, without_secrets
from serve_app.errors import (
    ControlImageInvalid,
    FetchFailed,
    ImageNotFound,
)
from serve_app.fetch import Fetcher
from serve_app.jobs import JobStore, RequestRecord, Standing
from serve_app.models.architecture import architecture_of
from serve_app.models.profile import PROFILES, TRAINER
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas import Explanation, InferenceRequest, Lora, LoraInfo, LoraList
from serve_app.tasks import AdapterUse, EditDone, EditPlan, EditTask

T = TypeVar("T")

# What a client may send by mistake where a picture's content belongs.
MAX_PATH, IMAGE_SUFFIXES = 1000, (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")

# Which configured models have a running editor.
ReadinessProbe = Callable[[], Awaitable[Mapping[str, bool]]]


class Service:
    """One ingress' worth of service. An async context manager: it works between entry and exit."""

    def __init__(self, config: AppConfig, editors: Editors, readiness: ReadinessProbe) -> None:
        self.config = config
        self._editors = editors
        self._readiness = readiness
        self._architectures = {model.id: architecture_of(model) for model in config.models}
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> Self:
        config = self.config
        self._artifacts = Artifacts(config.artifacts_url)
        self._fetcher = Fetcher(config.fetch)
        self._exits.push_async_callback(self._fetcher.close)
        self._loras = LoraSources(config.lora_root, self._fetcher, self._artifacts, config.fetch.hub_hosts)
        self._shelf = Shelf(self._loras, {id: of_one.linears for id, of_one in self._architectures.items()})
        self._store = JobStore(config.jobs)
        self._exits.push_async_callback(self._store.close)
        await self._store.open()
        self._dispatcher = Dispatcher(self._store, self._editors, self._artifacts, config.jobs)
        self._dispatching = asyncio.create_task(self._dispatcher.run())
        self._exits.push_async_callback(self._stop_dispatching)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._exits.aclose()

    async def _stop_dispatching(self) -> None:
        self._dispatching.cancel()
        with suppress(asyncio.CancelledError):
            await self._dispatching

    async def submit(self, request: InferenceRequest) -> RequestRecord:
        """Check a request in the contract's order, fetch what it names, commit it, and have it worked on."""
        admitted = await self._admit(request)
        await _all(
            asyncio.to_thread(self._artifacts.put_content, "controls", file.data)
            for file in admitted.control_files.values()
        )
        notes: dict[str, Any] = {}
        if ignored := plan.ignored_fields(request, admitted.spec):
            notes["ignored"] = ignored
        if admitted.notes:
            notes["notes"] = admitted.notes
        record = await self._store.create(admitted.spec.id, admitted.plans, notes)
        self._dispatcher.wake()
        return record

    async def explain(self, request: InferenceRequest) -> Explanation:
        """What `submit` would have done with the same request: the same checks and errors, and no job.

        A LoRA that the request names by a URL with secrets is downloaded and kept, for the request that follows.
        """
        admitted = await self._admit(request)
        spec, architecture = admitted.spec, self._architectures[admitted.spec.id]

        def explain(edit: EditPlan) -> dict[str, Any]:
            images = [admitted.control_files[digest].facts for digest in edit.control_images]
            recipe = make_recipe(spec, PROFILES[edit.profile], edit, [image.size for image in images])
            return effective(edit, spec, recipe, architecture, images)

        return Explanation(
            model=spec.id,
            effective=[explain(edit) for edit in admitted.plans],
            ignored=plan.ignored_fields(request, spec),
            notes=admitted.notes,
        )

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

    async def standing(self, request_id: str) -> Standing:
        """Where a request stands. Raises RequestNotFound."""
        return await self._store.standing(request_id)

    async def request(self, request_id: str) -> RequestRecord:
        """Raises RequestNotFound."""
        return await self._store.get(request_id)

    async def picture(self, request_id: str, index: int) -> tuple[EditDone, bytes]:
        """A finished picture and its file. Raises RequestNotFound or ImageNotFound."""
        record = await self._store.get(request_id)
        details = {"request_id": request_id, "image": index}
        if not 0 <= index < len(record.images):
            raise ImageNotFound(f"request {request_id!r} has {len(record.images)} images, counted from 0", details)
        done = record.images[index].result
        if done is None:
            status = record.images[index].status
            raise ImageNotFound(f"image {index} of request {request_id!r} is {status}, not finished", details)
        try:
            key = f"{result_key(EditTask(request_id, index, record.images[index].plan))}.{done.format}"
            return done, await asyncio.to_thread(self._artifacts.get, key)
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
        return await self._shelf.page(search, cursor, limit)

    async def lora(self, path: str) -> LoraInfo:
        """One file under the LoRA root. Raises LoraUnknown."""
        return await self._shelf.one(path)

    async def waiting_for(self) -> list[str]:
        """The configured models that have no running editor."""
        running = await self._readiness()
        return [model.id for model in self.config.models if not running.get(model.id)]

    async def _adapter(self, lora: Lora, token: str | None, spec: ModelSpec) -> AdapterUse:
        """Raises LoraInvalidFile, LoraDownloadFailed or LoraIncompatible."""
        file = await self._loras.admit(lora.path, token)
        path, linears = without_secrets(lora.path), self._architectures[spec.id].linears
        receipt = await asyncio.to_thread(understand, file.header, file.size_bytes, path, spec.id, linears)
        return AdapterUse(file.id, path, file.url, lora.network_multiplier, receipt, file.version)

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
