"""The LoRAs of a request: found or downloaded, and read as far as their receipts."""

import asyncio
from collections.abc import Mapping

from serve_app.adapters.lora_root import AdmittedFile
from serve_app.adapters.receipts import read_receipt
from serve_app.adapters.sources import LoraSources
from serve_app.models.architecture import Architecture
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.models.repeat_request import without_url_secrets
from serve_app.schemas.requests import Lora
from serve_app.tasks import AdapterUse


class Loras:
    """Makes the LoRAs that requests, presets and tiers name into adapters of plans."""

    def __init__(self, sources: LoraSources, architectures: Mapping[str, Architecture]) -> None:
        """`architectures` are those of the served models, by id."""
        self._sources = sources
        self._architectures = architectures

    async def of_request(self, lora: Lora, token: str | None, spec: ModelSpec, tenant: str) -> AdapterUse:
        """A request's LoRA, found or downloaded, with its receipt. `token` is the sender's for the model hub.

        Raises LoraNotFound, LoraInvalidFile, LoraDownloadFailed, LoraIncompatible or Overloaded.
        """
        return await self._use(lora, await self._sources.admit(lora.path, token, tenant), spec)

    async def named(self, path: str, model: str) -> AdapterUse:
        """The LoRA that a request for `model` would name `path`. Raises RequestError."""
        return await self.of_config(Lora(path=path), MODELS[model])

    async def of_config(self, lora: Lora, spec: ModelSpec) -> AdapterUse:
        """A LoRA that the config names. Raises RequestError."""
        await self._sources.check([lora.path])
        return await self.of_request(lora, None, spec, "")

    async def described(self, lora: Lora, spec: ModelSpec) -> AdapterUse:
        """The LoRA, with a receipt if its file can be read without a download; if not, its id is empty.

        Nothing is kept. Raises RequestError.
        """
        file = await self._sources.look(lora.path)
        if file is None:
            return AdapterUse("", without_url_secrets(lora.path), "", lora.network_multiplier)
        return await self._use(lora, file, spec)

    async def _use(self, lora: Lora, file: AdmittedFile, spec: ModelSpec) -> AdapterUse:
        path, architecture = without_url_secrets(lora.path), self._architectures[spec.id]
        receipt = await asyncio.to_thread(read_receipt, file.header, file.size_bytes, path, spec.id, architecture)
        return AdapterUse(file.id, path, file.url, lora.network_multiplier, receipt, file.version)
