"""The bytes of adapter files, verified to be the same for every reader, on every node and at any time."""

import hashlib
import logging
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from fsspec.implementations.local import LocalFileSystem

from serve_app.adapters.disk_cache import DiskCache
from serve_app.adapters.download import download, refuse_changed
from serve_app.adapters.header import read_header
from serve_app.adapters.local_files import NotRegular, open_regular
from serve_app.config import AdapterConfig, FetchConfig
from serve_app.errors import FetchFailed, LoraChanged, LoraDownloadFailed, StorageFailed
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.fetch import DISK_FULL
from serve_app.storage.identity import fingerprint, open_store
from serve_app.tasks import AdapterUse

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterFile:
    """A complete adapter file, and its SHA-256 (hex)."""

    data: bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> "AdapterFile":
        return cls(data, hashlib.sha256(data).hexdigest())


class VerifiedFiles:
    """Reads adapter files on one node: local files directly, remote ones through the node's disk cache. Thread-safe.

    The first read of an adapter writes its digest to artifact storage. A later read of other content under the same
    id, on any node and after any restart, is refused. Without `artifacts`, digests are not compared.
    """

    def __init__(self, config: AdapterConfig, limits: FetchConfig, artifacts: Artifacts | None = None) -> None:
        self._disk = DiskCache(Path(config.adapter_disk_folder), config.adapter_disk_bytes)
        self._limits = limits
        self._artifacts = artifacts

    def read(self, use: AdapterUse) -> AdapterFile:
        """The adapter's file. Blocks.

        Raises LoraChanged if the file is gone or is not the one that was admitted, LoraDownloadFailed if its server
        does not send it, LoraInvalidFile if it is not a safetensors file, StorageFailed if artifact storage or the LoRA
        root cannot be read now.
        """
        pinned = self._pinned(use)
        content = self._content(use)
        if pinned not in (None, content.sha256):
            # This node's copy may be damaged.
            self._disk.discard(use.id)
            content = self._content(use)
        if content.sha256 != (pinned or self._pin(use, content.sha256)):
            self._disk.discard(use.id)
            raise LoraChanged(
                f"the LoRA file {use.path!r} has other content than it had when it was first used, though its size and "
                "time or ETag are the same",
                {"lora_path": use.path},
            )
        return content

    def _content(self, use: AdapterUse) -> AdapterFile:
        """The file. Every error of a store is translated here.

        The client chooses a server that its request names, so its failure is an error of the request. The operator
        chooses the stores, so their failure is an error of the service.
        """
        details = {"lora_path": use.path}
        gone = f"the LoRA file {use.path!r} was deleted after the request was accepted"
        try:
            return AdapterFile.of(self._bytes(use))
        except FetchFailed as error:
            if error.details.get("status") in (404, 410):
                raise LoraChanged(gone, details) from error
            message = f"the LoRA file {use.path!r} could not be downloaded: {error.message}"
            raise LoraDownloadFailed(message, details) from error
        except (FileNotFoundError, NotRegular) as error:
            raise LoraChanged(gone, details) from error
        except OSError as error:
            raise StorageFailed(f"the store of the LoRA file {use.path!r} cannot be read now", details) from error

    def _bytes(self, use: AdapterUse) -> bytes:
        if not use.version:
            filesystem, path = open_store(use.url)
            if isinstance(filesystem, LocalFileSystem):
                refuse_changed(use, fingerprint(use.url))
                with open_regular(Path(path)) as file:
                    return file.read()
        fetch = partial(download, use, config=self._limits)
        check = partial(_check, use)
        try:
            return self._disk.read(use.id, fetch, check)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
        logger.warning("the disk is full: %s is read without the disk cache", use.path)
        memory = BytesIO()
        fetch(memory)
        memory.seek(0)
        check(memory)
        return memory.getvalue()

    def _pinned(self, use: AdapterUse) -> str | None:
        """The digest that every reader of this adapter must find; None before the first read."""
        try:
            return self._artifacts.get(artifact_keys.adapter_digest(use.id)).decode() if self._artifacts else None
        except FileNotFoundError:
            return None

    def _pin(self, use: AdapterUse, sha256: str) -> str:
        """Pin this digest. Returns the pinned digest, which is another reader's if that one was first."""
        if self._artifacts is None or self._artifacts.put_new(artifact_keys.adapter_digest(use.id), sha256.encode()):
            return sha256
        return self._artifacts.get(artifact_keys.adapter_digest(use.id)).decode()


def _check(use: AdapterUse, file: BinaryIO) -> None:
    """Raises LoraInvalidFile."""
    size = file.seek(0, 2)
    file.seek(0)
    read_header(file, size, use.path)
