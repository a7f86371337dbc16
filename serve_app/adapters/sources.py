"""Where adapter files come from: the LoRA root, or a download. And what makes two files the same adapter."""

import asyncio
import hashlib
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve_app.adapters.header import Header, read_header
from serve_app.artifacts import Artifacts
from serve_app.errors import FetchFailed, LoraDownloadFailed, LoraNotFound, LoraPathForbidden
from serve_app.fetch import Fetcher

# The path of a page on the model hub: /<owner>/<repository>/blob|tree/<revision>/...
MAX_PATH_BYTES = 250
HUB_SCHEME = "hf://"
HUB_PATH = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)$", re.IGNORECASE)
HUB_PAGE = re.compile(r"^(/[^/]+/[^/]+)/(blob|tree)(/.*)$")


# How file systems call what changes with a file's content, the surest first (s3, gcs, azure, local, memory).
VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


def fingerprint(url: str) -> str:
    """The identity of the file at `url`: 16 hex digits of place, size and version (ETag or time of change).

    A file overwritten under the same name is another adapter. Raises FileNotFoundError.
    """
    filesystem, path = fsspec.url_to_fs(url)
    info = filesystem.info(path)
    version = next((info[key] for key in VERSION_KEYS if info.get(key)), "")
    return hashlib.sha256(f"{path}\0{info['size']}\0{version}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class AdmittedFile:
    """An adapter file whose header has been read. `url` is where an editor opens it."""

    id: str
    url: str
    size_bytes: int
    header: Header


def is_url(path: str) -> bool:
    return path.lower().startswith(("http://", "https://", HUB_SCHEME))


class LoraSources:
    """Finds what `loras[].path` names: below `root`, a folder or any fsspec URL, or at an http(s) or hf URL.

    What is downloaded is kept in artifact storage under its content's hash, where every editor finds it;
    so a token that the download needed is not needed again, and is not stored.
    """

    def __init__(self, root: str, fetcher: Fetcher, artifacts: Artifacts, hub_hosts: Sequence[str]) -> None:
        self._hub_hosts = hub_hosts
        self._filesystem, base = fsspec.url_to_fs(root)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._base = str(Path(base).resolve()) if self._is_local else base.rstrip("/")
        self._fetcher = fetcher
        self._artifacts = artifacts

    def check_path(self, path: str) -> None:
        """Raise LoraPathForbidden if `path` leaves the LoRA root: absolute, by `..`, or by a symbolic link."""
        if is_url(path):
            return
        relative, windows = PurePosixPath(path), PureWindowsPath(path)
        if len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES or (not path.isprintable() and "\0" not in path):
            raise LoraNotFound("a LoRA path is too long or not text", {"lora_path": ascii(path[:100])})
        leaves = relative.is_absolute() or windows.anchor or ".." in windows.parts or "\0" in path
        if leaves or (self._is_local and not Path(self._base, path).resolve().is_relative_to(self._base)):
            raise LoraPathForbidden(
                f"the LoRA path {path!r} leads out of the LoRA root; give one relative to it", {"lora_path": path}
            )

    def check_exists(self, path: str) -> None:
        """Raise LoraNotFound if `path` is not a file under the LoRA root. URLs are not asked here."""
        if not is_url(path) and not self._filesystem.isfile(f"{self._base}/{path}"):
            raise LoraNotFound(
                f"there is no LoRA file {path!r} under the LoRA root; GET /v1/loras lists them", {"lora_path": path}
            )

    def paths(self) -> list[str]:
        """The path of every safetensors file under the LoRA root that a request may name, sorted."""
        found = self._filesystem.find(self._base) if self._filesystem.isdir(self._base) else []
        paths = (path.removeprefix(self._base).lstrip("/") for path in found if path.endswith(".safetensors"))
        return sorted(path for path in paths if self._is_allowed(path))

    def _is_allowed(self, path: str) -> bool:
        try:
            self.check_path(path)
        except (LoraPathForbidden, LoraNotFound):
            return False
        return True

    async def admit(self, path: str, token: str | None) -> AdmittedFile:
        """The file that `path` names, its header read. Raises LoraInvalidFile or LoraDownloadFailed."""
        url = await self._download(path, token) if is_url(path) else self._url(path)
        return await asyncio.to_thread(self._admit, path, url)

    def read(self, path: str) -> AdmittedFile:
        """A file under the LoRA root, its header read. Blocks. Raises LoraNotFound or LoraInvalidFile."""
        self.check_path(path)
        self.check_exists(path)
        return self._admit(path, self._url(path))

    def _url(self, path: str) -> str:
        whole = f"{self._base}/{path}"
        return whole if self._is_local else str(self._filesystem.unstrip_protocol(whole))

    def _admit(self, path: str, url: str) -> AdmittedFile:
        try:
            size = fsspec.url_to_fs(url)[0].size(url)
            with fsspec.open(url, "rb") as file:
                header = read_header(file, size, path)
            return AdmittedFile(fingerprint(url), url, size, header)
        except FileNotFoundError as error:
            raise LoraNotFound(f"the LoRA file {path!r} is no longer there", {"lora_path": path}) from error
        except OSError as error:
            raise LoraDownloadFailed(
                f"the store of the LoRA file {path!r} could not be read", {"lora_path": path}
            ) from error

    async def _download(self, path: str, token: str | None) -> str:
        url = hub_url(path, self._hub_hosts[0]) if path.lower().startswith(HUB_SCHEME) else path
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "adapter"
            # The token is the hub's: no other host that the request names gets to see it.
            of_hub = urlsplit(url).hostname in self._hub_hosts
            headers = {"Authorization": f"Bearer {token}"} if token and of_hub else {}
            try:
                digest = await self._fetcher.download(file_url(url) if of_hub else url, target, headers)
            except FetchFailed as error:
                raise LoraDownloadFailed(
                    f"the LoRA at {url!r} could not be downloaded: {error.message}", {"lora_path": url}
                ) from error
            # Only a file with a sound header is kept.
            with target.open("rb") as file:
                await asyncio.to_thread(read_header, file, target.stat().st_size, url)
            key = f"loras/{digest}.safetensors"
            await asyncio.to_thread(self._artifacts.put_file, key, target)
            return self._artifacts.url(key)


def hub_url(path: str, host: str) -> str:
    """The URL of `hf://owner/repository[@revision]/file` on the hub's `host`. Raises LoraDownloadFailed."""
    match = HUB_PATH.match(path)
    if match is None:
        raise LoraDownloadFailed(
            f"{path!r} names no file of the hub; write hf://owner/repository[@revision]/file.safetensors",
            {"lora_path": path},
        )
    return f"https://{host}/{match['repository']}/resolve/{match['revision'] or 'main'}/{match['file']}"


def file_url(url: str) -> str:
    """The URL of the file itself: a hub page's `/blob/` means `/resolve/`.

    Raises LoraDownloadFailed for a `/tree/` page, which is a folder.
    """
    parts = urlsplit(url)
    page = HUB_PAGE.match(parts.path)
    if page is None:
        return url
    if page[2] == "tree":
        raise LoraDownloadFailed(
            f"{url!r} is a folder page of the hub (/tree/); give the URL of one .safetensors file", {"lora_path": url}
        )
    return urlunsplit(parts._replace(path=f"{page[1]}/resolve{page[3]}"))
