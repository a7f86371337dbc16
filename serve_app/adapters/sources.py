"""Where the adapters of a request come from: files under the LoRA root, or downloads."""

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

from serve_app.adapters.header import header_end, read_header
from serve_app.adapters.lora_root import BEGINNING_BYTES, AdmittedFile, LoraRoot
from serve_app.adapters.urls import HUB_SCHEME, file_url, hub_url, is_origin, is_url
from serve_app.concurrency import background
from serve_app.errors import FetchFailed, FilesGone, LoraDownloadFailed, StorageFailed
from serve_app.models.repeat_request import without_url_secrets
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.fetch import Fetcher
from serve_app.storage.identity import fingerprint, identity


class LoraSources:
    """Finds the file that `loras[].path` names: below the LoRA root, or at an http(s) or hf URL.

    For a URL, only the header is read here; editors download the file. Files that editors could not download or verify
    are downloaded here and kept in artifact storage under the hash of their content: those that need a token, those
    whose URL holds a secret (so that no secret is stored), and those whose server reports no version.
    """

    def __init__(self, root: LoraRoot, fetcher: Fetcher, artifacts: Artifacts, hub_hosts: Sequence[str]) -> None:
        self._root = root
        self._fetcher = fetcher
        self._artifacts = artifacts
        self._hub_hosts = hub_hosts

    def is_remote(self, path: str) -> bool:
        """Whether reading the file that `path` names needs the network."""
        return is_url(path) or not self._root.is_local

    async def check(self, paths: Sequence[str]) -> None:
        """Check the paths that are not URLs.

        Raises LoraPathForbidden for the first that leaves the root, otherwise LoraNotFound for the first that names no
        file, and Overloaded.
        """
        below_root = [path for path in paths if not is_url(path)]
        if below_root:
            await self._root.in_thread(lambda: self._root.check(below_root))

    async def admit(self, path: str, token: str | None, tenant: str) -> AdmittedFile:
        """The file that `path` names, with its header.

        Raises LoraInvalidFile, LoraDownloadFailed or Overloaded, and StorageFailed if what was downloaded cannot be
        kept.
        """
        if not is_url(path):
            return await self._root.in_thread(lambda: self._root.read(self._root.find(path)))
        url, of_hub = self._file_url(path)
        name = without_url_secrets(url)
        try:
            # The token is for the hub: it is sent to no other host that the request names.
            needs_token = token is not None and of_hub
            if needs_token and not is_origin(url, self._hub_hosts):
                raise FetchFailed(
                    "hf_token is sent only over https and to the hub's own port; name the file with https://"
                )
            if not needs_token and url == name and (file := await self._admit_url(url, tenant)):
                return file
            headers = {"Authorization": f"Bearer {token}"} if needs_token else {}
            return await self._download(url, headers, tenant)
        except FetchFailed as error:
            raise _download_failed(url, error) from error
        except OSError as error:
            # Errors of the network are FetchFailed: this is the disk of this machine, full or read-only.
            raise StorageFailed(f"the LoRA at {name!r} could not be written to this service's disk") from error

    async def look(self, path: str) -> AdmittedFile | None:
        """The file that `path` names, of which nothing is kept, or None if only a download would show what is in it.

        A URL is read without a token. Raises LoraPathForbidden, LoraNotFound, LoraInvalidFile, LoraDownloadFailed or
        Overloaded.
        """
        if not is_url(path):
            await self.check([path])
            return await self.admit(path, None, "")
        url, _ = self._file_url(path)
        try:
            return await self._admit_url(url, "")
        except FetchFailed as error:
            raise _download_failed(url, error) from error

    def _file_url(self, path: str) -> tuple[str, bool]:
        """The URL of the file that `path` names, and whether the hub serves it. Raises LoraDownloadFailed."""
        try:
            if not path.isprintable():
                raise ValueError("not text")
            url = hub_url(path, self._hub_hosts[0]) if path.lower().startswith(HUB_SCHEME) else path
            of_hub = urlsplit(url).hostname in {urlsplit(f"//{host}").hostname for host in self._hub_hosts}
            # Reading the port raises ValueError if it is not a number.
            _ = urlsplit(url).port
        except ValueError as error:
            raise LoraDownloadFailed("the path of a LoRA is not a valid http or https URL") from error
        return (file_url(url) if of_hub else url), of_hub

    async def _admit_url(self, url: str, tenant: str) -> AdmittedFile | None:
        """The file at `url`, of which only the beginning is read; None if its server reports no version or size.

        Raises LoraInvalidFile or FetchFailed.
        """
        beginning, remote = await self._fetcher.read(url, 0, BEGINNING_BYTES, tenant=tenant)
        if remote.size is None or not remote.version:
            return None
        length = header_end(beginning)
        if len(beginning) < length <= remote.size:
            rest, again = await self._fetcher.read(url, len(beginning), length, remote.version, tenant)
            if (again.version or remote.version, again.size) != (remote.version, remote.size):
                raise FetchFailed("it changed while it was read")
            beginning += rest
        name = without_url_secrets(url)
        header = await asyncio.to_thread(read_header, BytesIO(beginning), remote.size, name)
        return AdmittedFile(identity(url, remote.size, remote.version), url, remote.size, header, remote.version)

    async def _download(self, url: str, headers: Mapping[str, str], tenant: str) -> AdmittedFile:
        """The file at `url`, downloaded and kept. Raises LoraInvalidFile, FetchFailed, Overloaded or StorageFailed."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "adapter"
            digest = await self._fetcher.download(url, target, headers, tenant)
            size = target.stat().st_size
            # Only a file with a sound header is kept.
            with target.open("rb") as file:
                header = await asyncio.to_thread(read_header, file, size, without_url_secrets(url))
            key = artifact_keys.downloaded_adapter(digest)
            await background.shielded(asyncio.to_thread(self._artifacts.put_file, key, target))
        kept = self._artifacts.url(key)
        try:
            return AdmittedFile(await asyncio.to_thread(fingerprint, kept), kept, size, header)
        except FileNotFoundError as error:
            # Another request had stored it, and was refused just now, which deleted it.
            raise FilesGone("a LoRA of this request was deleted meanwhile; send it again") from error
        except OSError as error:
            raise StorageFailed("a LoRA that was downloaded cannot be looked at in artifact storage") from error


def _download_failed(url: str, error: FetchFailed) -> LoraDownloadFailed:
    name = without_url_secrets(url)
    return LoraDownloadFailed(f"the LoRA at {name!r} could not be downloaded: {error.message}", {"lora_path": name})
