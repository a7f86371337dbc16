"""The catalogue: the served models, and the files under the LoRA root with what their headers say."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from serve_app.adapters.lora_root import LoraRoot, StoredFile, no_lora_file
from serve_app.adapters.receipts import read_receipt
from serve_app.config import AppConfig
from serve_app.errors import (
    LoraCutOff,
    LoraDownloadFailed,
    LoraIncompatible,
    LoraInvalidFile,
    LoraNotFound,
    LoraPathForbidden,
    LoraUnknown,
)
from serve_app.intake.admission.plan import divisor_of
from serve_app.intake.tenants import Caller
from serve_app.models.architecture import Architecture
from serve_app.models.profile import PROFILES, TRAINER
from serve_app.models.registry import MODELS, ModelSpec
from serve_app.schemas.catalogue import LoraInfo, LoraList

# How many files' descriptions are kept in memory, some KB each.
KNOWN_FILES = 4096


@dataclass(frozen=True)
class KnownFile:
    """What is known about a file under the LoRA root. `is_cut_off`: its end is missing, perhaps only for now."""

    info: LoraInfo
    is_cut_off: bool = False


class Catalogue:
    """What clients can edit with. A LoRA's description says which of the served models it fits."""

    def __init__(self, config: AppConfig, root: LoraRoot, architectures: Mapping[str, Architecture]) -> None:
        """`architectures` are those of the served models, by id."""
        self._config = config
        self._root = root
        self._architectures = architectures
        # A file is read again only if its store says that it has changed.
        self._known = lru_cache(KNOWN_FILES)(self._read)

    def models(self) -> list[ModelSpec]:
        """The served models, each with the size divisor of the config's profile."""
        profile = PROFILES.get(self._config.preview_profile, TRAINER)
        specs = (MODELS[model.id] for model in self._config.models)
        return [replace(spec, resolution_divisor=divisor_of(spec, profile)) for spec in specs]

    async def loras(self, search: str, cursor: str, limit: int, caller: Caller) -> LoraList:
        """A page of the files under the LoRA root that the caller may use, by path, each with its receipt.

        `search` is looked for in the path, the trigger word and the kind, in any case; the page begins after the path
        `cursor`. Raises Overloaded, or StorageFailed if the root's store does not answer.
        """
        page: list[LoraInfo] = []
        for file in await self._root.in_thread(self._root.files):
            if file.path <= cursor or not caller.may_use_lora(file.path):
                continue
            # One after the other, so that a page reads no more headers than it shows or searches.
            info = (await self._root.in_thread(partial(self.describe, file))).info
            words = (info.path, info.receipt.trigger_word or "", info.receipt.kind) if info.receipt else (info.path,)
            if any(search.lower() in word.lower() for word in words):
                page.append(info)
            if len(page) > limit:
                break
        return LoraList(loras=page[:limit], next_cursor=page[limit - 1].path if len(page) > limit else None)

    async def lora(self, path: str, caller: Caller) -> LoraInfo:
        """One file under the LoRA root. Raises LoraUnknown, or LoraDownloadFailed if its store does not answer."""
        if not caller.may_use_lora(path):
            raise LoraUnknown(no_lora_file(path), {"lora_path": path})
        try:
            file = await self._root.in_thread(partial(self._root.find, path))
        except (LoraNotFound, LoraPathForbidden) as error:
            raise LoraUnknown(error.message, error.details) from error
        return (await self._root.in_thread(partial(self.describe, file))).info

    def describe(self, file: StoredFile) -> KnownFile:
        """What is known about a file, from its header. Blocks."""
        try:
            return self._known(file)
        except (LoraNotFound, LoraDownloadFailed) as error:
            # The store failed, not the file: this answer is not kept, and the next call tries again.
            return KnownFile(LoraInfo(path=file.path, fits=[], receipt=None, problem=error.message))

    def _read(self, file: StoredFile) -> KnownFile:
        receipt, problem, fits, is_cut_off = None, None, [], False
        try:
            admitted = self._root.read(file)
            for model, architecture in self._architectures.items():
                try:
                    receipt = read_receipt(admitted.header, admitted.size_bytes, file.path, model, architecture)
                    fits.append(model)
                except LoraIncompatible as error:
                    problem = error.message
        except LoraInvalidFile as error:
            problem, is_cut_off = error.message, isinstance(error, LoraCutOff)
        info = LoraInfo(path=file.path, fits=fits, receipt=receipt, problem=None if fits else problem)
        return KnownFile(info, is_cut_off)
