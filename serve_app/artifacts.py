"""Artifact storage: control images by content, results by request. A folder, or any fsspec URL."""

import json
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from serve_app.errors import StorageFailed

# How file systems call the time of a file's last change (local, s3, azure, memory); the others are asked for it.
CHANGED_KEYS = ("mtime", "LastModified", "last_modified", "created")


class Artifacts:
    """Blocking calls: an event loop uses them through `asyncio.to_thread`.

    What is readable is whole: a file appears under its name only once all its bytes are there.
    """

    def __init__(self, url: str) -> None:
        # What another process deleted must not be there in a listing from before.
        self._filesystem, self._root = fsspec.url_to_fs(url, use_listings_cache=False)

    def url(self, key: str) -> str:
        """Where the artifact is: a real path if it is a local file, else its URL."""
        path = f"{self._root}/{key}"
        return path if isinstance(self._filesystem, LocalFileSystem) else str(self._filesystem.unstrip_protocol(path))

    def key_of(self, url: str) -> str | None:
        """The key of what `url` says is here, None if it is elsewhere."""
        root = self.url("")
        return url.removeprefix(root) if url.startswith(root) else None

    def put(self, key: str, data: bytes) -> None:
        """Write `data` under `key`, replacing what is there."""
        with self._whole(key) as part:
            self._filesystem.pipe_file(part, data)

    @contextmanager
    def _whole(self, key: str) -> Iterator[str]:
        """Where to write what shall appear under `key` in one piece, whoever else writes there too."""
        path = f"{self._root}/{key}"
        if not isinstance(self._filesystem, LocalFileSystem):
            # An object appears at the end of its upload.
            yield path
            return
        with self._part(path) as part:
            yield part
            Path(part).replace(path)

    @contextmanager
    def _part(self, path: str) -> Iterator[str]:
        """A place of one's own beside a local file's."""
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

    def put_new(self, key: str, data: bytes) -> bool:
        """Write `data` under `key` unless something is there; whether it was written. Of several at once one does it.

        A folder has to be on a file system with hard links.
        """
        path = f"{self._root}/{key}"
        try:
            if isinstance(self._filesystem, LocalFileSystem):
                with self._part(path) as part:
                    Path(part).write_bytes(data)
                    Path(path).hardlink_to(part)
            else:
                self._filesystem.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_file(self, key: str, source: Path) -> None:
        """Copy a local file to `key`, unless something is there."""
        if not self.exists(key):
            with self._whole(key) as part:
                self._filesystem.put_file(str(source), part)

    def get(self, key: str) -> bytes:
        """The bytes under `key`. Raises FileNotFoundError."""
        data: bytes = self._filesystem.cat_file(f"{self._root}/{key}")
        return data

    def exists(self, key: str) -> bool:
        """Raises StorageFailed."""
        try:
            return bool(self._filesystem.exists(f"{self._root}/{key}"))
        except OSError as error:
            raise StorageFailed("artifact storage cannot be asked for a file") from error

    def put_json(self, key: str, value: Any) -> None:
        self.put(key, json.dumps(value).encode())

    def get_json(self, key: str) -> Any:
        """The value under `key`, None if there is none."""
        try:
            return json.loads(self.get(key))
        except FileNotFoundError:
            return None

    def older_than(self, folder: str, seconds: float) -> list[str]:
        """The keys below `folder` that were last written longer ago than that, by this machine's clock.

        Raises StorageFailed.
        """
        latest = datetime.now(UTC) - timedelta(seconds=seconds)
        try:
            files = self._filesystem.find(f"{self._root}/{folder}", detail=True)
            return [path.removeprefix(f"{self._root}/") for path, info in files.items() if self._changed(info) < latest]
        except OSError as error:
            raise StorageFailed(f"the artifacts in {folder!r} cannot be listed") from error

    def _changed(self, info: dict[str, Any]) -> datetime:
        moment = next((info[key] for key in CHANGED_KEYS if info.get(key)), None)
        if moment is None:
            moment = self._filesystem.modified(info["name"])
        changed = datetime.fromtimestamp(moment, UTC) if isinstance(moment, int | float) else moment
        return changed if changed.tzinfo else changed.replace(tzinfo=UTC)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete what is there of these. Raises StorageFailed."""
        paths = [f"{self._root}/{key}" for key in keys]
        try:
            # One request for many, where the storage has that.
            self._filesystem.rm(paths)
        except FileNotFoundError:
            self._delete_each(paths)
        except OSError as error:
            raise StorageFailed(f"{len(keys)} artifacts cannot be deleted") from error

    def _delete_each(self, paths: Sequence[str]) -> None:
        for path in paths:
            try:
                with suppress(FileNotFoundError):
                    self._filesystem.rm_file(path)
            except OSError as error:
                raise StorageFailed("an artifact cannot be deleted") from error

    def delete_folder(self, folder: str) -> None:
        """Delete what is below a folder, if it is there. Raises StorageFailed."""
        try:
            with suppress(FileNotFoundError):
                self._filesystem.rm(f"{self._root}/{folder}", recursive=True)
        except OSError as error:
            raise StorageFailed(f"the artifacts in {folder!r} cannot be deleted") from error
