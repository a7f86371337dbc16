"""Admission: a request is checked, and the files that it names are fetched, before anything is committed."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from serve_app.adapters.sources import LoraSources
from serve_app.concurrency.budget import Hold
from serve_app.config import TIER_NAMES, AppConfig
from serve_app.errors import ControlImageInvalid, FetchFailed
from serve_app.images.data_urls import decode_inline
from serve_app.images.decode import ImageFacts
from serve_app.images.decoder_pool import Decoders
from serve_app.intake.admission import checks
from serve_app.intake.admission.ignored import ignored_fields, ignored_parts
from serve_app.intake.admission.image_downloads import Downloads
from serve_app.intake.admission.loras import Loras
from serve_app.intake.admission.notes import notes_about
from serve_app.intake.admission.parts import Parts, is_part
from serve_app.intake.admission.plan import PlannedEdit, add_recipes, plan_edits
from serve_app.intake.admission.quality import Losses, Qualities, check_quality, with_tier
from serve_app.intake.admission.stored_images import StoredImages, is_stored
from serve_app.intake.tenants import Caller
from serve_app.jobs.records import Upload
from serve_app.models.architecture import Architecture
from serve_app.models.effective import effective_record, transformer_flops
from serve_app.models.prompt_tokens import PromptTokens
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas.requests import InferenceRequest
from serve_app.storage.fetch import Fetcher
from serve_app.workers.webhooks import check_webhook

T = TypeVar("T")

# How many control images of one request are fetched or decoded at a time.
IMAGES_AT_ONCE = 8


class Admission:
    """Checks requests and fetches what they name. Nothing here is committed."""

    def __init__(
        self,
        config: AppConfig,
        fetcher: Fetcher,
        decoders: Decoders,
        sources: LoraSources,
        architectures: Mapping[str, Architecture],
        stored_images: StoredImages,
        losses: Losses,
    ) -> None:
        """`architectures` are those of the served models, by id."""
        self._config = config
        self._fetcher = fetcher
        self._decoders = decoders
        self._sources = sources
        self._architectures = architectures
        self._stored_images = stored_images
        self.loras = Loras(sources, architectures)
        self._qualities = Qualities(config, losses)
        self._prompts = {model.id: PromptTokens(model) for model in config.models}

    @property
    def models(self) -> Collection[str]:
        """The ids of the served models."""
        return self._architectures.keys()

    async def check(
        self, request: InferenceRequest, max_images: int, caller: Caller, *, needs_lora: bool = True
    ) -> None:
        """Make the checks that fetch and store nothing, in the contract's order. Raises RequestError or Overloaded.

        A request may have `max_images` prompts, and only LoRAs that the caller may use. Without `needs_lora` it may
        have no LoRA, whatever the config says.
        """
        spec = checks.find_model(request, self._config)
        if request.loras or needs_lora:
            checks.check_loras(request, spec, self._config)
        await self._sources.check([lora.path for lora in request.loras])
        checks.check_allowed(request, caller)
        checks.check_control_images(request, spec)
        check_quality(request, self._config.served(spec.id))
        checks.check_amount(request, max_images)
        checks.check_sources(request, spec, self._config)

    async def check_preset(self, template: InferenceRequest) -> None:
        """Make the checks of a request that do not depend on its prompts, and store nothing.

        Raises RequestError or Overloaded.
        """
        spec = checks.find_model(template, self._config)
        if template.loras:
            checks.check_loras(template, spec, self._config)
        check_quality(template, self._config.served(spec.id))
        checks.check_parameters(template, spec, self._config)
        adapters = await gather_all(self.loras.described(lora, spec) for lora in template.loras)
        quality = await self._qualities.choose(template, adapters, partial(self.loras.described, spec=spec))
        plan_edits(template, spec, self._config, {}, adapters, {}, quality=quality)

    async def admit(
        self, request: InferenceRequest, parts: Parts, caller: Caller, memory: Hold, *, calibrates: bool = False
    ) -> "Admitted":
        """Fetch what a request that passed `check` names, make the rest of the checks, and plan its edits.

        `memory` belongs to the caller's tenant. From here on it holds what downloaded control images take (bytes).
        With `calibrates`, the request may have a tier whose loss nobody has measured. Raises RequestError or
        Overloaded.
        """
        control_files = await self.control_files(request, parts, caller, memory)
        return await self.admit_with(request, control_files, parts, caller, calibrates=calibrates)

    async def admit_with(
        self,
        request: InferenceRequest,
        control_files: Mapping[str, "ControlFile"],
        parts: Parts,
        caller: Caller,
        *,
        calibrates: bool = False,
    ) -> "Admitted":
        """`admit` a request whose control images are here, by the strings that name them."""
        spec, prompts = MODELS[request.model], self._prompts[request.model]
        checks.check_allowed(request, caller)
        checks.check_parameters(request, spec, self._config)
        if request.webhook_url is not None:
            check_webhook(request.webhook_url, self._config.webhooks)
        token = request.hf_token.get_secret_value() if request.hf_token else None
        adapters = await gather_all(self.loras.of_request(lora, token, spec, caller.tenant) for lora in request.loras)
        quality = await self._qualities.choose(
            request, adapters, partial(self.loras.of_config, spec=spec), calibrates=calibrates
        )
        request = with_tier(request, quality)
        digests = {image: file.sha256 for image, file in control_files.items()}
        files = {file.sha256: file for file in control_files.values()}
        facts = {sha256: file.facts for sha256, file in files.items()}
        sizes = {sha256: image.size for sha256, image in facts.items()}
        plans = plan_edits(request, spec, self._config, digests, adapters, sizes, quality=quality)
        edits = await asyncio.to_thread(add_recipes, plans, spec, facts)
        await asyncio.to_thread(checks.check_lengths, edits, prompts, self._config)
        notes = await asyncio.to_thread(notes_about, request, spec, edits, adapters, prompts, quality)
        ignored = ignored_fields(request, spec) + ignored_parts(request, parts)
        return Admitted(spec, edits, files, ignored, notes)

    def effective(self, admitted: "Admitted", edit: PlannedEdit) -> dict[str, Any]:
        """The effective record of an edit of `admitted`: the same that the editor writes afterwards."""
        spec = admitted.spec
        return effective_record(edit.plan, spec, edit.recipe, self._architectures[spec.id], edit.control_images)

    def work(self, admitted: "Admitted", edit: PlannedEdit) -> float:
        """The estimated work of an edit of `admitted` (FLOP).

        For a tier whose seconds were measured, it is the work of the exact edit that takes as long: the tier shares
        editors, and so their speed, with exact edits.
        """
        plan, spec, ratio = edit.plan, admitted.spec, 1.0
        tier = self._config.served(spec.id).tiers.get(plan.quality) if plan.quality in TIER_NAMES else None
        # Other steps or guidance than those of the measured exact edits would need another ratio.
        if tier is not None and plan.loss is not None and tier.steps is None and tier.guidance_scale is None:
            [edit] = add_recipes([replace(plan, guidance_gate=None)], spec, edit.images_by_digest)
            ratio = plan.loss.tier_s / plan.loss.exact_s if plan.loss.exact_s > 0 else 1.0
        return transformer_flops(edit.plan, edit.recipe, self._architectures[spec.id]) * ratio

    async def control_files(
        self, request: InferenceRequest, parts: Parts, caller: Caller, memory: Hold
    ) -> dict[str, "ControlFile"]:
        """The file behind each distinct image string. Raises ControlImageInvalid or Overloaded."""
        spec = MODELS[request.model]
        if not spec.requires_control_image:
            return {}
        # An error names the first prompt that uses the image.
        first_use: dict[str, int] = {}
        for index, prompt in enumerate(request.prompts):
            for image in prompt.control_images:
                first_use.setdefault(image, index)
        uploads = await self._stored_images.uploads(first_use, caller)
        downloads = Downloads(partial(self._download, caller), memory, self._config.fetch.max_bytes)
        await downloads.expect(sum(checks.is_reference(image) for image in first_use if image not in uploads))
        source = ImageSource(uploads, downloads, parts, self._config.fetch.max_bytes)
        work = [
            partial(self._control_file, image, index, request.exif, source, caller.tenant)
            for image, index in first_use.items()
        ]
        return dict(zip(first_use, await gather_few(work, IMAGES_AT_ONCE), strict=True))

    async def _control_file(
        self, image: str, prompt_index: int, exif: Literal["ignore", "apply"], source: "ImageSource", tenant: str
    ) -> "ControlFile":
        try:
            if upload := source.uploads.get(image):
                await self._stored_images.check(image, upload)
                return ControlFile(upload.sha256, upload.size_bytes, upload.facts[exif])
            data = await source.get(image)
            facts = await self._decoders.facts(data, exif, tenant)
            return ControlFile(await asyncio.to_thread(sha256_of, data), len(data), facts, data)
        except (FetchFailed, ControlImageInvalid) as error:
            raise ControlImageInvalid(
                f"the control image of prompt {prompt_index} cannot be used: {error.message}",
                {"prompt_index": prompt_index, "reason": error.message},
            ) from error

    async def _download(self, caller: Caller, image: str, max_bytes: int, announced: Callable[[int], None]) -> bytes:
        """A control image by URL, or of an earlier request. Raises FetchFailed, ControlImageInvalid or Overloaded."""
        if is_stored(image):
            return await self._stored_images.get(image, caller)
        return await self._fetcher.get(image, caller.tenant, max_bytes, announced)


@dataclass(frozen=True)
class ImageSource:
    """Where the control images of one request come from: uploads, downloads, parts of its body, or its own text."""

    uploads: Mapping[str, Upload]
    downloads: Downloads
    parts: Parts
    max_bytes: int

    async def get(self, image: str) -> bytes:
        """The file of an image that is no upload. Raises FetchFailed, ControlImageInvalid or Overloaded."""
        if checks.is_reference(image):
            data = await self.downloads.get(image)
        elif is_part(image):
            data = self.parts.file(image)
        else:
            data = await asyncio.to_thread(decode_inline, image, self.max_bytes)
        if len(data) > self.max_bytes:
            raise ControlImageInvalid(f"it is larger than {self.max_bytes} bytes")
        return data


@dataclass(frozen=True)
class ControlFile:
    """A control image that can be decoded. `data` is the file as the client sent it, None if it is stored already."""

    sha256: str
    size_bytes: int
    facts: ImageFacts
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Admitted:
    """A request that passed every check.

    `edits` are in prompt order, `control_files` by sha256 (hex); `ignored` are the fields that have no effect, `notes`
    sentences about what the sender may not have meant.
    """

    spec: ModelSpec
    edits: list[PlannedEdit]
    control_files: dict[str, ControlFile]
    ignored: list[str]
    notes: list[str]


def sha256_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def gather_few(calls: Sequence[Callable[[], Awaitable[T]]], at_once: int) -> list[T]:
    """The results in order, with at most `at_once` calls running. Raises the first error in order, like `gather_all`.

    When a call fails, the calls after it are cancelled: nobody needs their results.
    """
    slots = asyncio.Semaphore(at_once)
    tasks: list[asyncio.Task[T]] = []

    async def call_in_turn(number: int, call: Callable[[], Awaitable[T]]) -> T:
        async with slots:
            try:
                return await call()
            except BaseException:
                for task in tasks[number + 1 :]:
                    task.cancel()
                raise

    tasks += [asyncio.create_task(call_in_turn(number, call)) for number, call in enumerate(calls)]
    return await gather_all(tasks)


async def gather_all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order. Raises the first error in order, once every awaitable is done."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    values = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
