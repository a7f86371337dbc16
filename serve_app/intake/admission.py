"""Requests are checked, and what they name is fetched, before anything is committed. No HTTP, no Ray, no torch."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

from serve_app.adapters.receipts import understand
from serve_app.adapters.sources import LoraSources
from serve_app.concurrency.budget import Hold
from serve_app.config import AppConfig
from serve_app.errors import ControlImageInvalid, FetchFailed
from serve_app.images.data_urls import decode_inline
from serve_app.images.decode import ImageFacts
from serve_app.images.decoder_pool import Decoders
from serve_app.intake import plan
from serve_app.intake.image_downloads import Downloads
from serve_app.intake.keys import Caller
from serve_app.intake.notes import Noted, notes_about
from serve_app.intake.stored_images import StoredControls, is_stored
from serve_app.models.architecture import Architecture
from serve_app.models.effective import effective_record
from serve_app.models.profile import PROFILES
from serve_app.models.prompt_tokens import PromptTokens
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas import InferenceRequest, Lora
from serve_app.storage.fetch import Fetcher
from serve_app.tasks import AdapterUse, EditPlan
from serve_app.workers.webhooks import check_webhook

T = TypeVar("T")

# How many control images of one request are fetched or decoded at a time.
IMAGES_AT_ONCE = 8


class Admission:
    """`architectures` are those of the served models, by id."""

    def __init__(
        self,
        config: AppConfig,
        fetcher: Fetcher,
        decoders: Decoders,
        sources: LoraSources,
        architectures: Mapping[str, Architecture],
        controls: StoredControls,
    ) -> None:
        self._config = config
        self._fetcher = fetcher
        self._decoders = decoders
        self._sources = sources
        self._architectures = architectures
        self._controls = controls
        self._prompts = {model.id: PromptTokens(model) for model in config.models}

    async def check(self, request: InferenceRequest, most_waiting: int) -> None:
        """The checks that fetch and keep nothing, in the contract's order. Raises RequestError or Overloaded.

        Of one request, `most_waiting` images may wait when nothing else does.
        """
        spec = plan.find_model(request, self._config)
        plan.check_loras(request, spec, self._config)
        await self._sources.check([lora.path for lora in request.loras])
        plan.check_control_images(request, spec)
        plan.check_amount(request, most_waiting)
        plan.check_sources(request, spec, self._config)

    async def admit(self, request: InferenceRequest, caller: Caller, room: Hold) -> "Admitted":
        """The rest of the checks up to the plans, of a request that passed `check`. Raises RequestError or Overloaded.

        `room` is of the caller's tenant, and from here on holds what the control images that lie elsewhere take.
        """
        spec = MODELS[request.model]
        control_files = await self._control_files(request, spec, caller, room)
        plan.check_parameters(request, spec, self._config)
        if request.webhook_url is not None:
            check_webhook(request.webhook_url, self._config.webhooks)
        token = request.hf_token.get_secret_value() if request.hf_token else None
        adapters = await gather_all(self.adapter(lora, token, spec, room.tenant) for lora in request.loras)
        digests = {image: file.sha256 for image, file in control_files.items()}
        plans = plan.plan_edits(request, spec, self._config, digests, adapters)
        facts = {file.sha256: file.facts for file in control_files.values()}
        prompts = self._prompts[spec.id]
        await asyncio.to_thread(plan.check_lengths, plans, spec, facts, prompts, self._config)
        notes = await asyncio.to_thread(notes_about, Noted(request, spec, plans, facts, adapters, prompts))
        files = {file.sha256: file for file in control_files.values()}
        return Admitted(spec, plans, files, plan.ignored_fields(request, spec), notes)

    def effective(self, admitted: "Admitted", edit: EditPlan) -> dict[str, Any]:
        """What would be done for one of its plans: the same record that the editor then gives."""
        spec = admitted.spec
        images = [admitted.control_files[digest].facts for digest in edit.control_images]
        recipe = make_recipe(spec, PROFILES[edit.profile], edit, [image.size for image in images])
        return effective_record(edit, spec, recipe, self._architectures[spec.id], images)

    async def adapter(self, lora: Lora, token: str | None, spec: ModelSpec, tenant: str) -> AdapterUse:
        """What a request's LoRA is.

        Raises LoraNotFound, LoraInvalidFile, LoraDownloadFailed, LoraIncompatible or Overloaded.
        """
        file = await self._sources.admit(lora.path, token, tenant)
        path, architecture = without_url_secrets(lora.path), self._architectures[spec.id]
        receipt = await asyncio.to_thread(understand, file.header, file.size_bytes, path, spec.id, architecture)
        return AdapterUse(file.id, path, file.url, lora.network_multiplier, receipt, file.version)

    async def named_adapter(self, path: str, model: str) -> AdapterUse:
        """The LoRA that a request for `model` would name so. Raises RequestError."""
        await self._sources.check([path])
        return await self.adapter(Lora(path=path), None, MODELS[model], "")

    async def _control_files(
        self, request: InferenceRequest, spec: ModelSpec, caller: Caller, room: Hold
    ) -> dict[str, "ControlFile"]:
        """The file behind each distinct image string. Raises ControlImageInvalid or Overloaded."""
        if not spec.requires_control_image:
            return {}
        # The first prompt that uses an image is the one that an error names.
        first_use: dict[str, int] = {}
        for index, prompt in enumerate(request.prompts):
            for image in prompt.control_images:
                first_use.setdefault(image, index)
        downloads = Downloads(partial(self._bring, caller), room, self._config.fetch.max_bytes)
        await downloads.expect(sum(map(plan.lies_elsewhere, first_use)))
        work = [
            partial(self._control_file, image, index, request.exif, downloads, caller.tenant)
            for image, index in first_use.items()
        ]
        return dict(zip(first_use, await gather_few(work, IMAGES_AT_ONCE), strict=True))

    async def _control_file(
        self, image: str, prompt_index: int, exif: Literal["ignore", "apply"], downloads: Downloads, tenant: str
    ) -> "ControlFile":
        max_bytes = self._config.fetch.max_bytes
        try:
            if plan.lies_elsewhere(image):
                data = await downloads.get(image)
            else:
                data = await asyncio.to_thread(decode_inline, image, max_bytes)
            if len(data) > max_bytes:
                raise ControlImageInvalid(f"it is larger than {max_bytes} bytes")
            facts = await self._decoders.facts(data, exif, tenant)
            return ControlFile(data, await asyncio.to_thread(sha256_of, data), facts)
        except (FetchFailed, ControlImageInvalid) as error:
            raise ControlImageInvalid(
                f"the control image of prompt {prompt_index} cannot be used: {error.message}",
                {"prompt_index": prompt_index, "reason": error.message},
            ) from error

    async def _bring(self, caller: Caller, image: str, max_bytes: int, announced: Callable[[int], None]) -> bytes:
        """The file that a control image's string names. Raises FetchFailed, ControlImageInvalid or Overloaded."""
        if is_stored(image):
            return await self._controls.get(image, caller)
        return await self._fetcher.get(image, caller.tenant, max_bytes, announced)


@dataclass(frozen=True)
class ControlFile:
    """A control image that was fetched and can be edited. `data` is the file as the client sent it."""

    data: bytes
    sha256: str
    facts: ImageFacts


@dataclass(frozen=True)
class Admitted:
    """A request that passed every check.

    `control_files` are by sha256; `ignored` are the fields that mean nothing for the model, `notes` what the sender
    may not have meant.
    """

    spec: ModelSpec
    plans: list[EditPlan]
    control_files: dict[str, ControlFile]
    ignored: list[str]
    notes: list[str]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def gather_few(calls: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
    """The results in order, of so many calls at a time; the first error in order is raised, as in `gather_all`.

    The calls after one that fails are cancelled, whatever they wait for: nobody needs their results.
    """
    places = asyncio.Semaphore(at_once)
    tasks: list[asyncio.Task[T]] = []

    async def call_in_turn(number: int, call: Callable[[], Awaitable[T]]) -> T:
        async with places:
            try:
                return await call()
            except BaseException:
                for task in tasks[number + 1 :]:
                    task.cancel()
                raise

    tasks += [asyncio.create_task(call_in_turn(number, call)) for number, call in enumerate(calls)]
    return await gather_all(tasks)


async def gather_all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order; the first error in order is raised, after every one has ended."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    values = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
