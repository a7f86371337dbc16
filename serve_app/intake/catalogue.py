"""What lies under the LoRA root, with what each file's header says. For people who look for an adapter."""

from collections.abc import Mapping
from functools import lru_cache, partial

from serve_app.adapters.lora_root import LoraRoot, StoredFile
from serve_app.adapters.receipts import understand
from serve_app.errors import (
    LoraDownloadFailed,
    LoraIncompatible,
    LoraInvalidFile,
    LoraNotFound,
    LoraPathForbidden,
    LoraUnknown,
)
from serve_app.models.architecture import Architecture
from serve_app.schemas import LoraInfo, LoraList

# Files whose headers are remembered, some KB each.
KNOWN_FILES = 4096


class Shelf:
    """The LoRA root seen with the eyes of the served models: `architectures` are by the model's id."""

    def __init__(self, root: LoraRoot, architectures: Mapping[str, Architecture]) -> None:
        self._root = root
        self._architectures = architectures
        # A file that its store says is unchanged is not read again.
        self._known = lru_cache(KNOWN_FILES)(self._read)

    async def page(self, search: str, cursor: str, limit: int) -> LoraList:
        """As `Service.loras`."""
        page: list[LoraInfo] = []
        for file in await self._root.in_thread(self._root.files):
            if file.path <= cursor:
                continue
            # In turn, so that no page reads more headers than it shows or searches.
            info = await self._root.in_thread(partial(self._describe, file))
            words = (info.path, info.receipt.trigger_word or "", info.receipt.kind) if info.receipt else (info.path,)
            if any(search.lower() in word.lower() for word in words):
                page.append(info)
            if len(page) > limit:
                break
        return LoraList(loras=page[:limit], next_cursor=page[limit - 1].path if len(page) > limit else None)

    async def one(self, path: str) -> LoraInfo:
        """One file. Raises LoraUnknown, or LoraDownloadFailed if its store does not answer."""
        try:
            file = await self._root.in_thread(partial(self._root.find, path))
        except (LoraNotFound, LoraPathForbidden) as error:
            raise LoraUnknown(error.message, error.details) from error
        return await self._root.in_thread(partial(self._describe, file))

    def _describe(self, file: StoredFile) -> LoraInfo:
        try:
            return self._known(file)
        except (LoraNotFound, LoraDownloadFailed) as error:
            # Of the store, not of the file: it is tried again.
            return LoraInfo(path=file.path, fits=[], receipt=None, problem=error.message)

    def _read(self, file: StoredFile) -> LoraInfo:
        receipt, problem, fits = None, None, []
        try:
            admitted = self._root.read(file)
            for model, architecture in self._architectures.items():
                try:
                    receipt = understand(admitted.header, admitted.size_bytes, file.path, model, architecture)
                    fits.append(model)
                except LoraIncompatible as error:
                    problem = error.message
        except LoraInvalidFile as error:
            problem = error.message
        return LoraInfo(path=file.path, fits=fits, receipt=receipt, problem=None if fits else problem)
