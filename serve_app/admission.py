"""Requests are checked, and what they name is fetched, before anything is committed. No HTTP, no Ray, no torch."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal, Self, TypeVar

from serve_app import images, plan
from serve_app.adapters.receipts import understand
from serve_app.adapters.sources import LoraSources
from serve_app.config import AppConfig
from serve_app.controls import StoredControls, is_stored
from serve_app.effective import effective, without_secrets
from serve_app.errors import ControlImageInvalid, FetchFailed
from serve_app.fetch import Fetcher
from serve_app.keys import Caller
from serve_app.models.architecture import Architecture
from serve_app.models.profile import PROFILES
from serve_app.models.prompts import Prompts
from serve_app.models.recipe import make_recipe
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.notes import Noted, notes_about
from serve_app.schemas import InferenceRequest, Lora
from serve_app.tasks import AdapterUse, EditPlan
from serve_app.webhooks import check_webhook

T = TypeVar("T")

# What a client may send by mistake where a picture's content belongs.
MAX_PATH, IMAGE_SUFFIXES = 1000, (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")


class Admission:
    """`architectures` are those of the served models, by id."""

    def __init__(
        self,
        config: AppConfig,
        fetcher: Fetcher,
        sources: LoraSources,
        architectures: Mapping[str, Architecture],
        controls: StoredControls,
    ) -> None:
        self._config = config
        self._fetcher = fetcher
        self._sources = sources
        self._architectures = architectures
        self._controls = controls
        self._prompts = {model.id: Prompts(model) for model in config.models}

    async def admit(self, request: InferenceRequest, caller: Caller) -> "Admitted":
        """Everything up to the plans, in the contract's order of checks. Raises RequestError."""
        spec = plan.find_model(request, self._config)
        plan.check_loras(request, spec, self._config)
        plan.check_amount(request, self._config)
        for lora in request.loras:
            self._sources.check_path(lora.path)
        for lora in request.loras:
            await asyncio.to_thread(self._sources.check_exists, lora.path)
        plan.check_control_images(request, spec)
        control_files = await self._control_files(request, spec, caller)
        plan.check_parameters(request, spec, self._config)
        if request.webhook_url is not None:
            check_webhook(request.webhook_url, self._config.webhooks)
        token = request.hf_token.get_secret_value() if request.hf_token else None
        adapters = await gather_all(self.adapter(lora, token, spec) for lora in request.loras)
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
        return effective(edit, spec, recipe, self._architectures[spec.id], images)

    async def adapter(self, lora: Lora, token: str | None, spec: ModelSpec) -> AdapterUse:
        """What a request's LoRA is. Raises LoraNotFound, LoraInvalidFile, LoraDownloadFailed or LoraIncompatible."""
        file = await self._sources.admit(lora.path, token)
        path, linears = without_secrets(lora.path), self._architectures[spec.id].linears
        receipt = await asyncio.to_thread(understand, file.header, file.size_bytes, path, spec.id, linears)
        return AdapterUse(file.id, path, file.url, lora.network_multiplier, receipt, file.version)

    async def named_adapter(self, path: str, model: str) -> AdapterUse:
        """The LoRA that a request for `model` would name so. Raises RequestError."""
        self._sources.check_path(path)
        await asyncio.to_thread(self._sources.check_exists, path)
        return await self.adapter(Lora(path=path), None, MODELS[model])

    async def _control_files(
        self, request: InferenceRequest, spec: ModelSpec, caller: Caller
    ) -> dict[str, "ControlFile"]:
        """The file behind each distinct image string, all fetched at once. Raises ControlImageInvalid."""
        if not spec.requires_control_image:
            return {}
        # The first prompt that uses an image is the one that an error names.
        first_use: dict[str, int] = {}
        for index, prompt in enumerate(request.prompts):
            for image in prompt.control_images:
                first_use.setdefault(image, index)
        files = await gather_all(
            self._control_file(image, index, request.exif, caller) for image, index in first_use.items()
        )
        return dict(zip(first_use, files, strict=True))

    async def _control_file(
        self, image: str, prompt_index: int, exif: Literal["ignore", "apply"], caller: Caller
    ) -> "ControlFile":
        limits = self._config.fetch
        try:
            data = await self._control_data(image, caller)
            if len(data) > limits.max_bytes:
                raise ControlImageInvalid(f"it is larger than {limits.max_bytes} bytes")
            return await asyncio.to_thread(ControlFile.of, data, exif, limits.max_pixels)
        except (FetchFailed, ControlImageInvalid) as error:
            raise ControlImageInvalid(
                f"the control image of prompt {prompt_index} cannot be used: {error.message}",
                {"prompt_index": prompt_index, "reason": error.message},
            ) from error

    async def _control_data(self, image: str, caller: Caller) -> bytes:
        """The file that a control image's string names or is. Raises FetchFailed or ControlImageInvalid."""
        if is_stored(image):
            return await self._controls.get(image, caller)
        return await self._fetcher.get(image) if image.startswith("http") else decode_base64(image)


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
    """A request that passed every check.

    `control_files` are by sha256; `ignored` are the fields that mean nothing for the model, `notes` what the sender
    may not have meant.
    """

    spec: ModelSpec
    plans: list[EditPlan]
    control_files: dict[str, ControlFile]
    ignored: list[str]
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


async def gather_all(awaitables: Iterable[Awaitable[T]]) -> list[T]:
    """The results in order; the first error in order is raised, after every one has ended."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    values = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        values.append(result)
    return values
