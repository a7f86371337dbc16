"""Where adapter files come from: the LoRA root, or a download. And what makes two files the same adapter."""

import asyncio
import errno
import hashlib
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from os.path import realpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve_app.adapters.header import Header, header_end, read_header
from serve_app.adapters.local_files import NotRegular, open_regular
from serve_app.concurrency import background
from serve_app.concurrency.threads import Threads
from serve_app.errors import (
    FetchFailed,
    FilesGone,
    LoraDownloadFailed,
    LoraNotFound,
    LoraPathForbidden,
    Overloaded,
    StorageFailed,
)
from serve_app.models.effective import without_secrets
from serve_app.storage import artifact_keys
from serve_app.storage.artifacts import Artifacts
from serve_app.storage.fetch import Fetcher
from serve_app.storage.os_errors import as_os_errors

T = TypeVar("T")

# Longest path below the LoRA root: file systems take 255 bytes for a name.
MAX_PATH_BYTES = 250
HTTPS_PORT = 443
HUB_SCHEME = "hf://"
HUB_PATH = re.compile(r"^hf://(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)$", re.IGNORECASE)
# The path of a page on the model hub: /<owner>/<repository>/blob|tree/<revision>/...
HUB_PAGE = re.compile(r"^(/[^/]+/[^/]+)/(blob|tree)(/.*)$")


# How file systems call what changes with a file's content, the surest first (s3, gcs, azure, local, memory).
VERSION_KEYS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")
# What is read of a file at first: the header of most adapters.
BEGINNING_BYTES = 512 * 2**10
# How many looks into the LoRA root are under way at a time; how long the next one waits and each may take (s).
ROOT_THREADS, ROOT_PATIENCE_S, ROOT_TIMEOUT_S = 16, 5.0, 30.0


def open_store(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of `url` and the path there. It is asked each time: a listing kept for later hides changes."""
    filesystem, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return filesystem, path


def identity(place: str, size: int, version: object) -> str:
    """16 hex digits. A file overwritten under the same name is another adapter."""
    return hashlib.sha256(f"{place}\0{size}\0{version}".encode()).hexdigest()[:16]


def fingerprint(url: str) -> str:
    """The identity of the file at `url` in a file system: of place, size and version.

    Raises FileNotFoundError, and other OSErrors of its store.
    """
    with as_os_errors():
        filesystem, path = open_store(url)
        return _fingerprint(path, filesystem.info(path))


def _fingerprint(path: str, info: Mapping[str, Any]) -> str:
    return identity(path, info["size"], next((info[key] for key in VERSION_KEYS if info.get(key)), ""))


@dataclass(frozen=True)
class StoredFile:
    """A file under the LoRA root, as its store lists it. `path` is relative to the root, `url` where it is opened."""

    path: str
    url: str
    size_bytes: int
    id: str


@dataclass(frozen=True)
class AdmittedFile:
    """An adapter file whose header has been read. `url` is where an editor opens it.

    `version` is what the server of an http(s) URL calls its version; "" for files in a file system.
    """

    id: str
    url: str
    size_bytes: int
    header: Header
    version: str = ""


def is_url(path: str) -> bool:
    return path.lower().startswith(("http://", "https://", HUB_SCHEME))


class LoraSources:
    """Finds what `loras[].path` names: below `root`, a folder or any fsspec URL, or at an http(s) or hf URL.

    Of a URL only the header is read here; editors fetch the file. What they could not fetch or verify is downloaded
    here and kept in artifact storage under its content's hash: what needs a token or holds a secret itself, which
    so is never stored, and what its server gives no version of.
    """

    def __init__(self, root: str, fetcher: Fetcher, artifacts: Artifacts, hub_hosts: Sequence[str]) -> None:
        self._hub_hosts = hub_hosts
        self._filesystem, base = open_store(root)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        self._base = str(Path(base).resolve()) if self._is_local else base.rstrip("/")
        self._fetcher = fetcher
        self._artifacts = artifacts
        self._threads = Threads(ROOT_THREADS, ROOT_PATIENCE_S, "a look into the LoRA root")

    async def ask(self, look: Callable[[], T]) -> T:
        """What `look` finds, which calls methods of this class that block.

        It has a thread of this LoRA root's own: a store that hangs holds up neither other work nor, for long, whoever
        asks. Raises Overloaded, and what `look` raises.
        """
        try:
            return await self._threads.run(look, ROOT_TIMEOUT_S)
        except TimeoutError as error:
            raise Overloaded(
                "the store of the LoRA files does not answer at the moment; send it again later"
            ) from error

    async def check(self, paths: Sequence[str]) -> None:
        """Raise LoraPathForbidden for the first path that leaves the root, else LoraNotFound for the first missing."""

        def look() -> None:
            for path in paths:
                self.check_path(path)
            for path in paths:
                self.check_exists(path)

        if not all(map(is_url, paths)):
            await self.ask(look)

    def check_path(self, path: str) -> None:
        """Raise LoraPathForbidden if `path` leaves the LoRA root: absolute, by `..`, or by a symbolic link. Blocks."""
        if is_url(path):
            return
        relative, windows = PurePosixPath(path), PureWindowsPath(path)
        if len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES or (not path.isprintable() and "\0" not in path):
            raise LoraNotFound("a LoRA path is too long or not text", {"lora_path": ascii(path[:100])})
        leaves = relative.is_absolute() or windows.anchor or ".." in windows.parts or "\0" in path
        # Not Path.resolve, which raises RuntimeError for links that lead in a circle: those are no files, see `find`.
        if leaves or (self._is_local and not Path(realpath(f"{self._base}/{path}")).is_relative_to(self._base)):
            raise LoraPathForbidden(
                f"the LoRA path {path!r} leads out of the LoRA root; give one relative to it", {"lora_path": path}
            )

    def check_exists(self, path: str) -> None:
        """Raise LoraNotFound if `path` is not a file under the LoRA root. URLs are not asked here. Blocks."""
        if not is_url(path):
            self.find(path)

    def files(self) -> list[StoredFile]:
        """Every safetensors file under the LoRA root that a request may name, by path. Blocks. Raises StorageFailed."""
        try:
            with as_os_errors():
                if not self._filesystem.isdir(self._base):
                    return []
                found = self._filesystem.find(self._base, detail=True)
        except OSError as error:
            raise StorageFailed("the LoRA root cannot be listed; try again") from error
        paths = {whole.removeprefix(self._base).lstrip("/"): whole for whole in found if whole.endswith(".safetensors")}
        allowed = ((path, self._of_file(paths[path], found)) for path in sorted(paths) if self._is_allowed(path))
        return [self._stored(path, info) for path, info in allowed if info is not None]

    def _of_file(self, whole: str, found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """What is known of a file that was found, or of what a link leads to; None for pipes, devices and the like."""
        info = found[whole]
        if info.get("islink"):
            try:
                info = self._filesystem.info(whole)
            except OSError:
                # It leads nowhere, or in a circle.
                return None
        return info if info["type"] == "file" else None

    def find(self, path: str) -> StoredFile:
        """One file under the LoRA root, by a single look-up. Blocks.

        Raises LoraNotFound, LoraPathForbidden or LoraDownloadFailed.
        """
        self.check_path(path)
        try:
            with as_os_errors():
                info = self._filesystem.info(f"{self._base}/{path}")
        except (FileNotFoundError, NotADirectoryError):
            info = {"type": "nothing"}
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise LoraDownloadFailed(
                    f"the store of the LoRA file {path!r} could not be read", {"lora_path": path}
                ) from error
            info = {"type": "nothing"}
        if info["type"] != "file":
            raise LoraNotFound(
                f"there is no LoRA file {path!r} under the LoRA root; GET /v1/loras lists them", {"lora_path": path}
            )
        return self._stored(path, info)

    def _stored(self, path: str, info: Mapping[str, Any]) -> StoredFile:
        whole = f"{self._base}/{path}"
        url = whole if self._is_local else str(self._filesystem.unstrip_protocol(whole))
        return StoredFile(path, url, info["size"], _fingerprint(open_store(url)[1], info))

    def _is_allowed(self, path: str) -> bool:
        try:
            self.check_path(path)
        except (LoraPathForbidden, LoraNotFound):
            return False
        return True

    async def admit(self, path: str, token: str | None, tenant: str) -> AdmittedFile:
        """The file that `path` names, its header read.

        Raises LoraInvalidFile, LoraDownloadFailed or Overloaded, and StorageFailed if what was downloaded cannot be
        kept.
        """
        if not is_url(path):
            return await self.ask(lambda: self.read(self.find(path)))
        url, of_hub = self._file_url(path)
        name = without_secrets(url)
        try:
            # The token is the hub's: no other host that the request names gets to see it.
            needs_token = token is not None and of_hub
            if needs_token and not is_origin(url, self._hub_hosts):
                raise FetchFailed(
                    "hf_token is sent over https to the hub's own port alone; name the file with https://"
                )
            if not needs_token and url == name and (file := await self._admit_url(url, tenant)):
                return file
            headers = {"Authorization": f"Bearer {token}"} if needs_token else {}
            return await self._download(url, headers, tenant)
        except FetchFailed as error:
            raise LoraDownloadFailed(
                f"the LoRA at {name!r} could not be downloaded: {error.message}", {"lora_path": name}
            ) from error
        except OSError as error:
            # The network's are FetchFailed by now: this is the disk of this machine, full or read-only.
            raise StorageFailed(f"the LoRA at {name!r} could not be written to this service's disk") from error

    def _file_url(self, path: str) -> tuple[str, bool]:
        """The URL of the file that a URL names, and whether it is of the hub. Raises LoraDownloadFailed."""
        try:
            if not path.isprintable():
                raise ValueError("not text")
            url = hub_url(path, self._hub_hosts[0]) if path.lower().startswith(HUB_SCHEME) else path
            of_hub = urlsplit(url).hostname in {urlsplit(f"//{host}").hostname for host in self._hub_hosts}
            # The port is looked at too, so that one that is no number is found here.
            _ = urlsplit(url).port
        except ValueError as error:
            raise LoraDownloadFailed("the path of a LoRA is not a valid http or https URL") from error
        return (file_url(url) if of_hub else url), of_hub

    def read(self, file: StoredFile) -> AdmittedFile:
        """A file under the LoRA root with its header. Blocks.

        Raises LoraNotFound, LoraInvalidFile or LoraDownloadFailed.
        """
        details = {"lora_path": file.path}
        try:
            with as_os_errors(), self._opened(file.url) as opened:
                header = read_header(opened, file.size_bytes, file.path)
        except (FileNotFoundError, NotRegular) as error:
            raise LoraNotFound(f"the LoRA file {file.path!r} is no longer there", details) from error
        except OSError as error:
            raise LoraDownloadFailed(f"the store of the LoRA file {file.path!r} could not be read", details) from error
        return AdmittedFile(file.id, file.url, file.size_bytes, header)

    def _opened(self, url: str) -> BinaryIO:
        filesystem, path = open_store(url)
        if self._is_local:
            return open_regular(Path(path))
        opened: BinaryIO = filesystem.open(path, "rb", block_size=BEGINNING_BYTES)
        return opened

    async def _admit_url(self, url: str, tenant: str) -> AdmittedFile | None:
        """The file at `url`, of which its beginning alone is read; None if its server does not pin it down.

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
        header = await asyncio.to_thread(read_header, BytesIO(beginning), remote.size, url)
        return AdmittedFile(identity(url, remote.size, remote.version), url, remote.size, header, remote.version)

    async def _download(self, url: str, headers: Mapping[str, str], tenant: str) -> AdmittedFile:
        """The file at `url`, downloaded and kept. Raises LoraInvalidFile, FetchFailed, Overloaded or StorageFailed."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "adapter"
            digest = await self._fetcher.download(url, target, headers, tenant)
            size = target.stat().st_size
            # Only a file with a sound header is kept.
            with target.open("rb") as file:
                header = await asyncio.to_thread(read_header, file, size, without_secrets(url))
            key = artifact_keys.downloaded_adapter(digest)
            await background.to_the_end(asyncio.to_thread(self._artifacts.put_file, key, target))
        kept = self._artifacts.url(key)
        try:
            return AdmittedFile(await asyncio.to_thread(fingerprint, kept), kept, size, header)
        except FileNotFoundError as error:
            # Another request had stored it, and was refused just now.
            raise FilesGone("a LoRA of this request was deleted meanwhile; send it again") from error
        except OSError as error:
            raise StorageFailed("a LoRA that was downloaded cannot be looked at in artifact storage") from error


def is_origin(url: str, hosts: Iterable[str]) -> bool:
    """Whether `url` is https, of one of these hosts (`host` or `host:port`), and of its port. Raises ValueError."""
    parts = urlsplit(url)
    origins = ((host.hostname, host.port or HTTPS_PORT) for host in (urlsplit(f"//{name}") for name in hosts))
    return parts.scheme == "https" and (parts.hostname, parts.port or HTTPS_PORT) in origins


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
    """The URL of the file itself: a hub page's `/blob/` means `/resolve/`, and its button's `?download=true` nothing.

    Raises LoraDownloadFailed for a `/tree/` page, which is a folder.
    """
    parts = urlsplit(url)
    if parts.query == "download=true":
        parts = parts._replace(query="")
    page = HUB_PAGE.match(parts.path)
    if page is None:
        return urlunsplit(parts)
    if page[2] == "tree":
        name = without_secrets(url)
        raise LoraDownloadFailed(
            f"{name!r} is a folder page of the hub (/tree/); give the URL of one .safetensors file", {"lora_path": name}
        )
    return urlunsplit(parts._replace(path=f"{page[1]}/resolve{page[3]}"))
