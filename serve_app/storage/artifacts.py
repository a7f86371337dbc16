"""Artifact storage: the files that ingresses and editors share, in a folder or in a store with a known fsspec URL.

A new kind of store is a row in `ONLY_IF_MISSING`; `CHANGED_KEYS` needs its name for the time of a change.
"""

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve_app.errors import StorageFailed, StorageRefused
from serve_app.storage.os_errors import as_os_errors

# The keys under which file systems report a file's last change (local, s3, azure, memory). Others are asked for it.
CHANGED_KEYS = ("mtime", "LastModified", "last_modified", "created")
# The option that makes a store write a file only if there is none, in one atomic request, by the first protocol of its
# file system. s3fs and gcsfs send a condition for `mode`; adlfs before 2026 ignores it, but every adlfs sends one for
# `overwrite=False`. Local folders use hard links. Other stores are refused: they may check first and write afterwards.
ONLY_IF_MISSING: Mapping[str, Mapping[str, Any]] = {
    "s3": {"mode": "create"},
    "gs": {"mode": "create"},
    "abfs": {"overwrite": False},
    "memory": {"mode": "create"},
}

# The keys of new files that one caller has written, including the tasks and threads that it started.
_written: ContextVar[set[str] | None] = ContextVar("written", default=None)


class Artifacts:
    """Reads and writes artifacts by key. All calls block: an event loop uses them through `asyncio.to_thread`.

    A file appears under its key only when it is complete. Every method raises StorageFailed if storage is full,
    read-only or cannot be reached, and FileNotFoundError only where its docstring says so.
    """

    def __init__(self, url: str) -> None:
        """Raises StorageRefused for a store without an atomic way to write a file only if there is none."""
        # Without this cache: a listing from before would contain files that another process has deleted since.
        self._filesystem, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        protocol = self._filesystem.protocol
        self._protocol = protocol if isinstance(protocol, str) else protocol[0]
        if not self._is_local and self._protocol not in ONLY_IF_MISSING:
            raise StorageRefused(
                f"artifacts cannot be stored at a {self._protocol}:// URL: such a store has no known way to write a "
                "file only if there is none; use a folder, or an s3://, gs:// or az:// URL"
            )

    def url(self, key: str) -> str:
        """The path of a local artifact, otherwise its URL."""
        path = f"{self._root}/{key}"
        return path if self._is_local else str(self._filesystem.unstrip_protocol(path))

    def key_of(self, url: str) -> str | None:
        """The key of the artifact at `url` (as from `url()`), None if the URL is not in this storage."""
        root = self.url("")
        return url.removeprefix(root) if url.startswith(root) else None

    @staticmethod
    @contextmanager
    def recording_new_keys() -> Iterator[set[str]]:
        """Collect the keys of new files that the code inside, and the tasks that it starts, write.

        Only files whose key is derived from their content count: those of `put_missing` and `put_file`.
        """
        keys: set[str] = set()
        token = _written.set(keys)
        try:
            yield keys
        finally:
            _written.reset(token)

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`. An existing file is replaced."""
        with _storage_failed("an artifact cannot be written"), self._complete_file(key) as path:
            self._filesystem.pipe_file(path, data)

    @contextmanager
    def _complete_file(self, key: str) -> Iterator[str]:
        """A path to write to. The file appears under `key` once it is complete, also with concurrent writers."""
        path = f"{self._root}/{key}"
        if not self._is_local:
            # An object store shows an object only after its upload has ended.
            yield path
            return
        with self._temporary_file(path) as part:
            yield part
            Path(part).replace(path)

    @contextmanager
    def _temporary_file(self, path: str) -> Iterator[str]:
        """A unique path next to a local file, deleted afterwards."""
        self._filesystem.makedirs(self._filesystem._parent(path), exist_ok=True)
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            yield part
        finally:
            Path(part).unlink(missing_ok=True)

    def put_missing(self, key: str, data: bytes) -> None:
        """Write `data` under a key derived from its content, unless a file is there already."""
        if not self.exists(key):
            self.put(key, data)
            _record_new(key)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write `data` under `key` unless a file is there; True if it was written. Only one of several callers does.

        A folder must be on a file system with hard links.
        """
        path = f"{self._root}/{key}"
        with _storage_failed("an artifact cannot be written"):
            return self._link_new(path, data) if self._is_local else self._upload_new(path, data)

    def _link_new(self, path: str, data: bytes) -> bool:
        with self._temporary_file(path) as part:
            Path(part).write_bytes(data)
            try:
                Path(path).hardlink_to(part)
            except FileExistsError:
                return False
        return True

    def _upload_new(self, path: str, data: bytes) -> bool:
        try:
            self._filesystem.pipe_file(path, data, **ONLY_IF_MISSING[self._protocol])
        except FileExistsError:
            return False
        return True

    def put_file(self, key: str, source: Path) -> None:
        """Copy a local file to a key derived from its content, unless a file is there already."""
        if not self.exists(key):
            with _storage_failed("an artifact cannot be written"), self._complete_file(key) as path:
                self._filesystem.put_file(str(source), path)
            _record_new(key)

    def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises FileNotFoundError."""
        with _storage_failed("an artifact cannot be read", FileNotFoundError):
            data: bytes = self._filesystem.cat_file(f"{self._root}/{key}")
        return data

    def exists(self, key: str) -> bool:
        """Whether there is a file under `key`."""
        try:
            # fsspec's own `exists` returns False for every error, even if storage cannot be reached.
            with _storage_failed("artifact storage cannot be searched for a file", FileNotFoundError):
                self._filesystem.info(f"{self._root}/{key}")
        except FileNotFoundError:
            return False
        return True

    def put_json(self, key: str, value: Any) -> None:
        """Write `value` as JSON under `key`. An existing file is replaced."""
        self.put(key, json.dumps(value).encode())

    def get_json(self, key: str) -> Any:
        """The value of the JSON file under `key`, None if there is no file."""
        try:
            return json.loads(self.get(key))
        except FileNotFoundError:
            return None

    def older_than(self, folder: str, seconds: float) -> list[str]:
        """The keys in `folder` of files that were last written over `seconds` ago, by this machine's clock."""
        latest = datetime.now(UTC) - timedelta(seconds=seconds)
        with _storage_failed(f"the artifacts in {folder!r} cannot be listed"):
            files = self._find(f"{self._root}/{folder}")
            return [path.removeprefix(f"{self._root}/") for path, info in files if self._changed(info) < latest]

    def _find(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The files below a folder, and what the file system says of each; none if the folder is missing."""
        if not self._is_local:
            yield from self._filesystem.find(folder, detail=True).items()
            return
        # In a local file system, `find` takes a folder that cannot be listed for an empty one.
        for parent, _, names in os.walk(folder, onerror=_raise_unless_missing):
            for name in names:
                # Another process may delete files meanwhile.
                with suppress(FileNotFoundError):
                    path = (Path(parent) / name).as_posix()
                    yield path, self._filesystem.info(path)

    def _changed(self, info: dict[str, Any]) -> datetime:
        moment = next((info[key] for key in CHANGED_KEYS if info.get(key)), None)
        if moment is None:
            moment = self._filesystem.modified(info["name"])
        changed = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int | float) else moment
        return changed if changed.tzinfo else changed.replace(tzinfo=UTC)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the files under these keys that exist."""
        paths = [f"{self._root}/{key}" for key in keys]
        with _storage_failed(f"{len(keys)} artifacts cannot be deleted"):
            try:
                # One request for many files, if the store supports that.
                self._filesystem.rm(paths)
            except FileNotFoundError:
                for path in paths:
                    with suppress(FileNotFoundError):
                        self._filesystem.rm_file(path)

    def delete_folder(self, folder: str) -> None:
        """Delete everything in a folder, if it exists."""
        with _storage_failed(f"the artifacts in {folder!r} cannot be deleted"), suppress(FileNotFoundError):
            self._filesystem.rm(f"{self._root}/{folder}", recursive=True)


@contextmanager
def _storage_failed(message: str, *expected: type[OSError]) -> Iterator[None]:
    """Raise StorageFailed with `message` for every error of the file system except those `expected`.

    Clients read the message, so it contains neither a path nor the store's own text.
    """
    try:
        with as_os_errors():
            yield
    except expected:
        raise
    except OSError as error:
        raise StorageFailed(message) from error


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _record_new(key: str) -> None:
    if (written := _written.get()) is not None:
        written.add(key)
