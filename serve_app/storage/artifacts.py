"""Artifact storage: control images by content, results by request. A folder, or any fsspec URL of a known store."""

import json
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

# How file systems call the time of a file's last change (local, s3, azure, memory); the others are asked for it.
CHANGED_KEYS = ("mtime", "LastModified", "last_modified", "created")
# What makes each store write a file only if none is there, in one atomic request, by the first protocol that its file
# system names. s3fs and gcsfs send a condition for `mode`; adlfs before 2026 ignores it, and every adlfs sends one for
# `overwrite=False`. Local folders use hard links. Other stores are refused: theirs may be a check and then a write.
ONLY_IF_MISSING: Mapping[str, Mapping[str, Any]] = {
    "s3": {"mode": "create"},
    "gs": {"mode": "create"},
    "abfs": {"overwrite": False},
    "memory": {"mode": "create"},
}

# The keys of the files that were newly written on behalf of one caller, over all tasks and threads that it started.
_written: ContextVar[set[str] | None] = ContextVar("written", default=None)


class Artifacts:
    """Blocking calls: an event loop uses them through `asyncio.to_thread`.

    What is readable is whole: a file appears under its name only once all its bytes are there. Every method raises
    StorageFailed if storage is full, read-only or away; FileNotFoundError only where its docstring says so.
    """

    def __init__(self, url: str) -> None:
        """Raises StorageRefused for a store that cannot write a file only if none is there."""
        # What another process deleted must not be there in a listing from before.
        self._filesystem, self._root = fsspec.url_to_fs(url, use_listings_cache=False)
        self._is_local = isinstance(self._filesystem, LocalFileSystem)
        protocol = self._filesystem.protocol
        self._protocol = protocol if isinstance(protocol, str) else protocol[0]
        if not self._is_local and self._protocol not in ONLY_IF_MISSING:
            raise StorageRefused(
                f"artifacts cannot be kept at a {self._protocol}:// URL, since it is not known to write a file only if "
                "none is there; use a folder, or an s3://, gs:// or az:// URL"
            )

    def url(self, key: str) -> str:
        """Where the artifact is: a real path if it is a local file, otherwise its URL."""
        path = f"{self._root}/{key}"
        return path if self._is_local else str(self._filesystem.unstrip_protocol(path))

    def key_of(self, url: str) -> str | None:
        """The key of what `url` says is here, None if it is elsewhere."""
        root = self.url("")
        return url.removeprefix(root) if url.startswith(root) else None

    @staticmethod
    @contextmanager
    def noting_new() -> Iterator[set[str]]:
        """The keys of the files that the code inside, and the tasks it starts, write where there was none.

        Only content under a key of its own counts: `put_missing` and `put_file`.
        """
        keys: set[str] = set()
        token = _written.set(keys)
        try:
            yield keys
        finally:
            _written.reset(token)

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`, replacing what is there."""
        with _storage_failed("an artifact cannot be written"), self._whole(key) as part:
            self._filesystem.pipe_file(part, data)

    @contextmanager
    def _whole(self, key: str) -> Iterator[str]:
        """Where to write what shall appear under `key` in one piece, whoever else writes there too."""
        path = f"{self._root}/{key}"
        if not self._is_local:
            # An object appears at the end of its upload.
            yield path
            return
        with self._part(path) as part:
            yield part
            Path(part).replace(path)

    @contextmanager
    def _part(self, path: str) -> Iterator[str]:
        """A place of one's own next to a local file's."""
        self._filesystem.makedirs(self._filesystem._parent(path), exist_ok=True)
        part = f"{path}.{uuid.uuid4().hex}.part"
        try:
            yield part
        finally:
            Path(part).unlink(missing_ok=True)

    def put_missing(self, key: str, data: bytes) -> None:
        """Write content under a key that is its own, unless it is there."""
        if not self.exists(key):
            self.put(key, data)
            _note(key)

    def put_new(self, key: str, data: bytes) -> bool:
        """Write `data` under `key` unless something is there; whether it was written. Of several at once one does it.

        A folder has to be on a file system with hard links.
        """
        path = f"{self._root}/{key}"
        with _storage_failed("an artifact cannot be written"):
            return self._link_new(path, data) if self._is_local else self._upload_new(path, data)

    def _link_new(self, path: str, data: bytes) -> bool:
        with self._part(path) as part:
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
        """Copy a local file to `key`, unless something is there."""
        if not self.exists(key):
            with _storage_failed("an artifact cannot be written"), self._whole(key) as part:
                self._filesystem.put_file(str(source), part)
            _note(key)

    def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises FileNotFoundError."""
        with _storage_failed("an artifact cannot be read", FileNotFoundError):
            data: bytes = self._filesystem.cat_file(f"{self._root}/{key}")
        return data

    def exists(self, key: str) -> bool:
        try:
            # fsspec's own `exists` says no for every error, also while storage is away.
            with _storage_failed("artifact storage cannot be asked for a file", FileNotFoundError):
                self._filesystem.info(f"{self._root}/{key}")
        except FileNotFoundError:
            return False
        return True

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value).encode())

    def get_json(self, key: str) -> Any:
        """The value under `key`, None if there is none."""
        try:
            return json.loads(self.get(key))
        except FileNotFoundError:
            return None

    def older_than(self, folder: str, seconds: float) -> list[str]:
        """The keys below `folder` that were last written longer ago than that, by this machine's clock."""
        latest = datetime.now(UTC) - timedelta(seconds=seconds)
        with _storage_failed(f"the artifacts in {folder!r} cannot be listed"):
            files = self._filesystem.find(f"{self._root}/{folder}", detail=True)
            return [path.removeprefix(f"{self._root}/") for path, info in files.items() if self._changed(info) < latest]

    def _changed(self, info: dict[str, Any]) -> datetime:
        moment = next((info[key] for key in CHANGED_KEYS if info.get(key)), None)
        if moment is None:
            moment = self._filesystem.modified(info["name"])
        changed = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int | float) else moment
        return changed if changed.tzinfo else changed.replace(tzinfo=UTC)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete what is there of these."""
        paths = [f"{self._root}/{key}" for key in keys]
        with _storage_failed(f"{len(keys)} artifacts cannot be deleted"):
            try:
                # One request for many, where the storage has that.
                self._filesystem.rm(paths)
            except FileNotFoundError:
                for path in paths:
                    with suppress(FileNotFoundError):
                        self._filesystem.rm_file(path)

    def delete_folder(self, folder: str) -> None:
        """Delete what is below a folder, if it is there."""
        with _storage_failed(f"the artifacts in {folder!r} cannot be deleted"), suppress(FileNotFoundError):
            self._filesystem.rm(f"{self._root}/{folder}", recursive=True)


@contextmanager
def _storage_failed(message: str, *expected: type[OSError]) -> Iterator[None]:
    """Raise StorageFailed with `message` for every error of the file system but those `expected`.

    A message tells neither a path nor the store's own words: clients read it.
    """
    try:
        with as_os_errors():
            yield
    except expected:
        raise
    except OSError as error:
        raise StorageFailed(message) from error


def _note(key: str) -> None:
    if (written := _written.get()) is not None:
        written.add(key)
