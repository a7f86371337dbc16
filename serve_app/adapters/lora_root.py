"""The LoRA root: the folder, or the fsspec URL of one, whose adapter files a request may name by relative path."""

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from os.path import realpath
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, TypeVar

from fsspec.implementations.local import LocalFileSystem

from serve_app.adapters.header import Header, read_header
from serve_app.adapters.local_files import NotRegular, open_regular
from serve_app.concurrency.threads import Threads
from serve_app.errors import LoraDownloadFailed, LoraNotFound, LoraPathForbidden, Overloaded, StorageFailed
from serve_app.storage.identity import listed_identity, open_store
from serve_app.storage.os_errors import as_os_errors

T = TypeVar("T")

# Longest path below the LoRA root: file systems take 255 bytes for a name.
MAX_PATH_BYTES = 250
# Bytes that are read of a file at first: the header of most adapters.
BEGINNING_BYTES = 512 * 2**10
# Calls into the LoRA root that run at a time; how long the next one waits, and how long each may take (s).
ROOT_THREADS, ROOT_PATIENCE_S, ROOT_TIMEOUT_S = 16, 5.0, 30.0
# How deep folders are looked into below the LoRA root.
MAX_DEPTH = 16


@dataclass(frozen=True)
class StoredFile:
    """A file under the LoRA root, as its store lists it. `path` is relative to the root; `url` opens it."""

    path: str
    url: str
    size_bytes: int
    id: str


@dataclass(frozen=True)
class Listed:
    """A file below the LoRA root in a listing. `path` is relative to the root."""

    path: str
    # How the store describes the file; None if it was not asked, which is cheap for a local folder.
    info: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class AdmittedFile:
    """An adapter file whose header has been read. An editor opens it at `url`.

    `version` is what the server of an http(s) URL calls its version; "" for files in a file system.
    """

    id: str
    url: str
    size_bytes: int
    header: Header
    version: str = ""


class LoraRoot:
    """Lists, finds and reads the adapter files below `root`. Every method but `in_thread` blocks.

    `is_local` says whether the root is a folder of this machine.
    """

    def __init__(self, root: str) -> None:
        self._filesystem, base = open_store(root)
        self.is_local = isinstance(self._filesystem, LocalFileSystem)
        self._base = str(Path(base).resolve()) if self.is_local else base.rstrip("/")
        self._threads = Threads(ROOT_THREADS, ROOT_PATIENCE_S, "reading the LoRA root")

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run `call`, which uses blocking methods of this class, and return its result.

        It runs in one of this root's own threads: a store that hangs delays no other work, and the caller only up to a
        time limit. Raises Overloaded, and what `call` raises.
        """
        try:
            return await self._threads.run(call, ROOT_TIMEOUT_S)
        except TimeoutError as error:
            raise Overloaded(
                "the store of the LoRA files does not answer at the moment; send it again later"
            ) from error

    def check(self, paths: Sequence[str]) -> None:
        """Raise LoraPathForbidden for the first path that leaves the root, otherwise LoraNotFound for the first
        that names no file.
        """
        for path in paths:
            self.check_path(path)
        for path in paths:
            self.find(path)

    def check_path(self, path: str) -> None:
        """Raise LoraPathForbidden if `path` leaves the LoRA root: absolute, by `..`, or by a symbolic link."""
        relative, windows = PurePosixPath(path), PureWindowsPath(path)
        if len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES or (not path.isprintable() and "\0" not in path):
            raise LoraNotFound("a LoRA path is too long or not text", {"lora_path": ascii(path[:100])})
        leaves = relative.is_absolute() or windows.anchor or ".." in windows.parts or "\0" in path
        # Path.resolve would raise RuntimeError for links in a circle. Those are no files: see `find`.
        if leaves or (self.is_local and not Path(realpath(f"{self._base}/{path}")).is_relative_to(self._base)):
            raise LoraPathForbidden(
                f"the LoRA path {path!r} leads out of the LoRA root; give one relative to it", {"lora_path": path}
            )

    def files(self) -> list[StoredFile]:
        """Every safetensors file under the LoRA root that a request may name, sorted by path. Raises StorageFailed."""
        try:
            with as_os_errors():
                if self.is_local:
                    self._check_root()
                elif not self._filesystem.isdir(self._base):
                    return []
                found = self._filesystem.find(self._base, detail=True)
        except OSError as error:
            raise StorageFailed("the LoRA root cannot be listed; try again") from error
        paths = {whole.removeprefix(self._base).lstrip("/"): whole for whole in found if whole.endswith(".safetensors")}
        allowed = ((path, self._of_file(paths[path], found)) for path in sorted(paths) if self._is_allowed(path))
        return [self._stored(path, info) for path, info in allowed if info is not None]

    def listing(self, under: str = "") -> list[Listed]:
        """Every file below the folder `under` of the root, whatever its name. Hidden files and folders are left out,
        and those whose path is not text.

        Links to folders are not followed. Raises StorageFailed, and LoraPathForbidden if `under` leads out of the root.
        """
        self.check_path(under)
        folder = f"{self._base}/{under}".rstrip("/")
        try:
            with as_os_errors():
                if self.is_local:
                    self._check_root()
                    local = (path.removeprefix(f"{self._base}/") for path in _walk(folder, MAX_DEPTH))
                    return [Listed(path) for path in local if path.isprintable()]
                if not self._filesystem.isdir(folder):
                    return []
                found = self._filesystem.find(folder, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StorageFailed("the LoRA root cannot be listed; try again") from error
        paths = ((whole.removeprefix(self._base).lstrip("/"), info) for whole, info in found.items())
        return [
            Listed(path, info)
            for path, info in paths
            if path.isprintable() and not _is_hidden(path.removeprefix(under))
        ]

    def stored(self, listed: Listed) -> StoredFile:
        """The file of a listing. Raises LoraNotFound, LoraPathForbidden or LoraDownloadFailed."""
        return self.find(listed.path) if listed.info is None else self._stored(listed.path, listed.info)

    def size_of(self, listed: Listed) -> int | None:
        """The size of a file of a listing (bytes), cheaper than `stored`; None for a link, or if the file is gone."""
        if listed.info is not None:
            return int(listed.info["size"])
        try:
            status = os.lstat(f"{self._base}/{listed.path}")
        except OSError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def content(self, file: StoredFile, max_bytes: int) -> bytes:
        """The first `max_bytes` of a file. Raises LoraNotFound or LoraDownloadFailed."""
        details = {"lora_path": file.path}
        try:
            with as_os_errors(), self._opened(file.url) as opened:
                return opened.read(max_bytes)
        except (FileNotFoundError, NotRegular) as error:
            raise LoraNotFound(f"the file {file.path!r} is no longer there", details) from error
        except OSError as error:
            raise LoraDownloadFailed(f"the store of the file {file.path!r} could not be read", details) from error

    def _of_file(self, whole: str, found: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any] | None:
        """fsspec's description of a file that was found, or of a link's target; None for pipes and devices."""
        info = found[whole]
        if info.get("islink"):
            try:
                info = self._filesystem.info(whole)
            except OSError:
                # The link leads nowhere, or in a circle.
                return None
        return info if info["type"] == "file" else None

    def find(self, path: str) -> StoredFile:
        """One file under the LoRA root, by a single look-up.

        Raises LoraNotFound, LoraPathForbidden or LoraDownloadFailed.
        """
        self.check_path(path)
        try:
            with as_os_errors():
                info = self._look_up(f"{self._base}/{path}")
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise LoraDownloadFailed(
                    f"the store of the LoRA file {path!r} could not be read", {"lora_path": path}
                ) from error
            info = {"type": "nothing"}
        if info["type"] != "file":
            raise LoraNotFound(no_lora_file(path), {"lora_path": path})
        return self._stored(path, info)

    def _look_up(self, whole: str) -> Mapping[str, Any]:
        """fsspec's description of what is at a path. Raises OSError if that cannot be said."""
        try:
            info: Mapping[str, Any] = self._filesystem.info(whole)
            return info
        except (FileNotFoundError, NotADirectoryError):
            if self.is_local:
                self._check_root()
            return {"type": "nothing"}

    def _check_root(self) -> None:
        """Raise OSError, never FileNotFoundError, if the local root cannot be listed. It was there at the start."""
        try:
            os.scandir(self._base).close()
        except OSError as error:
            raise OSError(f"the folder {self._base} cannot be listed: {error.strerror}") from error

    def _stored(self, path: str, info: Mapping[str, Any]) -> StoredFile:
        whole = f"{self._base}/{path}"
        url = whole if self.is_local else str(self._filesystem.unstrip_protocol(whole))
        return StoredFile(path, url, info["size"], listed_identity(open_store(url)[1], info))

    def _is_allowed(self, path: str) -> bool:
        try:
            self.check_path(path)
        except (LoraPathForbidden, LoraNotFound):
            return False
        return True

    def read(self, file: StoredFile) -> AdmittedFile:
        """A file under the LoRA root with its header.

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
        if self.is_local:
            return open_regular(Path(path))
        opened: BinaryIO = filesystem.open(path, "rb", block_size=BEGINNING_BYTES)
        return opened


def no_lora_file(path: str) -> str:
    """What a client reads about a LoRA that is not there, or not there for it."""
    return f"there is no LoRA file {path!r} under the LoRA root; GET /v1/loras lists them"


def _walk(folder: str, depth: int) -> Iterator[str]:
    """The paths of all files below a local folder."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if not entry.is_dir(follow_symlinks=False):
                yield entry.path
            elif depth > 0:
                # A folder that is deleted meanwhile has no files.
                with suppress(FileNotFoundError, PermissionError):
                    yield from _walk(entry.path, depth - 1)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(path).parts)
